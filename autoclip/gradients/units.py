"""Gradients compared with the weights that they change: unit-wise clipping, and the norm weighted by them."""

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from autoclip.gradients.norms import Norms, measure
from autoclip.gradients.refused import without_numbers
from autoclip.gradients.sharded import reduce_norms, sharded_over, to_local
from autoclip.gradients.shrink import own_memory_
from autoclip.gradients.source import Source, gradients_of, named_parameters

REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
LEAST_WEIGHT = 1e-3
"""Norm that a unit's weights count as at least, or weights that start at zero would never move."""
LEAST_RMS = 1e-5
"""RMS that a parameter counts with at least, as in ScaledAdam."""


@torch.no_grad()
def adaptive_grad_clip_(parameters: Source, clip_factor: float = 0.01, eps: float = LEAST_WEIGHT) -> Tensor:
    """Shrink, in place, the gradient of every unit to at most `clip_factor` times the norm of the unit's weights.

        limit = clip_factor * max(|w|, eps);   g <- g * limit / |g|   where |g| > limit

    A unit is a row of a matrix, a filter of a convolution (everything but the first dimension), or a whole tensor of
    one dimension or none. To leave out the last layer, as is usual, do not give its parameters.

    Args:
        parameters: a module, parameters, (name, parameter) pairs, parameter groups, or an optimizer.
        clip_factor: > 0, usually .01 to .16.
        eps: > 0, least norm that a unit's weights count with.

    Returns:
        The largest |g| / max(|w|, eps) of all units before clipping, 0-d.

    Raises:
        ValueError: `clip_factor` or `eps` is not above 0.
        TypeError: sparse, complex or integer gradients, or gradients of eight bits; the message names the parameter.

    Reference: Brock, De, Smith, Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization", 2021,
    arXiv 2102.06171, equation 3.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [9.0, 40.0]]))
    >>> weight.grad = torch.tensor([[7.0, 24.0], [5.0, 12.0]])
    >>> float(adaptive_grad_clip_([weight], clip_factor=0.5))
    5.0
    >>> weight.grad
    tensor([[ 0.7000,  2.4000],
            [ 5.0000, 12.0000]])
    """
    for name, value in (("clip_factor", clip_factor), ("eps", eps)):
        if not value > 0:
            raise ValueError(f"{name} must be > 0, got {value!r}")
    named = named_parameters(parameters)
    gradients = gradients_of(named)
    weights = [named[name] for name in gradients]
    norms = measure_units(gradients, named, eps)
    limit_units_(list(gradients.values()), weights, clip_factor, eps, wide=norms.total.dtype is torch.float64)
    return norms.total


def measure_units(
    gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor], eps: float = LEAST_WEIGHT
) -> Norms:
    """Largest |g| / max(|w|, eps) over the units of each parameter, and over all.

    Args:
        gradients: by parameter name.
        parameters: by name, at least those.
        eps: least norm of a unit's weights.

    Raises:
        TypeError: sparse, complex or integer gradients, or gradients of eight bits; the message names the parameter.
    """
    if not gradients:
        return Norms(torch.tensor(0.0), torch.zeros(0), 0.0)
    for name, gradient in gradients.items():
        if gradient.is_meta:
            raise without_numbers(gradients)
        if gradient.layout is not torch.strided or gradient.dtype not in REAL:
            found = gradient.dtype if gradient.layout is torch.strided else gradient.layout
            raise TypeError(
                f"unit-wise clipping needs dense, real gradients of at least 16 bits, got {found} for parameter "
                f"{name!r}: leave that parameter out, or clip by norm"
            )
    weights = [parameters[name] for name in gradients]
    each = _largest_ratios(list(gradients.values()), weights, eps)
    total = each.max()  # NaN where any is
    value = float(total)  # host read
    if not isfinite(value) and each.device.type != "mps":  # squares that overflow float32; no float64 on mps
        each = _largest_ratios(list(gradients.values()), weights, eps, wide=True)
        total = each.max()
        value = float(total)  # host read
    return Norms(total, each, value)


def measure_weighted(gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Norms:
    """Norm of each gradient times the RMS of its parameter, and of all together.

        total = sqrt(sum of (|g| * max(rms(w), 1e-5))^2)

    Args:
        gradients: by parameter name, as of `measure`.
        parameters: by name, at least those.

    Reference: ScaledAdam of icefall (`zipformer/optim.py`), which clips by this norm.
    """
    norms = measure(gradients)
    if not gradients:
        return norms
    weights = {name: parameters[name].detach() for name in gradients}
    sizes = norms.each.new_tensor([max(one.numel(), 1) for one in weights.values()])
    each = norms.each * (measure(weights).each.to(norms.each.device) / sizes.sqrt()).clamp(min=LEAST_RMS)
    if each.device.type != "mps":  # squares that overflow or underflow float32; no float64 on mps
        each = each.double()
    total = torch.linalg.vector_norm(each)
    return Norms(total, each, float(total))  # host read


def limit_units_(
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    factor: float,
    eps: float = LEAST_WEIGHT,
    wide: bool = False,
) -> None:
    """Shrink the gradient of every unit to at most `factor` times the norm of its weights, in place.

    Args:
        gradients: dense and real.
        weights: of each.
        factor: > 0.
        eps: least norm of a unit's weights.
        wide: the squares of the gradients overflow float32.
    """
    all_norms, all_limits = _unit_norms(gradients, wide), _unit_norms(weights, wide)
    parts = [to_local(gradient) for gradient in gradients]
    own_memory_(parts)
    for part, norms, weight_norms in zip(parts, all_norms, all_limits, strict=True):
        limits = factor * weight_norms.clamp(min=eps)
        part.mul_(torch.where(norms > limits, limits / norms, 1.0))


def _largest_ratios(gradients: Sequence[Tensor], weights: Sequence[Tensor], eps: float, wide: bool = False) -> Tensor:
    ratios = [
        (norms / weight_norms.clamp(min=eps)).amax() if norms.numel() else norms.new_zeros(())
        for norms, weight_norms in zip(_unit_norms(gradients, wide), _unit_norms(weights, wide), strict=True)
    ]
    return reduce_norms(gradients, torch.stack([ratio.to(ratios[0].device) for ratio in ratios]), inf)


def _unit_norms(tensors: Sequence[Tensor], wide: bool) -> list[Tensor]:
    """Norm of each unit at hand, in float32 (float64 for float64, or if wide), in a shape that broadcasts over them.

    Of DTensors those units are at hand of which this rank holds a part; each tensor's norms are of whole units.
    """
    norms = [_local_unit_norms(to_local(tensor), wide) for tensor in tensors]
    split: dict[str, tuple[Any, list[int]]] = {}
    for position, tensor in enumerate(tensors):
        for group, dimension in sharded_over(tensor):
            if tensor.ndim < 2 or dimension != 0:
                split.setdefault(group.group_name, (group, []))[1].append(position)
    for group, positions in split.values():
        for position, whole in zip(positions, _summed_squares([norms[at] for at in positions], group), strict=True):
            norms[position] = whole
    return norms


def _summed_squares(norms: Sequence[Tensor], group: Any) -> list[Tensor]:
    """Root of the sum of squares over the ranks of a group, of all in one collective."""
    squares = torch.cat([norm.double().flatten() for norm in norms]).square()
    torch.distributed.all_reduce(squares, group=group)
    parts = torch.split(squares.sqrt(), [norm.numel() for norm in norms])
    return [part.view_as(norm).to(norm.dtype) for part, norm in zip(parts, norms, strict=True)]


def _local_unit_norms(values: Any, wide: bool) -> Tensor:
    """Norm of each unit of a plain tensor.

    One number for a vector has one dimension still, or half-precision values would be multiplied by a rounded factor.
    """
    dtype = torch.float64 if wide or values.dtype is torch.float64 else torch.float32
    dims = tuple(range(1, values.ndim)) or None
    norms: Tensor = torch.linalg.vector_norm(values.detach(), dim=dims, keepdim=True, dtype=dtype)
    return norms
