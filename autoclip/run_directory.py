"""The run directory: the only interface between training and everything after it."""

import json
import os
from contextlib import AbstractContextManager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from autoclip.errors import RunError

METRICS = "metrics.jsonl"
LAYERS = "layers.jsonl"
SUMMARY = "summary.json"
CONFIG = "config.yaml"


class LineLog(AbstractContextManager["LineLog"]):
    """A JSONL file with a `step` in every line, ascending; a kill loses at most the line being written.

    Args:
        path: the file; created where it is missing.
        keep: lines of this step and later ones are removed first, as is a torn last line; 0 starts empty.
    """

    def __init__(self, path: Path, keep: int) -> None:
        kept = [line for step, line in _whole_lines(path) if step < keep] if keep and path.exists() else []
        write_atomically(path, "".join(line + "\n" for line in kept))
        self.lines = len(kept)
        self._file: TextIOWrapper = path.open("a", encoding="utf-8")

    def append(self, values: dict[str, Any]) -> None:
        """Write one line and hand it to the operating system at once."""
        self._file.write(json.dumps(values, allow_nan=False) + "\n")
        self._file.flush()
        self.lines += 1

    def sync(self) -> None:
        """Wait until every line is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole_lines(path: Path) -> list[tuple[int, str]]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found.append((int(json.loads(line)["step"]), line))
        except (ValueError, KeyError, TypeError):
            break  # torn by a kill, or the end of the file
    return found


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by one with this text, so that a reader sees the old or the new one whole."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file at once; NaN and the infinities are refused, as JSON has none."""
    write_atomically(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object, None where there is no file.

    Raises:
        RunError: the file is no JSON object.
    """
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON ({error}); move it away to start over") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no JSON object; move it away to start over")
    return values
