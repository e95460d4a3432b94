"""Hugging Face's `trainer_state.json` files: sort the states of one training from those of another."""

import re
from array import array
from collections.abc import Iterable
from functools import cache
from math import inf, isnan
from pathlib import Path
from typing import NamedTuple

from autoclip.traces.columns import Selection
from autoclip.traces.json_file import json_value
from autoclip.traces.scalars import number

TRAINER_STATE = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class State(NamedTuple):
    """The data that distinguish the states of an output directory.

    Attributes:
        step: the `global_step`, -1 if there is none.
        checkpoint: the step in the directory's name; inf: the file is of the whole run.
        path: of the file.
        norms: a hash of each row with a norm: its step and its norms.
    """

    step: float
    checkpoint: float
    path: Path
    norms: "array[int]"


def is_state(path: Path) -> bool:
    """Return True if the file has the name of a state, packed or not."""
    return path.name.removesuffix(".gz") == TRAINER_STATE


def output_directory(path: Path) -> Path:
    """The directory of the training: a state lies there, or in its directory `checkpoint-<step>`."""
    return path.parent if _checkpoint(path) == inf else path.parent.parent


def read_state(path: Path, selection: Selection) -> State:
    """Read one file.

    Raises:
        OSError: the file cannot be read.
        UsageError: it is not a whole JSON file.
    """
    state = json_value(path)
    state = state if isinstance(state, dict) else {}
    step, history = number(state.get("global_step")), state.get("log_history")
    is_norm = cache(selection.is_norm)
    norms = array("q")
    for row in history if isinstance(history, list) else []:
        if isinstance(row, dict) and any(map(is_norm, row)):
            told = [(name, value) for name, value in row.items() if name == "step" or is_norm(name)]
            norms.append(hash(repr(told)))  # NaN does not equal NaN, but its text does
    return State(-1.0 if step is None or isnan(step) else step, _checkpoint(path), path, norms)


def furthest(states: Iterable[State]) -> list[Path]:
    """The furthest state of each training; two states are of one training if one's norms begin the other's."""
    kept: list[State] = []
    for state in sorted(states, key=lambda state: (state.step, state.checkpoint), reverse=True):
        if not any(other.norms[: len(state.norms)] == state.norms for other in kept):
            kept.append(state)
    return [state.path for state in kept]


def _checkpoint(path: Path) -> float:
    named = _CHECKPOINT.fullmatch(path.parent.name)
    return float(named[1]) if named else inf
