"""A multiple of the median or mean of the recent norms."""

from dataclasses import dataclass
from math import ulp
from typing import Literal

from autoclip.policies.parameters import Positive, Window
from autoclip.policies.policy import Policy
from autoclip.statistics import SlidingMean, SlidingQuantile

Center = Literal["median", "mean"]


@dataclass
class CenterMultiple(Policy):
    """Threshold = multiple * median (or mean) of the last `window` norms.

    The median ignores single spikes; the mean does not.

    Args:
        center: "median" or "mean".
        multiple: > 0.
        window: >= 1, number of norms.
        warmup_steps: number of norms to collect first.

    >>> policy = CenterMultiple(multiple=2, warmup_steps=3)
    >>> for norm in (1.0, 2.0, 9.0):
    ...     policy.observe(norm)
    >>> policy.threshold()
    4.0
    """

    center: Center = "median"
    multiple: Positive = 2.0
    window: Window = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norms = SlidingQuantile(self.window) if self.center == "median" else SlidingMean(self.window)

    def _start(self, warmup_norms: list[float]) -> None:
        self.norms.extend(warmup_norms)

    def _threshold(self) -> float:
        middle = self.norms.get(50) if isinstance(self.norms, SlidingQuantile) else self.norms.get()
        return float(max(self.multiple * middle, ulp(0.0)))  # a multiple below 1 may end at zero

    def _observe(self, norm: float, loss: float | None) -> None:
        self.norms.update(norm)
