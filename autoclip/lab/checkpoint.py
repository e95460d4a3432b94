"""Checkpoints that survive a kill at any moment: written aside, checked on reading, the last two kept."""

import random
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch

from autoclip.errors import RunError
from autoclip.run_directory import SPIKES, written_aside

LATEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write the state as the directory's latest checkpoint and keep the one before.

    The file gets its name only when it is complete and on the disk. At every moment one of the two is there.
    """
    latest = directory / LATEST
    content = BytesIO()  # torch.save into the file would hide why a disk refuses
    torch.save(state, content)
    with written_aside(latest) as file:
        file.write(content.getbuffer())
        if latest.exists():
            latest.replace(directory / PREVIOUS)


def load_checkpoint(directory: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Read the latest checkpoint that is whole.

    Returns:
        Its state (None if there is no file), and a line for each damaged file that was skipped.

    Raises:
        RunError: there are files, but all are damaged.
    """
    damaged: list[str] = []
    for name in (LATEST, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        try:
            state = _whole(path)
        except Exception as error:  # noqa: BLE001 - a damaged file can raise anything while it is unpickled
            # Here torch's own text advises to load the file unsafely.
            refused = "torch.load(weights_only=True) refuses it"
            reason = refused if isinstance(error, UnpicklingError) else str(error).partition("\n")[0]
            damaged.append(f"{path} is damaged and was passed over ({reason or type(error).__name__})")
            continue
        return state, damaged
    if damaged:
        raise RunError(f"no checkpoint can be read: {'; '.join(damaged)}; choose another --output-dir to start over")
    return None, []


def state_before(directory: Path, step: int) -> dict[str, Any] | None:
    """The newest undamaged state that has taken at most this many steps; checkpoints kept at spikes count too."""
    states = [state for _, state in _states(directory) if state["tally"]["steps"] <= step]
    return max(states, key=lambda state: int(state["tally"]["steps"]), default=None)


def keep_checkpoint(directory: Path, step: int, path: Path) -> Path | None:
    """Link the newest undamaged checkpoint of at most this many steps to a path; None: there is none."""
    if path.exists():  # kept before the run was killed
        return path
    found = [(state["tally"]["steps"], file) for file, state in _states(directory) if state["tally"]["steps"] <= step]
    if not found:
        return None
    path.hardlink_to(max(found)[1])
    return path


def _states(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every whole checkpoint of a run, and its state."""
    for path in [directory / LATEST, directory / PREVIOUS, *sorted(directory.glob(f"{SPIKES}/*.pt"))]:
        if path.exists():
            with suppress(Exception):  # a damaged file can raise anything while it is unpickled
                yield path, _whole(path)


def _whole(path: Path) -> dict[str, Any]:
    """The state in a checkpoint; a damaged one raises, by whatever is found wrong."""
    with ZipFile(path) as archive:  # torch.load does not look at its checksums
        if archive.testzip():
            raise ValueError("its checksum is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def remove_checkpoints(directory: Path) -> None:
    """Delete the checkpoints of a run that is finished."""
    for name in (LATEST, PREVIOUS):
        (directory / name).unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """State of the global random generators of torch, NumPy and Python, as plain values and tensors."""
    kind, keys, *others = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, np.asarray(keys).tolist(), *others),
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the global random generators back to a `random_state()`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
