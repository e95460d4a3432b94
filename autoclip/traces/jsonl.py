"""JSON lines: our own `metrics.jsonl`, and other logs with one object in each line."""

import json
from collections.abc import Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from autoclip.errors import UsageError
from autoclip.records import restored
from autoclip.traces.columns import Selection
from autoclip.traces.notes import counted
from autoclip.traces.scalars import ScalarLog, flattened
from autoclip.traces.text import lines, raw_blocks

OWN_KEYS = {"step", "total_norm", "threshold", "phase"}
"""Keys in every line of our `metrics.jsonl`; other logs hardly ever have all of them."""

_DECODER = json.JSONDecoder()
_OWN_DECODER = json.JSONDecoder(object_hook=restored)


def parsed(text: str, decoder: json.JSONDecoder = _DECODER) -> Any:
    """The JSON value of a text, NaN and Infinity allowed; None if it is not JSON, or is null."""
    text = text.strip(" \t\r\n")  # JSON allows these around a value
    try:
        value, end = decoder.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if end == len(text) else None


def row_of(text: str, decoder: json.JSONDecoder = _DECODER) -> Mapping[str, Any] | None:
    """The row in a line; None if the line is not an object."""
    row = parsed(text, decoder)
    return flattened(row) if isinstance(row, dict) else None


def _objects(block: bytes, decoder: json.JSONDecoder) -> list[dict[str, Any]] | None:
    """The objects of lines that hold one each, parsed together, which is quicker; None if one of them does not."""
    block = block.replace(b"\r\n", b"\n")
    count = block.count(b"\n")
    if not block.startswith(b"{") or not block.endswith(b"}\n") or block.count(b"}\n{") != count - 1:
        return None
    joined = block[:-1].replace(b"\n", b",").decode(errors="replace")
    found = parsed(f"[{joined}]", decoder)
    return found if found is not None and len(found) == count else None


def first_row(path: Path) -> tuple[Mapping[str, Any], bool]:
    """The first line's object, empty if it is not an object, and True if it is the only line.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        first, *others = islice(lines(path), 2)
    except (UsageError, ValueError):
        return {}, True
    return row_of(first) or {}, not others


def read_jsonl(path: Path, selection: Selection) -> ScalarLog:
    """Read a file of JSON lines; keys of nested objects are joined by dots.

    Raises:
        OSError: the file cannot be read.
        UsageError: no line is a JSON object.
    """
    is_own = first_row(path)[0].keys() >= OWN_KEYS
    decoder = _OWN_DECODER if is_own else _DECODER
    log = ScalarLog(selection, str(path), "a metrics.jsonl of autoclip" if is_own else "JSON lines")
    count = objects = 0
    strange: list[int] = []
    torn = False
    for block in raw_blocks(path):
        if found := _objects(block, decoder):
            log.add_rows(found)
            count, objects = count + len(found), objects + len(found)
            continue
        for line in BytesIO(block):
            count += 1
            if (row := row_of(line.decode(errors="replace"), decoder)) is not None:
                log.add_row(row)
                objects += 1
            elif not line.endswith(b"\n"):
                torn = True
            elif line.strip():
                strange.append(count)
    if not objects:
        raise UsageError(f"{path} has no line that is a JSON object" if count else f"{path} is empty")
    if torn:
        log.notes.append("the last line is torn and left out")
    if strange:
        first = f"the first is line {strange[0]}"
        log.notes.append(f"{counted(len(strange), 'line')} left out: no JSON object ({first})")
    return log
