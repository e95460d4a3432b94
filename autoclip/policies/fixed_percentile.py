"""A percentile of the warm-up's norms, frozen when the warm-up ends."""

from dataclasses import dataclass, field
from math import ulp
from sys import float_info

from autoclip.policies.parameters import Percentile, Positive
from autoclip.policies.policy import Policy
from autoclip.statistics import percentile_of


@dataclass
class FixedPercentile(Policy):
    """Threshold = scale * percentile of the norms of the warm-up; constant from then on.

    Norms move by orders of magnitude during training, so the percentile of the first steps is soon out of date.
    `RunningQuantile` follows the norms.

    Args:
        percentile: in [0, 100], per cent of the warm-up's norms at or below the threshold (for scale 1).
        scale: > 0, factor on the percentile.
        warmup_steps: number of norms to collect; 0 collects one.
    """

    percentile: Percentile = 50
    scale: Positive = 1.0
    frozen: float = field(default=0.0, init=False)

    def _start(self, warmup_norms: list[float]) -> None:
        frozen = self.scale * percentile_of(sorted(warmup_norms), self.percentile)
        self.frozen = min(max(frozen, ulp(0.0)), float_info.max)  # a factor may bring it to zero, or beyond all floats

    def _threshold(self) -> float:
        return self.frozen

    def _observe(self, norm: float, loss: float | None) -> None:
        """The threshold is frozen."""
