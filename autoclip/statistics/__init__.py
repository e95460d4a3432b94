"""Streaming estimators in plain Python: each has `update(x)`, a value, and a JSON-able `state_dict()`."""

from autoclip.statistics.decayed_moments import DecayedMoments, mean_and_variance
from autoclip.statistics.first_norms import FIRST_NORMS, usual_norm
from autoclip.statistics.geometric_quantile import GeometricQuantile
from autoclip.statistics.loss_trend import LossTrend
from autoclip.statistics.sliding_mean import SlidingMean
from autoclip.statistics.sliding_quantile import SlidingQuantile, percentile_of

__all__ = [
    "FIRST_NORMS",
    "DecayedMoments",
    "GeometricQuantile",
    "LossTrend",
    "SlidingMean",
    "SlidingQuantile",
    "mean_and_variance",
    "percentile_of",
    "usual_norm",
]
