"""AdaGC: a threshold for each tensor, from its own past norms."""

from dataclasses import dataclass, field
from math import inf
from sys import float_info

from autoclip.policies.parameters import Decay, Positive
from autoclip.policies.policy import Policy


@dataclass
class AdaGC(Policy):
    """Threshold = relative * an average of the clipped norms, for each parameter's gradient by itself.

        warm-up:  gradients of all parameters together are clipped at `absolute`; gamma = the least norm left by that
        after it: threshold = relative * gamma,  gamma <- b * gamma + (1 - b) * min(n, threshold),  b = decay

    The average rises by at most (1 - b) (relative - 1) a step, .1 % by default, so its start matters for long.

    Args:
        relative: > 0, the published 1.05.
        absolute: > 0, in the units of the norms: bound on the total norm in the warm-up, within `min_threshold` and
            `max_threshold`. It holds if `warmup_threshold` is "auto"; a number or inf there bounds each parameter's
            norm instead.
        decay: in [0, 1), weight of the past.
        warmup_steps: number of norms to collect first.

    Reference: Wang et al., "AdaGC: Improving Training Stability for Large Language Model Pretraining", 2025, arXiv
    2502.11034.

    >>> policy = AdaGC(warmup_steps=3)
    >>> for norm in (0.5, 2.0, 4.0):
    ...     policy.observe(norm)
    >>> policy.threshold()
    0.525
    """

    scope = "parameter"

    relative: Positive = 1.05
    absolute: Positive = 1.0
    decay: Decay = 0.98
    gamma: float = field(default=0.0, init=False)

    @property
    def warmup_total(self) -> float | None:
        """`absolute`, within the bounds of the threshold, unless a `warmup_threshold` is given."""
        return self._bounded(self.absolute) if self.warmup_threshold == "auto" else None

    def _start(self, warmup_norms: list[float]) -> None:
        self.gamma = min(*warmup_norms, inf if self.warmup_total is None else self.warmup_total)

    def _restart(self, norms: list[float]) -> None:
        self.gamma = min(norms)  # a level that is learned later may lie above `absolute`

    def _threshold(self) -> float:
        return float(max(self.relative * self.gamma, float_info.min))  # a share below 1 would end at zero

    def _observe(self, norm: float, loss: float | None) -> None:
        self.gamma = self.decay * self.gamma + (1 - self.decay) * min(norm, self._threshold())

    def _warmup_bound(self) -> float:
        return super()._warmup_bound() if self.warmup_total is None else self.warmup_total
