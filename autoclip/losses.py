"""The loss of an optimizer step: the mean over its micro-batches and over the ranks that train together."""

from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor

from autoclip.gradients.sharded import whole_number

ProcessGroup = Any  # of torch.distributed, which not every build of torch has
"""Ranks that train together."""


class ReportedLosses:
    """The losses that were reported since the step before: their number and sum, which stays on its device."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: float | Tensor = 0.0

    def add(self, loss: float | Tensor) -> None:
        """Take the loss of a micro-batch.

        Raises:
            ValueError: it is not one number.
        """
        value = checked_loss(loss)
        if self.count == 0:
            self._sum = value.clone() if isinstance(value, Tensor) else value
        else:
            self._sum = self._sum + value
        self.count += 1

    def mean(self) -> float | Tensor | None:
        """Mean of the losses; None without one."""
        return self._sum / self.count if self.count > 1 else self._sum if self.count else None

    def forget(self) -> None:
        """Begin anew."""
        self.count, self._sum = 0, 0.0


class StepLoss:
    """Mean of a loss over ranks, under way until it is read.

    Args:
        loss: of this rank; None: there is none, and no rank may have one.
        group: ranks to average over; None: this one alone.
        device: for the collective, where the loss is no tensor.
    """

    def __init__(self, loss: float | Tensor | None, group: ProcessGroup | None, device: torch.device) -> None:
        self._mean: float | Tensor | None = None if loss is None else checked_loss(loss)
        self._ranks = 1
        self._work: Any = None
        if loss is not None and group is not None:
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
    if choice is None:
        return None
    if isinstance(choice, str):
        if choice != "world":
            raise ValueError(f"process_group must be 'world', None or a group of torch.distributed, got {choice!r}")
    elif torch.distributed.get_rank(choice) < 0:
        raise ValueError("this rank is not in the process_group: give each rank the group that it trains in, or None")
    else:
        return choice
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.group.WORLD if torch.distributed.get_world_size() > 1 else None


def checked_loss(loss: float | Tensor) -> float | Tensor:
    """The loss as a float or a 0-d tensor without a graph.

    Raises:
        ValueError: it is not one number.
    """
    if not isinstance(loss, Tensor):
        return float(loss)
    if loss.numel() != 1:
        raise ValueError(f"loss must be one number, such as the mean over the batch, got shape {tuple(loss.shape)}")
    return whole_number(loss)
