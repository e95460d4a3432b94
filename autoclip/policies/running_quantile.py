"""A percentile that follows the norms."""

from dataclasses import dataclass

from autoclip.policies.parameters import OptionalWindow, Percentile, Rate
from autoclip.policies.policy import Policy
from autoclip.statistics import GeometricQuantile, SlidingQuantile, percentile_of


@dataclass
class RunningQuantile(Policy):
    """Threshold = running percentile of the norms of earlier steps.

    By default a geometric tracker, with q = percentile / 100. Each step raises the threshold by exp(rate * q) if the
    norm was above it, and lowers it by exp(-rate * (1 - q)) if not. This holds the share of clipped steps at 1 - q
    through any drift (`GeometricQuantile` gives the bound), and no single norm can carry it away. With `window` it is
    the exact percentile of that many latest norms, which lags behind a drift.

    Args:
        percentile: in [0, 100], per cent of the steps that stay unclipped.
        rate: in (0, 10], the tracker's step in log space; not used with `window`.
        window: >= 1, a number of norms; None for the tracker.
        warmup_steps: number of norms to collect first. The tracker starts at their percentile, or at ten times the
            automatic warm-up threshold if they exploded.

    Reference: the tracker is that of Andrew et al., 2019, arXiv 1905.03871; the window with past norms only is PyPI's
    autoclip 0.2.1 (`QuantileClip`).

    >>> policy = RunningQuantile(percentile=90, window=1000, warmup_steps=0, warmup_threshold=float("inf"))
    >>> for norm in (3.0, 1.0, 2.0, 10.0):
    ...     print(round(policy.threshold(), 6))
    ...     policy.observe(norm)
    inf
    3.0
    2.8
    2.8
    """

    percentile: Percentile = 50
    rate: Rate = 0.1
    window: OptionalWindow = None

    def __post_init__(self) -> None:
        super().__post_init__()
        tracker = GeometricQuantile(self.percentile, self.rate)
        self.quantile = tracker if self.window is None else SlidingQuantile(self.window)

    def _start(self, warmup_norms: list[float]) -> None:
        if isinstance(self.quantile, GeometricQuantile):
            self.quantile.start(self._capped(percentile_of(sorted(warmup_norms), self.percentile)))
        else:
            self.quantile.extend(warmup_norms)

    def _threshold(self) -> float:
        if isinstance(self.quantile, GeometricQuantile):
            return self.quantile.get()
        return self.quantile.get(self.percentile)

    def _observe(self, norm: float, loss: float | None) -> None:
        self.quantile.update(norm)
