"""Exponentially decayed mean and variance."""

from collections.abc import Sequence
from math import fsum, sqrt
from sys import float_info
from typing import Any


def mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population variance of finite values, at least one."""
    count = len(values)
    try:
        mean = fsum(values) / count
    except OverflowError:  # the sum is beyond the floats, the mean is not
        mean = fsum(value * 2.0**-64 for value in values) / count * 2.0**64
    mean = min(max(mean, min(values)), max(values))  # rounding must not move the mean of a constant
    try:
        return mean, fsum(min((value - mean) * (value - mean), float_info.max) / count for value in values)
    except OverflowError:
        return mean, float_info.max


class DecayedMoments:
    """Mean and variance of a stream, older values fading by `decay` a step; exact zeros for a constant stream.

        mean <- a * mean + (1 - a) * x
        var  <- a * var  + (1 - a) * (x - mean)^2      with the new mean; a = decay

    The variance sums squares of differences, never a difference of squares, so nothing cancels. The first value sets
    mean = x and var = 0.

    Args:
        decay: weight of the past, in [0, 1).

    Reference: Kumar, Owen, Chowdhury, Güra, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", 2025,
    arXiv 2504.02507 (the variance takes the new mean, as there).

    >>> moments = DecayedMoments(decay=0.9)
    >>> moments.start(mean=1.0, variance=0.25)
    >>> moments.update(3.0)
    >>> round(moments.mean, 3), round(moments.variance, 3)
    (1.2, 0.549)
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._mean: float | None = None
        self._variance = 0.0

    def start(self, mean: float, variance: float) -> None:
        """Begin from known moments instead of from the first value."""
        self._mean, self._variance = mean, variance

    def update(self, value: float) -> None:
        """Fade the past by `decay` and add a finite value."""
        if self._mean is None:
            self._mean = value
            return
        if value != self._mean:  # rounding must not move the mean of a constant stream
            self._mean = self.decay * self._mean + (1 - self.decay) * value
        difference = value - self._mean
        squared = min(difference * difference, float_info.max)  # from an overflow the variance must recover
        self._variance = self.decay * self._variance + (1 - self.decay) * squared

    @property
    def mean(self) -> float:
        """Decayed mean."""
        if self._mean is None:
            raise ValueError("the mean of no values is undefined")
        return self._mean

    @property
    def variance(self) -> float:
        """Decayed variance, >= 0."""
        return self._variance

    @property
    def std(self) -> float:
        """Square root of the decayed variance."""
        return sqrt(self._variance)

    def state_dict(self) -> dict[str, Any]:
        """Both moments; the mean is None before the first value."""
        return {"mean": self._mean, "variance": self._variance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the moments of a `state_dict()`."""
        self._mean, self._variance = state["mean"], state["variance"]
