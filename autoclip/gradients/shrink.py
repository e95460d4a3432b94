"""Making gradients smaller in place: by one factor, or element by element."""

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_FACTOR = 1e-30
"""A smaller factor is applied in two halves: in float32 it could be subnormal, and inexact, or zero."""


def clip_coefficient(norm: Tensor, threshold: float) -> Tensor:
    """Factor that brings a norm above the threshold down to it: c / (norm + min(1e-6, c / 1000)), c = threshold.

    In the norm's own precision, bit for bit torch's where c >= 1e-3; torch's constant 1e-6 alone would shrink
    gradients whose threshold is tiny far below it.

    Args:
        norm: 0-d, above the threshold.
        threshold: >= 0.
    """
    return threshold / (norm + min(1e-6, 1e-3 * threshold))


def scale_(gradients: Sequence[Tensor], coefficient: Tensor) -> None:
    """Multiply every gradient by the coefficient (0-d), in place; half precision is multiplied in float32 and rounded.

    The coefficient stays a tensor: as a Python number, torch's multi-tensor multiplication rounds it to half precision
    before it is used.
    """
    if 0 < coefficient < SMALLEST_FACTOR:  # host read
        scale_(gradients, coefficient.sqrt())
        scale_(gradients, coefficient.sqrt())
        return
    _own_memory_(gradients)
    dense = [gradient for gradient in gradients if gradient.layout is torch.strided]
    if len(dense) == len(gradients) and all(gradient.device == coefficient.device for gradient in dense):
        torch._foreach_mul_(dense, coefficient)
        return
    for gradient in gradients:
        gradient.mul_(coefficient.to(gradient.device))


def clamp_(gradients: Sequence[Tensor], threshold: float) -> None:
    """Clamp every element to [-threshold, threshold], in place; NaN stays NaN.

    Raises:
        TypeError: a complex gradient: its elements have no order.
    """
    _own_memory_(gradients)
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


def _own_memory_(gradients: Sequence[Tensor]) -> None:
    """Give gradients that repeat an element in memory (expanded ones) one place for each, or writing would fail."""
    for gradient in gradients:
        if gradient.layout is torch.strided and 0 in gradient.stride():
            gradient.data = gradient.clone(memory_format=torch.contiguous_format)
