"""Checkpoints that survive a kill at any moment: written aside, checked on reading, the last two kept."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from autoclip.errors import RunError
from autoclip.run_directory import written_aside
from autoclip.spikes.event import FOLDER

LATEST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write the state as the directory's latest checkpoint and keep the one before.

    The file gets its name only when it is complete and on the disk. At every moment one of the two is there.
    """
    latest = directory / LATEST
    with written_aside(latest) as file:
        watched = _Watched(file)
        try:
            torch.save({"sha256": fingerprint(state), "state": state}, watched)  # type: ignore[arg-type]
        except RuntimeError:
            if watched.error is None:
                raise
            raise watched.error from None  # torch's own error gives a position in the file instead
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
    """State of the latest whole checkpoint with at most so many steps, of the run's or those kept at its spikes."""
    states = [state for _, state in _states(directory) if state["tally"]["steps"] <= step]
    return max(states, key=lambda state: int(state["tally"]["steps"]), default=None)


def keep_checkpoint(directory: Path, step: int, path: Path) -> Path | None:
    """Keep the latest whole checkpoint with at most so many steps under another name; None: there is none."""
    found = [(state["tally"]["steps"], file) for file, state in _states(directory) if state["tally"]["steps"] <= step]
    if not found:
        return None
    path.unlink(missing_ok=True)
    path.hardlink_to(max(found)[1])
    return path


def _states(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every whole checkpoint of a run, and its state."""
    for path in [directory / LATEST, directory / PREVIOUS, *sorted(directory.glob(f"{FOLDER}/*.pt"))]:
        if path.exists():
            with suppress(Exception):  # a damaged file can raise anything while it is unpickled
                yield path, _whole(path)


def _whole(path: Path) -> dict[str, Any]:
    """The state in a checkpoint; a damaged one raises, by whatever torch finds wrong."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Any] = content["state"]
    if fingerprint(state) != content["sha256"]:
        raise ValueError("its checksum is wrong")
    return state


class _Watched:
    """A file for `torch.save` that remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def remove_checkpoints(directory: Path) -> None:
    """Delete the checkpoints of a run that is finished."""
    for name in (LATEST, PREVIOUS):
        (directory / name).unlink(missing_ok=True)


def fingerprint(value: Any) -> str:
    """sha256 over nested dicts, lists, tensors and plain values."""
    digest = hashlib.sha256()

    def feed(item: Any) -> None:
        if isinstance(item, Tensor):
            dense = item.detach().cpu().contiguous()
            digest.update(f"{dense.dtype}{tuple(dense.shape)}".encode())
            digest.update(dense.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(item, dict):
            for key, entry in item.items():
                feed(key)
                feed(entry)
        elif isinstance(item, list | tuple):
            digest.update(f"[{len(item)}".encode())
            for entry in item:
                feed(entry)
        else:
            digest.update(f"{type(item).__name__}:{item!r};".encode())

    feed(value)
    return digest.hexdigest()


def random_state() -> dict[str, Any]:
    """State of the global random generators of torch, NumPy and Python, as plain values and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the global random generators back to a `random_state()`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
