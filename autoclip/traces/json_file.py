"""JSON files that hold their rows in one list: Hugging Face's `trainer_state.json`, or a bare list of objects."""

import json
import re
from collections.abc import Iterable
from math import inf, isnan
from pathlib import Path
from typing import Any

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection
from autoclip.traces.notes import counted
from autoclip.traces.rows import RowLog, flattened
from autoclip.traces.scalars import ScalarLog, number

TRAINER_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def states_by_run(paths: Iterable[Path]) -> list[list[Path]]:
    """The `trainer_state.json` of each run; a later one holds the history from the run's first step.

    A run is an output directory: its own file, and those in its `checkpoint-<step>` directories.
    """
    runs: dict[Path, list[Path]] = {}
    for path in paths:
        runs.setdefault(path.parent if _checkpoint(path) == inf else path.parent.parent, []).append(path)
    return list(runs.values())


def reached(path: Path) -> tuple[float, float]:
    """How far a `trainer_state.json` goes: its `global_step`, then the step in its directory's name.

    Raises:
        OSError: the file cannot be read.
        UsageError: it is no such file.
    """
    content = _content(path)
    step = number(content.get("global_step")) if isinstance(content, dict) else None
    return -1.0 if step is None or isnan(step) else step, _checkpoint(path)


def _checkpoint(path: Path) -> float:
    """The step of the checkpoint that a file belongs to; inf: the whole run."""
    named = _CHECKPOINT.fullmatch(path.parent.name)
    return float(named[1]) if named else inf


def _content(path: Path) -> Any:
    """The JSON value in a file that holds a log."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no whole JSON file ({error})") from None
    if not isinstance(content.get("log_history") if isinstance(content, dict) else content, list):
        raise UsageError(
            f"{path} holds no log: neither `log_history`, as a trainer_state.json has, nor a list of objects"
        )
    return content


def read_json_rows(path: Path, selection: Selection) -> ScalarLog:
    """Read the rows of `log_history`, or of a file that is a list; NaN and Infinity are numbers there.

    Raises:
        OSError: the file cannot be read.
        UsageError: it is no such file.
    """
    content = _content(path)
    history = content["log_history"] if isinstance(content, dict) else content
    rows = RowLog(selection, str(path))
    strange = 0
    for row in history:
        if isinstance(row, dict):
            rows.add(flattened(row))
        else:
            strange += 1
    log = rows.finished()
    if strange:
        log.notes.append(
            f"{counted(strange, 'entry')} of the log left out: no JSON object".replace("entrys", "entries")
        )
    return log
