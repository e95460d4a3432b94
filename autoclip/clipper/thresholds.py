"""The thresholds of a step on the device."""

from collections.abc import Mapping, Sequence
from math import inf
from struct import pack, unpack

import torch
from torch import Tensor

from autoclip.gradients import multiply_, multiply_each_
from autoclip.gradients.host import on_device

LARGEST_FLOAT32 = torch.finfo(torch.float32).max


class Thresholds:
    """The groups of a step on the device, and a buffer for their thresholds, which a CUDA graph can keep.

    The host compares norms, which are float32, with thresholds in float64. The device compares with the threshold
    rounded down to the next float32, so that both find the same.

    Args:
        members: group's name -> positions of its parameters among the gradients.
        like: a tensor of the device.
    """

    def __init__(self, members: Mapping[str, Sequence[int]], like: Tensor) -> None:
        self.members = members
        self.device = like.device
        self._buffer = torch.full((2 * len(members),), inf, dtype=torch.float64, device=like.device)
        self._is_one = len(members) == 1
        self._is_each = all(list(own) == [place] for place, own in enumerate(members.values()))
        if not (self._is_one or self._is_each):
            group_of = {place: group for group, own in enumerate(members.values()) for place in own}
            self._group_of = on_device([group_of[place] for place in sorted(group_of)], like, torch.int64)
            self._places = [on_device(list(own), like, torch.int64) for own in members.values()]

    def write(self, thresholds: Sequence[float]) -> None:
        """Set the threshold of each group; inf: none."""
        numbers = [*thresholds, *map(rounded_down, thresholds)]
        self._buffer.copy_(on_device(numbers, self._buffer), non_blocking=True)

    def norms(self, each: Tensor, total: Tensor, order: float) -> Tensor:
        """Norm of each group, shape (groups,), from those of the gradients and of all together."""
        if self._is_one:
            return total.reshape(1)
        if self._is_each:
            return each
        return torch.stack([torch.linalg.vector_norm(each.index_select(0, own), order) for own in self._places])

    def factors(self, norms: Tensor) -> Tensor:
        """Factor of each group, shape (groups,): NaN for a NaN norm, 0 for an infinite one, 1 without a threshold.

        `torch.where` would do, but copies a number from the host to the device, and waits.
        """
        thresholds, below = self._buffer.chunk(2)
        compared = (thresholds if norms.dtype is torch.float64 else below).to(norms.dtype)
        added = (1e-3 * thresholds).clamp(max=1e-6).to(norms.dtype)
        thresholds = thresholds.to(norms.dtype)
        kept = (norms <= compared).logical_or_(thresholds == inf)
        # The reciprocal may be infinite.
        factors: Tensor = ((norms + added).reciprocal() * thresholds).clamp(max=1.0)
        return factors.masked_fill_(kept, 1.0)

    def multiply_(self, gradients: Sequence[Tensor], factors: Tensor) -> None:
        """Multiply every gradient by the factor of its group, in place."""
        if self._is_one:
            multiply_(gradients, factors[0])
        else:
            multiply_each_(gradients, factors if self._is_each else factors.index_select(0, self._group_of))


def rounded_down(number: float) -> float:
    """The largest float32 that is not above a number >= 0."""
    if number in (0.0, inf):
        return number
    if number > LARGEST_FLOAT32:
        return LARGEST_FLOAT32
    rounded: float = unpack("f", pack("f", number))[0]
    if rounded <= number:
        return rounded
    below: float = unpack("f", pack("I", unpack("I", pack("f", number))[0] - 1))[0]
    return below
