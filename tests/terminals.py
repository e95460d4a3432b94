"""Commands in a pseudo-terminal, and what a person sees of them."""

import fcntl
import os
import re
import struct
import subprocess
import termios
from collections.abc import Sequence
from contextlib import suppress


def run_in_terminal(command: Sequence[str], columns: int) -> tuple[int, str]:
    """Run a command with a terminal of so many columns for its output; return its exit code and what it wrote."""
    reads, writes = os.openpty()
    fcntl.ioctl(writes, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command, stdin=writes, stdout=writes, stderr=writes, env={**environment, "TERM": "xterm-256color"}
    )
    os.close(writes)
    written = []
    with suppress(OSError):  # the end of a terminal is an error on Linux
        while piece := os.read(reads, 65536):
            written.append(piece)
    os.close(reads)
    return process.wait(60), b"".join(written).decode()


def seen(written: str) -> list[str]:
    """The lines that were written, without colours and movements of the cursor; a line drawn anew counts again."""
    return [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", written)) if line]
