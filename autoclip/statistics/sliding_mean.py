"""Exact mean and standard deviation of the latest values."""

from collections import deque
from collections.abc import Iterable
from math import inf, ldexp, sqrt
from typing import Any

UNIT = 1074
"""Every float is a whole number of 2**-1074."""


class SlidingMean:
    """Mean and standard deviation of the last `window` values, at a cost that does not depend on their number.

    The sums of the values and of their squares are kept as whole numbers of 2**-1074 and 2**-2148. They are exact, so
    that nothing is lost to rounding or cancellation, whatever has been in the window before.

    Args:
        window: how many of the latest values count, >= 1.

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
        self._sum = 0
        self._squares = 0

    def __len__(self) -> int:
        return len(self._values)

    def update(self, value: float) -> None:
        """Add a finite value; the oldest leaves a full window."""
        if len(self._values) == self.window:
            self._count(self._values[0], -1)
        self._values.append(value)
        self._count(value, 1)

    def extend(self, values: Iterable[float]) -> None:
        """Add finite values, oldest first."""
        for value in values:
            self.update(value)

    def get(self) -> float:
        """Mean of the values in the window, rounded once."""
        if not self._values:
            raise ValueError("the mean of no values is undefined")
        zeros = min(_zeros(self._sum), UNIT)
        return (self._sum >> zeros) / (len(self._values) << UNIT - zeros)

    def std(self) -> float:
        """Standard deviation of the values in the window, unbiased (n - 1); 0 for a single one, inf beyond a float."""
        count = len(self._values)
        if count == 1:
            return 0.0
        if count == 0:
            raise ValueError("the standard deviation of no values is undefined")
        # Usual values end in a thousand zeros in this unit, which would only make the numbers long.
        zeros = min(_zeros(self._sum), _zeros(self._squares) // 2, UNIT)
        total = self._sum >> zeros
        numerator = count * (self._squares >> 2 * zeros) - total * total
        denominator = count * (count - 1) << 2 * (UNIT - zeros)
        if numerator == 0:
            return 0.0
        # The variance is numerator / denominator; without an even power of two that lies near 1.
        exponent = (numerator.bit_length() - denominator.bit_length()) // 2
        if exponent > 0:
            denominator <<= 2 * exponent
        else:
            numerator <<= -2 * exponent
        try:
            return ldexp(sqrt(numerator / denominator), exponent)
        except OverflowError:  # values of both signs, near the largest float
            return inf

    def state_dict(self) -> dict[str, Any]:
        """The values in the order of their arrival."""
        return {"values": list(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the values of a `state_dict()`."""
        self._values.clear()
        self._sum = self._squares = 0
        self.extend(state["values"])

    def _count(self, value: float, sign: int) -> None:
        whole, part = float(value).as_integer_ratio()
        shift = UNIT + 1 - part.bit_length()  # the part is a power of two
        self._sum += sign * whole << shift
        self._squares += sign * whole * whole << 2 * shift


def _zeros(number: int) -> int:
    """Number of zeros that a whole number ends in, in binary."""
    return (number & -number).bit_length() - 1 if number else UNIT
