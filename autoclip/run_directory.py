"""The run directory: the only interface between training and everything after it."""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from autoclip.errors import RunError
from autoclip.records import restored, to_json

METRICS = "metrics.jsonl"
LAYERS = "layers.jsonl"
SUMMARY = "summary.json"
CONFIG = "config.yaml"
SPIKES = "spikes"
ASIDE = ".tmp"
"""Suffix of a file that is being written and will replace another."""


@dataclass(frozen=True)
class EarlierLines:
    """The lines of earlier steps in a JSONL file.

    Attributes:
        steps: ascending.
        lines: one for each step.
        damaged: number of lines between them that cannot be read or do not ascend.
    """

    steps: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    damaged: int = 0


def earlier_lines(path: Path, before: int) -> EarlierLines:
    """The lines of steps before this one, without damaged lines and without a torn last line."""
    if not before or not path.exists():
        return EarlierLines()
    steps: list[int] = []
    lines: list[str] = []
    last = 0
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        if (steps[-1] if steps else -1) < step < before:
            steps.append(step)
            lines.append(line)
            last = number
    return EarlierLines(steps, lines, damaged=last + 1 - len(lines) if lines else 0)


class LineLog(AbstractContextManager["LineLog"]):
    """A JSONL file with a `step` in every line, ascending; a kill loses at most the line being written.

    Args:
        path: the file; created if missing.
        earlier: the lines that it keeps.
    """

    def __init__(self, path: Path, earlier: EarlierLines) -> None:
        write_atomically(path, "".join(line + "\n" for line in earlier.lines))
        self._file: TextIOWrapper = path.open("a", encoding="utf-8")

    def append(self, values: dict[str, Any]) -> None:
        """Write one line and hand it to the operating system at once."""
        self._file.write(json_text(values) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until every line is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def write_atomically(path: Path, text: str) -> None:
    """Replace the text of a file; a reader sees either the whole old text or the whole new one."""
    with written_aside(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))  # half of a surrogate pair is in no encoding


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` once it is complete and on the disk; an error leaves nothing.

    Several processes can replace one file at the same moment: each writes under its own name. A link under that name
    is not followed.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}{ASIDE}")
    aside.unlink(missing_ok=True)
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def remove_asides(directory: Path) -> None:
    """Delete the unfinished files of killed processes, `<name>.<pid>.tmp`, and no other file.

    Only for a directory that no other process writes to now.
    """
    for path in directory.glob(f"*{ASIDE}"):
        if path.stem.rpartition(".")[2].isdecimal():
            path.unlink(missing_ok=True)


def json_text(values: Any, indent: int | None = None) -> str:
    """The values as JSON, see `to_json`."""
    try:
        return json.dumps(values, indent=indent, allow_nan=False)
    except ValueError:  # it holds NaN or an infinity
        return json.dumps(to_json(values), indent=indent, allow_nan=False)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file at once."""
    write_atomically(path, json_text(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object with the numbers that JSON lacks; None if there is no file.

    Raises:
        RunError: the file is not a JSON object.
    """
    if not path.exists():
        return None
    if not path.is_file():
        raise RunError(f"{path} is not a file: move it away")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_hook=restored)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not valid JSON ({error}): put the right one back, or move it away") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no JSON object: put the right one back, or move it away")
    return values


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of steps in a file of JSON lines, up to the first damaged one.

    Raises:
        OSError: the file cannot be read.
    """
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line, object_hook=restored)
        except (ValueError, TypeError, RecursionError):
            return  # torn by a kill
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            return
        yield row
