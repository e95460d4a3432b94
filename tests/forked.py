"""The processes that a sweep has forked for its runs."""

from contextlib import suppress
from pathlib import Path


def forked_workers(pid: int) -> list[int]:
    """Workers of a sweep: what the process has forked that it started for this."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if b"forkserver" in (process / "cmdline").read_bytes():
                status = (process / "stat").read_text().rpartition(")")[2].split()
                if status[0] != "Z":
                    parents[int(process.name)] = int(status[1])
    return [child for child, parent in parents.items() if parents.get(parent) == pid]
