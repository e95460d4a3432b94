"""AutoClip: a percentile of the history of norms."""

from dataclasses import KW_ONLY, dataclass

from autoclip.policies.parameters import OptionalWindow, Percentile, Steps
from autoclip.policies.policy import Policy
from autoclip.statistics import SlidingQuantile


@dataclass
class AutoClip(Policy):
    """Threshold = percentile of all norms so far, as published: the current norm counts.

    Only the latest `history` norms count. A long history follows a drift late: growing norms are clipped far more often
    than the percentile says, falling ones hardly.

    Args:
        percentile: in [0, 100]; the paper uses 10. 0 is the running minimum; 100 never clips if inclusive.
        inclusive: true if the current norm counts towards its own threshold.
        history: >= 1, number of latest norms kept. None keeps all, as published, at a cost that grows with the run.
        warmup_steps: 0 by default, as published.

    Reference: Seetharaman, Wichern, Pardo, Le Roux, "AutoClip: Adaptive Gradient Clipping for Source Separation
    Networks", 2020, arXiv 2007.14469.

    >>> policy = AutoClip(percentile=10)
    >>> for norm in (3.0, 1.0, 2.0, 10.0):
    ...     policy.observe(norm)
    ...     print(round(policy.threshold(), 6))
    3.0
    1.2
    1.2
    1.3
    """

    percentile: Percentile = 10
    inclusive: bool = True
    history: OptionalWindow = 10_000
    _: KW_ONLY
    warmup_steps: Steps = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norms = SlidingQuantile(self.history)

    def _start(self, warmup_norms: list[float]) -> None:
        self.norms.extend(warmup_norms)

    def _threshold(self) -> float:
        return self.norms.get(self.percentile)

    def _observe(self, norm: float, loss: float | None) -> None:
        self.norms.update(norm)
