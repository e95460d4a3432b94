"""The loss of an optimizer step: the mean over its micro-batches and over the ranks that train together."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor

ProcessGroup = Any  # of torch.distributed, which not every build of torch has
"""Ranks that train together."""


class StepLoss:
    """Mean of losses over micro-batches and ranks; the ranks' part is under way until it is read.

    Args:
        losses: of the micro-batches, in any number; without one there is no loss, and no rank may have one.
        group: ranks to average over; None: this one alone.
        device: for the collective, where the losses are no tensors.
    """

    def __init__(self, losses: Sequence[float | Tensor], group: ProcessGroup | None, device: torch.device) -> None:
        self._mean: float | Tensor | None = None
        self._ranks = 1
        self._work: Any = None
        if not losses:
            return
        values = [_detached(loss) for loss in losses]
        self._mean = values[0] if len(values) == 1 else sum(values) / len(values)
        if group is not None:
            self._ranks = torch.distributed.get_world_size(group)
            self._mean = torch.as_tensor(self._mean, dtype=torch.float64, device=device).clone()
            self._work = torch.distributed.all_reduce(self._mean, group=group, async_op=True)

    def read(self) -> float | None:
        """The mean as a float of the host; None: no loss was given."""
        if self._work is not None:
            self._work.wait()
        return None if self._mean is None else float(self._mean) / self._ranks  # host read


def process_group(choice: ProcessGroup | Literal["world"] | None) -> ProcessGroup | None:
    """The group that a choice means now: "world" is every rank, or None where nothing is distributed."""
    if choice != "world":
        return choice
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.group.WORLD if torch.distributed.get_world_size() > 1 else None


def _detached(loss: float | Tensor) -> float | Tensor:
    if not isinstance(loss, Tensor):
        return float(loss)
    if loss.numel() != 1:
        raise ValueError(f"loss must be one number, such as the mean over the batch, got shape {tuple(loss.shape)}")
    value = loss.detach().reshape(())
    return value.full_tensor() if hasattr(value, "full_tensor") else value
