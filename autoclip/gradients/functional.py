"""Drop-in replacements for torch's two clip functions."""

import warnings
from math import inf, isfinite, isnan
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor

from autoclip.gradients.norms import least_fast_norm, measure
from autoclip.gradients.shrink import clamp_, clip_coefficient, scale_
from autoclip.gradients.source import Source, gradients_of, named_parameters


@torch.no_grad()
def clip_grad_norm_(
    parameters: Source,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients so that their total norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_`.

    Bit for bit torch's results, with these differences. Gradients at or below `max_norm` are not touched.
    `max_norm=inf` only measures, whatever the gradients hold. Finite gradients never measure as infinite.
    Half-precision gradients are measured and scaled in float32. A parameter given twice, or memory shared by two
    gradients, counts once. Sparse gradients work, and so do lazy conjugates. In a compiled function it is torch's own.

    Args:
        parameters: as torch, or a module, (name, parameter) pairs, parameter groups, or an optimizer.
        max_norm: >= 0; inf never clips.
        norm_type: p, or inf. Orders of 0 and below are no norms; they are torch's.
        error_if_nonfinite: raise instead of passing NaN or Inf on to the gradients; and, as torch, where only the
            powers of finite gradients overflow.
        foreach: accepted for torch's signature.

    Returns:
        The total norm before clipping, 0-d.

    Raises:
        ValueError: `max_norm` is negative or NaN, or `norm_type` is no number.
        TypeError: gradients that have no norm, as of integers; the message names the parameter.
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set. The gradients are untouched.
    """
    limit, order = _checked_limit("max_norm", max_norm), float(norm_type)
    if torch.compiler.is_compiling() or not order > 0:
        given = _tensors(parameters)
        return torch.nn.utils.clip_grad_norm_(given, max_norm, order, error_if_nonfinite, foreach)
    named = named_parameters(parameters)
    if not named and isinstance(parameters, GeneratorType):
        warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3)  # torch's
    gradients = gradients_of(named)
    norms = measure(gradients, order, look_twice=not error_if_nonfinite)
    if error_if_nonfinite and norms.value < least_fast_norm(order):
        norms = measure(gradients, order)
    if error_if_nonfinite and not isfinite(norms.value):
        dtype = str(norms.total.dtype).removeprefix("torch.")
        raise RuntimeError(
            f"The total norm of order {order} for gradients from `parameters` is non-finite in {dtype}, so it cannot "
            f"be clipped. To clip what is finite and pass the rest on, set `error_if_nonfinite=False`"
        )
    # "not <=" lets NaN through to the gradients, as torch does.
    if limit != inf and not norms.value <= limit:
        scale_(list(gradients.values()), clip_coefficient(norms.total, limit), alike=norms.alike)
    return norms.total


@torch.no_grad()
def clip_grad_value_(
    parameters: Source,
    clip_value: float,
    foreach: bool | None = None,
) -> None:
    """Clamp every element of every gradient to [-clip_value, clip_value], as `torch.nn.utils.clip_grad_value_`.

    Args:
        parameters: as torch, or a module, (name, parameter) pairs, parameter groups, or an optimizer.
        clip_value: >= 0; inf changes nothing.
        foreach: accepted for torch's signature.

    Raises:
        ValueError: `clip_value` is negative or NaN.
        TypeError: a complex gradient.
    """
    if torch.compiler.is_compiling():
        torch.nn.utils.clip_grad_value_(_tensors(parameters), clip_value, foreach)
    elif (limit := _checked_limit("clip_value", clip_value)) != inf:
        clamp_(list(gradients_of(named_parameters(parameters)).values()), limit)


def _tensors(parameters: Any) -> Any:
    """Parameters in a form that torch's own functions take."""
    if isinstance(parameters, torch.nn.Module):
        return list(parameters.parameters())
    is_one = isinstance(parameters, Tensor) or torch.compiler.is_compiling()
    return parameters if is_one else list(named_parameters(parameters).values())


def _checked_limit(name: str, value: Any) -> float:
    limit = float(value)
    if isnan(limit) or limit < 0:
        raise ValueError(f"{name} must be >= 0 (inf: no clipping), got {value!r}")
    return limit


def checked_norm_type(norm_type: Any) -> float:
    """Order of the norm as a float > 0; inf is the largest absolute value.

    Raises:
        ValueError: zero, negative, NaN or no number: those are no norms of a vector.
    """
    try:
        order = float(norm_type)
    except (TypeError, ValueError):
        raise ValueError(f"norm_type must be a number > 0 or inf, got {norm_type!r}") from None
    if isnan(order) or order <= 0:
        raise ValueError(f"norm_type must be > 0 or inf, got {norm_type!r}")
    return order
