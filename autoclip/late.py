"""Steps without a host wait: the device clips, and the clipper learns at the next step, when the norms have arrived."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from struct import pack, unpack
from typing import Any

import torch
from torch import Tensor

from autoclip.gradients import fast_norms, multiply_, multiply_each_
from autoclip.host_copy import HostCopy, on_device
from autoclip.policies import Policy

LARGEST_FLOAT32 = torch.finfo(torch.float32).max


def why_wait(policy: Policy, mode: str, response: str, on_nonfinite: str) -> str | None:
    """Why a clipper with these choices needs the norm of a step in that step; None: it does not."""
    later = policy.clone()
    later.observe(1.0)  # some count only their first norm
    if later.inclusive:
        return f"{type(policy).__name__} counts the norm of a step before it sets the threshold of that step"
    if mode != "norm":
        return f"mode={mode!r} is not done without a look at the norm"
    if response != "scale":
        return f"response={response!r} decides by the norm of the step"
    if on_nonfinite == "raise":
        return "on_nonfinite='raise' has to see the norm before the optimizer's step"
    return None


class Layout:
    """Which gradients belong to which group, in the form that the device needs.

    Args:
        members: group's name -> positions of its parameters among the gradients.
        like: a tensor of the device.
    """

    def __init__(self, members: Mapping[str, Sequence[int]], like: Tensor) -> None:
        self.members = members
        self.device = like.device
        self.is_identity = all(list(own) == [place] for place, own in enumerate(members.values()))
        self.is_one = len(members) == 1
        if self.is_one or self.is_identity:
            return
        group_of = [0] * sum(len(own) for own in members.values())
        for group, own in enumerate(members.values()):
            for place in own:
                group_of[place] = group
        self._group_of = on_device(group_of, like, torch.int64)
        self._places = [on_device(list(own), like, torch.int64) for own in members.values()]

    def norms(self, each: Tensor, total: Tensor, order: float) -> Tensor:
        """Norm of each group, shape (groups,), from those of the gradients and of all together."""
        if self.is_one:
            return total.reshape(1)
        if self.is_identity:
            return each
        return torch.stack([torch.linalg.vector_norm(each.index_select(0, own), order) for own in self._places])

    def multiply_(self, gradients: Sequence[Tensor], factors: Tensor) -> None:
        """Multiply every gradient by the factor of its group, in place."""
        if self.is_one:
            multiply_(gradients, factors[0])
        else:
            multiply_each_(gradients, factors if self.is_identity else factors.index_select(0, self._group_of))


class Limits:
    """The thresholds of a step, for the device.

    The host compares norms, which are float32, with thresholds in float64. The device compares with the threshold
    rounded down to the next float32, so that both find the same.

    Args:
        thresholds: of each group; inf: none.
        like: a tensor of the device.
    """

    def __init__(self, thresholds: Sequence[float], like: Tensor) -> None:
        self.any = min(thresholds) < inf
        self._values: Any = thresholds[0]
        self._compared: Any = rounded_down(thresholds[0])
        if len(thresholds) > 1:
            numbers = on_device([*thresholds, *map(rounded_down, thresholds)], like, torch.float64)
            self._values, self._compared = numbers.chunk(2)

    def factors(self, norms: Tensor) -> Tensor:
        """Factor of each group, shape (groups,): NaN for a NaN norm, 0 for an infinite one, 1 without a limit.

        `torch.where` would do, but copies a number from the host to the device, and waits.
        """
        wide, values, compared = norms.dtype is torch.float64, self._values, self._compared
        compared = values if wide else compared
        if isinstance(values, Tensor):
            added = (1e-3 * values).clamp(max=1e-6).to(norms.dtype)
            values, compared = values.to(norms.dtype), compared.to(norms.dtype)
            kept = (norms <= compared).logical_or_(values == inf)
        else:
            added = min(1e-6, 1e-3 * values)
            kept = norms <= compared
        factors: Tensor = ((norms + added).reciprocal() * values).clamp(max=1.0)  # the reciprocal may be infinite
        return factors.masked_fill_(kept, 1.0)


class HeldLimits(Limits):
    """Thresholds in device memory that stays in place, to be written between the replays of a graph.

    Args:
        groups: their number.
        like: a tensor of the device.
    """

    def __init__(self, groups: int, like: Tensor) -> None:
        self.any = True
        # Made before a capture: what is made within one may lie where the graph has had something else before.
        self._held = torch.full((2 * groups,), inf, dtype=torch.float64, device=like.device)
        self._values, self._compared = self._held.chunk(2)

    def write(self, thresholds: Sequence[float]) -> None:
        """Set the thresholds of the next replay."""
        self._held.copy_(on_device([*thresholds, *map(rounded_down, thresholds)], self._held), non_blocking=True)


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


@dataclass(frozen=True, slots=True)
class OnDevice:
    """What the device did in a step.

    Attributes:
        names: of the parameters that have a gradient.
        members: group's name -> positions of its parameters among the names.
        total: norm of all gradients together before clipping, 0-d.
        numbers: what the host will read: the total, the factor of the first group, whether a scaler found an overflow,
            the norm of each group if there are several, and that of each gradient.
        scaled: the gradients carried the scale of a GradScaler.
    """

    names: list[str]
    members: Mapping[str, Sequence[int]]
    total: Tensor
    numbers: Tensor
    scaled: bool


def clip_on_device(
    gradients: Mapping[str, Tensor],
    layout: Layout,
    limits: Limits,
    order: float,
    *,
    scale: Tensor | float | None = None,
    overflow: Tensor | None = None,
) -> OnDevice:
    """Scale the gradients of each group down to its limit, without a look at their norms from the host.

        factor = c / (norm + min(1e-6, c / 1000)) where norm > c, else 1

    Norms are taken in one pass in float32 (float64 for float64 gradients). Unlike in a step that waits, finite
    gradients whose squares overflow measure as infinite, and those whose squares underflow as too small. Gradients that
    carry a scale and are not finite are left as they are.

    Args:
        gradients: by parameter name, all on one device.
        layout: of their groups.
        limits: c of each group; inf: none.
        order: of the norm.
        scale: that the gradients still carry; the norms are those without it.
        overflow: one element: not 0 if a scaler leaves the step out; None: there is no scaler.
    """
    each, _ = fast_norms(gradients, order)
    total = torch.linalg.vector_norm(each, order)
    if scale is not None:
        each, total = each / scale, total / scale
    norms = layout.norms(each, total, order)
    if limits.any:
        factors = limits.factors(norms)
        if scale is not None:
            factors = factors.masked_fill((total < inf).logical_not(), 1.0)
        layout.multiply_(list(gradients.values()), factors)
        factor = factors[0]
    else:
        factor = total.new_ones(())
    found = total.new_zeros(()) if overflow is None else overflow.reshape(()).to(total.dtype)
    numbers = [torch.stack([total, factor, found]), *([] if layout.is_one else [norms]), each]
    return OnDevice(list(gradients), layout.members, total, torch.cat(numbers), scaled=scale is not None)


def not_finite(total: Tensor) -> Tensor:
    """1 if a norm (0-d) is not finite, else 0; float32, as `found_inf` has to be."""
    return (total < inf).logical_not().float()


@dataclass(frozen=True, slots=True)
class LateStep:
    """A clipped step whose numbers have not arrived yet, and which is learned from when they have.

    Attributes:
        done: by the device.
        numbers: that are on their way.
        loss: reads the loss of the step.
    """

    done: OnDevice
    numbers: HostCopy
    loss: Callable[[], float | None]

    def arrive(self) -> tuple[dict[str, float], float, float] | None:
        """Norm of each group, norm of all, and the factor of the first; waits. None: a scaler left the step out."""
        count = len(self.done.members)
        total, factor, overflow = self.numbers.read(0, 3)
        if overflow or (self.done.scaled and not isfinite(total)):
            return None
        values = self.numbers.read(3, 3 + count) if count > 1 else [total]
        return dict(zip(self.done.members, values, strict=True)), total, factor

    @property
    def each(self) -> Tensor:
        """Norm of each gradient before clipping, shape (n,), on the host."""
        return self.numbers.tensor()[-len(self.done.names) :]


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """The device's part of a step, in a CUDA graph.

    Attributes:
        done: by each replay, in the same memory.
        limits: of the next replay.
        loss: begins to copy the loss of a replay to the host.
    """

    done: OnDevice
    limits: HeldLimits
    loss: Callable[[], Callable[[], float | None]]

    def replay(self, graph: Any, thresholds: Sequence[float]) -> LateStep:
        """Replay the graph at these thresholds."""
        self.limits.write(thresholds)
        graph.replay()
        return LateStep(self.done, HostCopy(self.done.numbers), self.loss())
