"""ZClip: spikes are found by their z-score."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from autoclip.policies.parameters import Decay, Floor, Positive, Steps
from autoclip.policies.policy import Policy
from autoclip.statistics import DecayedMoments, mean_and_variance

Form = Literal["reciprocal", "mean", "max"]


@dataclass
class ZClip(Policy):
    """Clips norms whose z-score is above `z_threshold`: the further out, the stronger.

        z = (n - mean) / (std + epsilon),  threshold = mean + z_threshold * (std + epsilon), in "max" without epsilon
        a norm n above it becomes c:  "reciprocal": mean + z_threshold * std / (z / z_threshold)
                                      "mean":       mean
                                      "max":        mean + z_threshold * std
        mean <- a * mean + (1 - a) * x,  var <- a * var + (1 - a) * (x - mean)^2,  x = c or n, a = decay

    The moments start as mean and population variance of the warm-up's norms. With `warmup_threshold="auto"`, norms
    above ten times its last threshold have exploded and count as the largest of the others; inf is the published
    warm-up.

    Args:
        z_threshold: > 0.
        decay: in [0, 1), weight of the past.
        form: what a spike becomes, in the response "reciprocal" and in the moments; the published code calls "max"
            percentile.
        epsilon: >= 0, in the units of the norms; 0 makes the rule scale-free.
        learn_spikes: false leaves the moments alone at a spike, as Open-Sora Plan 1.5 does.
        least_spread: >= 0; std counts as at least this share of the mean. The published rule has 0, which takes any
            rise after constant norms for a spike.
        warmup_steps: number of norms to collect first.
        max_threshold: > 0; inf sets no bound. The published default is 1.0, which hides the rule wherever norms exceed
            1.

    Reference: Kumar, Owen, Chowdhury, Güra, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", 2025, arXiv
    2504.02507.

    >>> policy = ZClip(z_threshold=2, warmup_steps=2)
    >>> for norm in (0.5, 1.5):
    ...     policy.observe(norm)
    >>> round(policy.threshold(), 6), round(policy.reciprocal(3.0), 6)
    (2.000002, 1.500001)
    """

    response = "reciprocal"

    z_threshold: Positive = 2.5
    decay: Decay = 0.97
    form: Form = "reciprocal"
    epsilon: Floor = 1e-6
    least_spread: Floor = 0.01
    learn_spikes: bool = True
    _: KW_ONLY
    warmup_steps: Steps = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.moments = DecayedMoments(self.decay)

    def _start(self, warmup_norms: list[float]) -> None:
        self.moments.start(*mean_and_variance(self._winsorized(warmup_norms)))

    def _threshold(self) -> float:
        epsilon = 0.0 if self.form == "max" else self.epsilon
        return float(self.moments.mean + self.z_threshold * (self._std() + epsilon))

    def _observe(self, norm: float, loss: float | None) -> None:
        if self.learn_spikes or norm <= self._threshold():
            self.moments.update(self._reciprocal(norm))

    def _reciprocal(self, norm: float) -> float:
        if norm <= self._threshold():  # no spike: it is above `max_threshold` only
            return norm
        mean, std = self.moments.mean, self._std()
        if self.form == "mean":
            return mean
        if self.form == "max":
            return float(mean + self.z_threshold * std)
        share = self.z_threshold * (std + self.epsilon) / (norm - mean)  # z_threshold / z, and no division by zero
        return float(mean + self.z_threshold * std * share)

    def _std(self) -> float:
        return float(max(self.moments.std, self.least_spread * self.moments.mean))
