"""Gradients of TensorFlow: measures their norm, in float32 or wider, and makes them smaller."""

from collections.abc import Sequence
from sys import float_info
from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any  # TensorFlow comes without type information

KEPT, SCALED, SCALED_WIDE, ZEROED, SKIPPED = range(5)
"""Action on the gradients of a step, as a number that a graph can branch on."""

LEAST_FAST_NORM = 1e-15
"""If a norm in float32 is below this, squares of its elements may have been lost to underflow."""
LARGEST_FAST_NORM = 1e37
"""Reciprocals of larger norms are subnormal in float32, which TensorFlow takes for zero."""
LEAST_FAST_FACTOR = 1e-30
"""Products with a smaller factor may be subnormal in float32 before they have to be."""


def total_norm(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Norm of all values as if they were one vector.

    One pass in float32, or in float64 if one of them is. If its result is non-finite or very small, a second pass in
    float64 tells an overflow or underflow of the squares from values that really are infinite or zero.

    Returns:
        The norm in float64, and in the dtype of the pass (there at most its largest number, if the values are finite).
    """
    dtype = tf.float64 if any(each.dtype == tf.float64 for each in values) else tf.float32
    if not values:
        return tf.zeros((), tf.float64), tf.zeros((), dtype)
    fast = tf.linalg.global_norm([tf.cast(each, dtype) for each in values])

    def exact_norm() -> tuple[Tensor, Tensor]:
        numbers = [tf.cast(each, tf.float64) for each in values]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(each)) for each in numbers])
        largest = tf.reduce_max([tf.reduce_max(tf.abs(each), axis=None) for each in numbers])
        unit = tf.where(finite & (largest > 0), largest, tf.ones_like(largest))
        norm = tf.minimum(unit * tf.linalg.global_norm([each / unit for each in numbers]), tf.float64.max)
        rounded = tf.cast(tf.minimum(norm, dtype.max), dtype)
        return tf.where(finite, norm, tf.cast(fast, tf.float64)), tf.where(finite, rounded, fast)

    measured: tuple[Tensor, Tensor] = tf.cond(
        tf.math.is_finite(fast) & (fast > LEAST_FAST_NORM), lambda: (tf.cast(fast, tf.float64), fast), exact_norm
    )
    return measured


def scaling(norm: float, left: float, single: bool) -> tuple[int, float]:
    """Action and factor that shrink a norm to `left`: SCALED, or SCALED_WIDE (float32 in float64).

    The formula is that of `tf.clip_by_global_norm`, bit for bit if float32 is enough or the gradients are wider.

    Args:
        norm: finite, above `left`.
        left: > 0.
        single: the gradients are in float32 or narrower.
    """
    if single and norm < LARGEST_FAST_NORM and left > 1 / LARGEST_FAST_NORM:
        one, limit = np.float32(1), np.float32(left)
        factor = float(limit * min(one / np.float32(norm), one / limit))
        if factor >= LEAST_FAST_FACTOR:
            return SCALED, factor
    reciprocals = min(1 / norm, 1 / left) if norm > 1 / float_info.max and left > 1 / float_info.max else 0.0
    factor = left * reciprocals or left / norm
    return (SCALED_WIDE if single or factor < LEAST_FAST_FACTOR else SCALED), min(factor, 1.0)


def shrink(values: list[Tensor], action: Tensor, coefficient: Tensor) -> list[Tensor]:
    """Carry out the decision on the values. Half precision is multiplied in float32 and rounded."""

    def scaled(narrow: Any) -> list[Tensor]:
        return [_multiplied(each, coefficient, tf.float64 if each.dtype == tf.float64 else narrow) for each in values]

    def zeros() -> list[Tensor]:
        return [tf.zeros_like(each) for each in values]

    if not values:
        return []
    shrunk: list[Tensor] = tf.switch_case(
        action,
        {
            KEPT: lambda: list(values),
            SCALED: lambda: scaled(tf.float32),
            SCALED_WIDE: lambda: scaled(tf.float64),
            ZEROED: zeros,
            SKIPPED: zeros,
        },
    )
    return shrunk


def _multiplied(values: Tensor, coefficient: Tensor, dtype: Any) -> Tensor:
    return tf.cast(tf.cast(values, dtype) * tf.cast(coefficient, dtype), values.dtype)


def numbers(place: int, gradient: Any) -> Tensor:
    """The numbers that a gradient holds: itself, or the rows of slices.

    Raises:
        TypeError: they are not floating-point numbers.
    """
    if isinstance(gradient, tf.SparseTensor | tf.RaggedTensor):
        raise TypeError(f"gradients must be tensors or tf.IndexedSlices, got a {type(gradient).__name__} at {place}")
    values = tf.convert_to_tensor(gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient)
    if not values.dtype.is_floating:
        raise TypeError(f"gradients must be floating-point, got {values.dtype.name} at place {place}")
    return values


def summed(gradient: Any) -> Tensor:
    """The numbers that a gradient holds, in float32 or wider, those of the same row of slices summed."""
    values = tf.convert_to_tensor(gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient)
    values = tf.cast(values, tf.float64 if values.dtype == tf.float64 else tf.float32)
    if not isinstance(gradient, tf.IndexedSlices):
        return values
    rows, places = tf.unique(gradient.indices)
    return tf.math.unsorted_segment_sum(values, places, tf.size(rows))


def like(gradient: Any, values: Tensor) -> Any:
    """A gradient of the same kind with other numbers."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values
