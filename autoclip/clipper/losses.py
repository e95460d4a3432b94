"""The loss of an optimizer step: the mean over its micro-batches and over the ranks that train together."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor

from autoclip.gradients.host import PinnedCopy, on_device
from autoclip.gradients.sharded import to_scalar

Number = float | Tensor
"""A number of the host, or a tensor of one."""
ProcessGroup = Any  # of torch.distributed, which not every build of torch has
"""Ranks that train together."""


class ReportedLosses:
    """The losses reported since the last step: their number, and their sum, which stays on its device."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: float | Tensor = 0.0
        self._taken: tuple[int, float | Tensor] = (0, 0.0)

    def add(self, loss: Number) -> None:
        """Take the loss of a micro-batch.

        Raises:
            ValueError: it is not one number.
        """
        value = checked_loss(loss)
        if isinstance(value, Tensor):
            # In half precision the sum of many losses would stand still, or overflow.
            value = value.to(torch.float32 if value.device.type == "mps" else torch.float64, copy=True)
        self._sum = value if self.count == 0 else self._sum + value
        self.count += 1

    def mean(self) -> Number | None:
        """Mean of the losses; None without a loss."""
        return self._sum / self.count if self.count > 1 else self._sum if self.count else None

    def of_step(
        self, loss: Number | None, ranks: ProcessGroup | Literal["world"] | None, parameter: Tensor
    ) -> "StepLoss":
        """The loss of the step: the one given, else the mean of those reported, which are then forgotten."""
        self._taken = self.count, self._sum
        if self.count:
            loss = self.mean() if loss is None else loss
            self.forget()
        # With or without a loss, a process group of the user's own is checked for this rank.
        nothing = loss is None and (ranks is None or ranks == "world")
        return NO_LOSS if nothing else StepLoss(loss, ranks, parameter)

    def take_back(self) -> None:
        """Keep the losses that `of_step` has taken, for it was no new step."""
        self.count, self._sum = self._taken

    def forget(self) -> None:
        """Forget them."""
        self.count, self._sum = 0, 0.0


class StepLoss:
    """Mean of a loss over ranks, in flight until it is read.

    Args:
        loss: of this rank; None: no rank has one.
        ranks: to average over, see `process_group`.
        parameter: on whose device the ranks meet.

    Raises:
        ValueError: this rank is not among the ranks, or the loss is not one number.
    """

    def __init__(
        self,
        loss: Number | None,
        ranks: ProcessGroup | Literal["world"] | None,
        parameter: Tensor,
    ) -> None:
        own = None if loss is None else checked_loss(loss)
        self._mean = own
        self._ranks = 1
        self._work: Any = None
        group = process_group(ranks)
        if own is not None and group is not None:
            self._ranks = torch.distributed.get_world_size(group)
            if isinstance(own, Tensor):
                total = own.to(parameter.device, torch.float64, copy=True)
            else:
                total = on_device([own], parameter, torch.float64)[0]
            self._mean = total
            self._work = torch.distributed.all_reduce(total, group=group, async_op=True)

    def read(self) -> float | None:
        """The mean as a float of the host; None: no loss was given."""
        if self._work is not None:
            self._work.wait()
        return None if self._mean is None else float(self._mean) / self._ranks  # host read

    def join(self) -> None:
        """Let later work on the device come after the collective."""
        if self._work is not None:
            self._work.wait()

    def send(self) -> Callable[[], float | None]:
        """Begin to copy the mean to the host; returns a function that reads it."""
        mean, ranks = self._mean, self._ranks
        if not isinstance(mean, Tensor):
            return lambda: mean
        copy = PinnedCopy(mean.reshape(1))
        return lambda: copy.read()[0] / ranks


def process_group(choice: ProcessGroup | Literal["world"] | None) -> ProcessGroup | None:
    """The group that a choice means now: "world" is every rank, or None if nothing is distributed."""
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


def checked_loss(loss: Number) -> Number:
    """The loss as a float or a 0-d tensor without a graph.

    Raises:
        TypeError: it is no number.
        ValueError: it is not one number.
    """
    if isinstance(loss, str | bytes):
        raise TypeError(f"loss must be a number or a tensor of one, got the text {loss!r:.100}: give float(...) of it")
    if not isinstance(loss, Tensor):
        try:
            return float(loss)
        except (TypeError, ValueError):
            raise TypeError(f"loss must be a number or a tensor of one, got {loss!r:.100}") from None
    if loss.numel() != 1:
        raise ValueError(f"loss must be one number, such as the mean over the batch, got shape {tuple(loss.shape)}")
    return to_scalar(loss)


NO_LOSS = StepLoss(None, None, torch.empty(0))
