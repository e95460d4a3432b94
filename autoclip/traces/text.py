"""Lines of text files that may be torn, damaged, or no text at all."""

from collections.abc import Iterator
from pathlib import Path

from autoclip.errors import UsageError

LONGEST = 16 * 2**20  # bytes; a longer line is no line


def lines(path: Path) -> Iterator[tuple[str, bool]]:
    """Read the lines one by one, each with its line end and whether it has one.

    Bytes that are no UTF-8 become U+FFFD, and a byte-order mark is dropped.

    Raises:
        OSError: the file cannot be read.
        UsageError: a line is longer than 16 MiB.
    """
    with path.open("rb") as file:
        start = True
        while line := file.readline(LONGEST + 1):
            if len(line) > LONGEST:
                raise UsageError(f"{path} is no text file: it has a line of more than {LONGEST >> 20} MiB")
            yield line.decode("utf-8-sig" if start else "utf-8", errors="replace"), line.endswith(b"\n")
            start = False
