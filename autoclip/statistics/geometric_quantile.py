"""A quantile tracked by steps of constant ratio."""

from math import exp
from sys import float_info
from typing import Any

SMALLEST, LARGEST = float_info.min, float_info.max


class GeometricQuantile:
    """Tracks a percentile in O(1) time and memory, at any scale and through any drift.

        value <- value * exp(rate * (above - (1 - q))),   above = 1 if x > value else 0,   q = percentile / 100

    In equilibrium a share 1 - q of the values lies above. Over T values the realised share differs from 1 - q by at
    most |ln(value_T / value_0)| / (rate * T), whatever the values are: each step moves ln(value) by exactly `rate`
    times the difference. A rise is bounded: at most exp(rate * q) a step.

    Args:
        percentile: in [0, 100].
        rate: > 0, the step in log space. Larger follows faster and is noisier.

    Reference: Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", 2019,
    arXiv 1905.03871, geometric update (one record a step, no privacy noise).

    >>> tracker = GeometricQuantile(percentile=50, rate=0.2)
    >>> for norm in (1.0, 5.0, 5.0):
    ...     tracker.update(norm)
    >>> round(tracker.get(), 4)
    1.2214
    """

    def __init__(self, percentile: float, rate: float) -> None:
        q = percentile / 100
        self._rise = exp(rate * q)
        self._fall = exp(-rate * (1 - q))
        self._value: float | None = None

    def start(self, value: float) -> None:
        """Place the tracker at a positive value (without this it starts at the first value it sees).

        The value is kept within the normal floats: from zero or infinity it could never return.
        """
        self._value = min(max(value, SMALLEST), LARGEST)

    def update(self, value: float) -> None:
        """Move towards the quantile by one step of constant ratio."""
        tracked = self._value
        if tracked is None:
            self.start(value)
            return
        moved = tracked * (self._rise if value > tracked else self._fall)
        if SMALLEST <= moved <= LARGEST:
            self._value = moved
        else:
            self.start(moved)

    def scale(self, factor: float) -> None:
        """Multiply the tracked value."""
        self.start(self.get() * factor)

    def get(self) -> float:
        """The tracked value."""
        if self._value is None:
            raise ValueError("the tracker has seen no value yet")
        return self._value

    def state_dict(self) -> dict[str, Any]:
        """The tracked value, None before the first."""
        return {"value": self._value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the value of a `state_dict()`.

        Raises:
            ValueError: the value is no number > 0.
        """
        value = state["value"]
        if value is not None and not float(value) > 0:
            raise ValueError(f"the tracked value must be > 0, got {value!r}")
        self._value = None if value is None else float(value)
