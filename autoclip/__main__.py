"""The `autoclip` command, also as `python -m autoclip`; Ctrl-C is taken over before anything long is imported."""

import atexit
import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Entry point: as `autoclip.cli.main`, and Ctrl-C ends the process at once with exit code 130.

    But for runs and sweeps under way, which take it over (see `Interrupt`), and what Python does when it exits, last of
    all.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it was ignored from outside
        signal.signal(signal.SIGINT, _leave)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the first to register is the last to run
    for name in ("stdout", "stderr"):  # None if the shell has closed them
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - until the process ends
    from autoclip.cli import main as command_line

    command_line()


def _leave(number: int, frame: FrameType | None) -> None:
    print("interrupted", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(130)  # an exception in the midst of an import is not always passed on, nor in what Python does as it exits


if __name__ == "__main__":
    main()
