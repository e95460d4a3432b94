"""JSON files that hold their rows in one list: Hugging Face's `trainer_state.json`, or a bare list of objects."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from autoclip.errors import UsageError
from autoclip.traces.columns import Selection
from autoclip.traces.notes import counted
from autoclip.traces.rows import RowLog
from autoclip.traces.scalars import ScalarLog

TRAINER_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def latest_states(paths: Iterable[Path]) -> list[Path]:
    """Of every run, the `trainer_state.json` that goes furthest: each holds the history from the run's first step.

    A run is an output directory: its own file, and those in its `checkpoint-<step>` directories.
    """
    runs: dict[Path, list[tuple[float, Path]]] = {}
    for path in paths:
        checkpoint = _CHECKPOINT.fullmatch(path.parent.name)
        run = path.parent.parent if checkpoint else path.parent
        runs.setdefault(run, []).append((float(checkpoint[1]) if checkpoint else float("inf"), path))
    return [max(states)[1] for states in runs.values()]


def read_json_rows(path: Path, selection: Selection) -> ScalarLog:
    """Read the rows of `log_history`, or of a file that is a list; NaN and Infinity are numbers there.

    Raises:
        OSError: the file cannot be read.
        UsageError: it is no such file.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no whole JSON file ({error})") from None
    history = content.get("log_history") if isinstance(content, dict) else content
    if not isinstance(history, list):
        raise UsageError(
            f"{path} holds no log: neither `log_history`, as a trainer_state.json has, nor a list of objects"
        )
    rows = RowLog(selection, str(path))
    strange = 0
    for row in history:
        if isinstance(row, dict):
            rows.add(row)
        else:
            strange += 1
    log = rows.finished()
    if strange:
        log.notes.append(
            f"{counted(strange, 'entry')} of the log left out: no JSON object".replace("entrys", "entries")
        )
    return log
