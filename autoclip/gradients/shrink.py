"""Making gradients smaller in place: by one factor, or element by element."""

from collections.abc import Sequence

import torch
from torch import Tensor

from autoclip.gradients.sharded import to_local

SMALLEST_FACTOR = 1e-30
"""A smaller factor is applied in two halves: in float32 it could be subnormal, and inexact, or zero."""
SMALLEST_INVERTED = 1e-30
"""Norms above a threshold of at least this have an inverse in float32."""
HALF = {torch.float16, torch.bfloat16}


def clip_coefficient(norm: Tensor, threshold: float) -> Tensor:
    """Factor that brings a norm above the threshold down to it: c / (norm + min(1e-6, c / 1000)), c = threshold.

    In the norm's own precision, and bit for bit torch's for c >= 1e-3. torch always adds 1e-6, which would shrink
    gradients far below a tiny threshold.

    Args:
        norm: 0-d, above the threshold.
        threshold: >= 0.
    """
    raised = norm + min(1e-6, 1e-3 * threshold)
    # torch divides a number by a tensor as number * (1 / tensor), and 1 / norm overflows for the smallest norms.
    return threshold / raised if threshold >= SMALLEST_INVERTED else norm.new_tensor(threshold) / raised


def clip_coefficients(norms: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Factor of each of several norms, bit for bit that of `clip_coefficient`.

    Args:
        norms: shape (n,), each above its threshold.
        thresholds: n of them.
    """
    raised = norms + norms.new_tensor([min(1e-6, 1e-3 * threshold) for threshold in thresholds])
    limits = norms.new_tensor(thresholds)
    factors = raised.reciprocal() * limits  # torch divides a number by a tensor so
    if min(thresholds) >= SMALLEST_INVERTED:
        return factors
    small = torch.tensor([threshold < SMALLEST_INVERTED for threshold in thresholds], device=norms.device)
    return torch.where(small, limits / raised, factors)


def scale_(gradients: Sequence[Tensor], coefficient: Tensor, *, alike: bool = False) -> float:
    """Multiply every gradient by the coefficient (0-d), in place; half precision is multiplied in float32 and rounded.

    The coefficient stays a tensor: as a Python number, torch's multi-tensor multiplication rounds it to half precision
    before it is used.

    Args:
        gradients: any.
        coefficient: on the device of their norm.
        alike: they are known to be dense, of torch's own tensors and on that device.

    Returns:
        The coefficient.
    """
    factor = float(coefficient)  # host read
    if 0 < factor < SMALLEST_FACTOR:
        scale_(gradients, coefficient.sqrt())
        scale_(gradients, coefficient.sqrt())
    elif alike and all(map(Tensor.is_contiguous, gradients)):
        _multiply_together_(gradients, coefficient)
    else:
        multiply_(gradients, coefficient)
    return factor


def scale_each_(gradients: Sequence[Tensor], coefficients: Tensor, least: float, *, alike: bool = False) -> None:
    """Multiply each gradient by a coefficient of its own, in place; half precision in float32, and rounded.

    Args:
        gradients: n of them.
        coefficients: shape (n,).
        least: the smallest of them, roughly.
        alike: they are known to be dense, of torch's own tensors and on the device of the coefficients.
    """
    if len(gradients) == 1 or not least > 2 * SMALLEST_FACTOR:
        for gradient, coefficient in zip(gradients, coefficients, strict=True):
            scale_([gradient], coefficient)
        return
    multiply_each_(gradients, coefficients, alike=alike)


def multiply_each_(gradients: Sequence[Tensor], coefficients: Tensor, *, alike: bool = False) -> None:
    """As `scale_each_`, without a look at the coefficients: those below 1e-30 may be inexact, or act as zero."""
    if not (alike and all(map(Tensor.is_contiguous, gradients))):
        gradients = _parts(gradients)
        own_memory_(gradients)
        alike = _are_uniform(gradients, coefficients)
    factors = coefficients.unbind()
    # A list of factors is rounded to half precision by some devices, one factor is not.
    if alike and not HALF & {gradient.dtype for gradient in gradients}:
        _multiply_together_(gradients, list(factors))
        return
    for gradient, factor in zip(gradients, factors, strict=True):
        multiply_([gradient], factor)


def clamp_(gradients: Sequence[Tensor], threshold: float) -> None:
    """Clamp every element to [-threshold, threshold], in place; NaN stays NaN.

    Raises:
        TypeError: a complex gradient: its elements have no order.
    """
    gradients = _parts(gradients)
    own_memory_(gradients)
    for gradient in gradients:
        if gradient.is_complex():
            raise TypeError("complex gradients cannot be clipped by value, only by norm")
    for gradient in gradients:
        if gradient.is_sparse:
            # Repeated indices add up, so the sum is what has to be within the threshold.
            summed = gradient.coalesce()
            summed.values().clamp_(-threshold, threshold)
            gradient.copy_(summed)
        else:
            gradient.clamp_(-threshold, threshold)


def zero_(gradients: Sequence[Tensor], bad: Tensor | None = None) -> None:
    """Make every element zero, NaN too, in place; only where `bad` (0-d, bool) is true, without a look at it."""
    gradients = _parts(gradients)
    own_memory_(gradients)
    for gradient in gradients:
        values = gradient._values() if gradient.is_sparse else gradient
        if bad is None:
            values.zero_()
        else:
            values.masked_fill_(bad.to(values.device), 0.0)


def multiply_(gradients: Sequence[Tensor], coefficient: Tensor) -> None:
    """As `scale_`, without a look at the coefficient: one below 1e-30 may be inexact, or act as zero."""
    gradients = _parts(gradients)
    own_memory_(gradients)
    if _are_uniform(gradients, coefficient):
        _multiply_together_(gradients, coefficient)
        return
    for gradient in gradients:
        gradient.mul_(coefficient.to(gradient.device))


def _multiply_together_(gradients: Sequence[Tensor], factors: Tensor | list[Tensor]) -> None:
    """Multiply all by one factor, or each by its own, in place, in one call of torch."""
    try:
        torch._foreach_mul_(list(gradients), factors)
    except RuntimeError:
        # Conjugates and negatives that torch has not carried out yet: it refuses the call before it changes anything.
        if not any(gradient.is_conj() or gradient.is_neg() for gradient in gradients):
            raise
        for place, gradient in enumerate(gradients):
            gradient.mul_(factors if isinstance(factors, Tensor) else factors[place])


def _parts(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """What this rank holds of each."""
    plain = {*map(type, gradients)} == {Tensor}
    return gradients if plain else [to_local(gradient) for gradient in gradients]


def _are_uniform(gradients: Sequence[Tensor], like: Tensor) -> bool:
    """Return True if all are dense and on the device of another tensor, as torch's multi-tensor functions want them."""
    devices, layouts = {*map(Tensor.get_device, gradients)}, {gradient.layout for gradient in gradients}
    return devices == {like.get_device()} and layouts == {torch.strided}


def own_memory_(gradients: Sequence[Tensor]) -> None:
    """Give gradients that repeat an element in memory (expanded ones) one place for each before they are written to."""
    for gradient in gradients:
        if gradient.layout is torch.strided and not gradient.is_contiguous() and repeats_elements(gradient):
            gradient.data = gradient.clone(memory_format=torch.contiguous_format)


def repeats_elements(tensor: Tensor) -> bool:
    """Return True if elements of a dense tensor may lie in the same memory."""
    if torch._debug_has_internal_overlap(tensor) == 0:  # quick, but does not know slices
        return False
    reach = 0  # of the dimensions with shorter steps
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if step <= reach:
                return True
            reach += step * (size - 1)
    return False
