"""Checkpoints that all ranks write together, and that any number of ranks can read."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_saver

KEPT = 2
"""So many checkpoints are left, the latest and one to fall back on."""


def save(directory: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the checkpoint of a step; all ranks call it together.

    It has its name only when every rank's part is on the disk, so that a kill at any moment leaves the one before.

    Args:
        directory: of the run's checkpoints, on a disk that all ranks see.
        step: number of steps done.
        state: of which tensors may be sharded, and objects may have a `state_dict()`.
    """
    partial = directory / f"partial-{step:08d}"
    if dist.get_rank() == 0:
        for left in directory.glob("partial-*"):  # by a kill
            shutil.rmtree(left)
    dist.barrier()
    state_dict_saver.save(dict(state), checkpoint_id=partial)
    if dist.get_rank() == 0:
        partial.rename(directory / f"step-{step:08d}")
        _to_disk(directory)
        for old in _whole(directory)[:-KEPT]:
            shutil.rmtree(old)


def latest(directory: Path) -> Path | None:
    """The latest checkpoint that is whole; None: there is none."""
    return next(reversed(_whole(directory)), None)


def _whole(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*"))


def _to_disk(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
