"""SkipStep: a step whose norm stands out is skipped."""

from dataclasses import KW_ONLY, dataclass

from autoclip.policies.parameters import Floor, Positive, Steps, Window
from autoclip.policies.policy import Policy
from autoclip.statistics import SlidingMean


@dataclass
class SkipStep(Policy):
    """Threshold = mean + sigmas * std of the last `window` norms; a step above it is skipped.

    std is the unbiased one. Norms of skipped steps enter the window too, so that a new level is soon accepted.

    Args:
        sigmas: > 0.
        window: >= 1, number of norms.
        least_spread: >= 0; std counts as at least this share of the mean. The published rule has 0, which skips a step
            at any rise after constant norms.
        warmup_steps: number of norms to collect first; the published code has half the window less one. With
            `warmup_threshold="auto"`, norms above ten times its last threshold have exploded and count as the largest
            of the others; inf is the published warm-up.

    Reference: the skip-step optimizer of OLMo-core (`optim/skip_step_optimizer.py`).

    >>> policy = SkipStep(sigmas=2, warmup_steps=2)
    >>> for norm in (1.0, 3.0):
    ...     policy.observe(norm)
    >>> round(policy.threshold(), 6)
    4.828427
    """

    response = "skip"

    sigmas: Positive = 6.0
    window: Window = 128
    least_spread: Floor = 0.01
    _: KW_ONLY
    warmup_steps: Steps = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norms = SlidingMean(self.window)

    def _start(self, warmup_norms: list[float]) -> None:
        self.norms.extend(self._winsorized(warmup_norms))

    def _threshold(self) -> float:
        mean = self.norms.get()
        return float(mean + self.sigmas * max(self.norms.std(), self.least_spread * mean))

    def _observe(self, norm: float, loss: float | None) -> None:
        self.norms.update(norm)
