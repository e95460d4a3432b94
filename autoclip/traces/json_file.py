"""JSON files: Hugging Face's `trainer_state.json`, lists of rows or columns under any key, TensorBoard's downloads."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from autoclip.errors import UsageError
from autoclip.traces.columns import DOWNLOAD, NoNormError, Selection
from autoclip.traces.notes import counted
from autoclip.traces.scalars import DEEPEST, LONGEST_GROUP, ScalarLog, flattened, number
from autoclip.traces.text import content


def json_value(path: Path) -> Any:
    """The one JSON value of a file.

    Raises:
        OSError: the file cannot be read.
        UsageError: it holds no such value, or only a part of it.
    """
    try:
        return json.loads(content(path).decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a whole JSON file ({error})") from None


def _is_state(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("log_history"), list)


def rows_in(found: Any, selection: Selection) -> dict[str, list[Any]]:
    """The lists of rows in a JSON value, by the dotted keys of their places; only those with norms, if any have norms.

    Rows are a list of objects, one of TensorBoard's triples (wall time, step, value), or an object of equally long
    lists, a column each. The place of the value itself, and of a `log_history` in it, is empty.

    >>> rows_in({"name": "a", "log": {"step": [1, 2], "grad_norm": [0.5, 0.7]}}, Selection())
    {'log': [{'step': 1, 'grad_norm': 0.5}, {'step': 2, 'grad_norm': 0.7}]}
    """
    if _is_state(found):
        return {"": found["log_history"]}
    places: dict[str, list[Any]] = {"": found} if isinstance(found, list) else {}
    level = {"": found} if isinstance(found, dict) else {}
    for _ in range(DEEPEST):
        below: dict[str, Any] = {}
        for place, one in level.items():
            lists: dict[str, list[Any]] = {}
            for key, value in one.items():
                within = f"{place}.{key}" if place else key
                if isinstance(value, list) and value and not isinstance(value[0], dict | list):
                    lists[key] = value
                elif isinstance(value, list):
                    places[within] = value
                elif isinstance(value, dict) and len(within) <= LONGEST_GROUP:
                    below[within] = value
            places[place] = _columns(lists, selection)
        level = below
    is_norm = cache(selection.is_norm)
    filled = {place: rows for place, rows in places.items() if any(isinstance(row, dict) for row in rows)}
    with_norms = {
        place: rows
        for place, rows in filled.items()
        if any(any(map(is_norm, flattened(row))) for row in rows if isinstance(row, dict))
    }
    if filled or not isinstance(found, list):
        return with_norms or dict(sorted(filled.items(), key=lambda one: -len(one[1]))[:1])
    return {"": [dict(zip(DOWNLOAD, row, strict=True)) if _is_triple(row) else row for row in found]}


def _columns(lists: dict[str, list[Any]], selection: Selection) -> list[Any]:
    # Only lists as long as that of the norms have values at the same steps.
    lengths = [len(values) for name, values in lists.items() if selection.is_norm(name)] or map(len, lists.values())
    length = max(lengths, default=0)
    names = [name for name, values in lists.items() if len(values) == length]
    return [dict(zip(names, row, strict=True)) for row in zip(*(lists[name] for name in names), strict=True)]


def _is_triple(row: Any) -> bool:
    return isinstance(row, list) and len(row) == len(DOWNLOAD) and all(number(value) is not None for value in row)


def read_json(path: Path, selection: Selection) -> list[ScalarLog]:
    """Read the rows of `log_history`, or under other keys, a log for each; NaN and Infinity are numbers there.

    Raises:
        OSError: the file cannot be read.
        UsageError: it is not such a file.
    """
    found = json_value(path)
    places = rows_in(found, selection)
    form = "a trainer state of Transformers" if _is_state(found) else "JSON"
    if not places:
        raise NoNormError(
            f"{path} holds no log: neither `log_history`, as a trainer_state.json has, nor another list of objects, "
            "nor columns of norms"
        )
    return [_log(rows, selection, f"{path}: {place}" if place else str(path), form) for place, rows in places.items()]


def _log(history: list[Any], selection: Selection, source: str, form: str) -> ScalarLog:
    rows = [row for row in history if isinstance(row, dict)]
    log = ScalarLog(selection, source, form, DOWNLOAD if any([*row] == DOWNLOAD for row in rows) else ())
    for row in rows:
        log.add_row(flattened(row))
    if strange := len(history) - len(rows):
        log.notes.append(f"{counted(strange, 'entry')} of the log left out: no JSON object")
    return log
