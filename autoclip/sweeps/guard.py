"""Run a command; end with it, or with the process that asked for it.

    ORDERS | python -I -S guard.py PROGRAM [ARGUMENT ...]

The command gets its own process group, so that Ctrl-C reaches it only through this program. A byte on the standard
input asks the group to end (SIGTERM, after `GRACE_SECONDS` SIGKILL). The end of the standard input kills the group at
once. It comes however the other process ends, even by SIGKILL, which that process could not pass on itself.

Exit code: that of the command, 128 + n where signal n ended it, 126 where it cannot be started.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from threading import Event, Thread, Timer

GRACE_SECONDS = 10.0
CANNOT_START = 126


def main(command: list[str]) -> int:
    """Run a command under the orders of the standard input; return the exit code."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 - the user's
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return CANNOT_START
    asked = Event()
    Thread(target=_obey, args=(process.pid, asked), daemon=True).start()
    code = process.wait()
    if asked.is_set():
        _signal(process.pid, signal.SIGKILL)  # children that it left behind
    return code if code >= 0 else 128 - code


def _obey(group: int, asked: Event) -> None:
    while os.read(sys.stdin.fileno(), 1):
        asked.set()
        _signal(group, signal.SIGTERM)
        timer = Timer(GRACE_SECONDS, _signal, (group, signal.SIGKILL))
        timer.daemon = True
        timer.start()
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it ended a moment ago
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
