"""SkipStep: a step whose norm or loss stands out is skipped."""

from dataclasses import KW_ONLY, dataclass
from math import inf
from typing import Literal

from autoclip.policies.parameters import Floor, Positive, Steps, Window
from autoclip.policies.policy import Policy
from autoclip.statistics import SlidingMean


@dataclass
class SkipStep(Policy):
    """Threshold = mean + sigmas * std of the last `window` norms; a step above it is skipped.

    The loss has a threshold of the same formula, from the last `window` losses. std is the unbiased one. Norms and
    losses of skipped steps enter the windows too, so that a new level is soon accepted.

    It is published as a rule beside clipping: `Clipper(model, Fixed(1.0), skip=SkipStep(on="loss or norm"))`.

    Args:
        sigmas: > 0.
        window: >= 1, number of norms, and of losses.
        least_spread: >= 0; std counts as at least this share of the mean. The published rule has 0, which skips a step
            at any rise after constant norms.
        on: "norm", "loss", or "loss or norm": which of them must stand out. A step without a loss goes by its norm.
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
    on: Literal["norm", "loss", "loss or norm"] = "norm"
    _: KW_ONLY
    warmup_steps: Steps = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norms, self.losses = SlidingMean(self.window), SlidingMean(self.window)

    def loss_threshold(self) -> float | None:
        """Mean + sigmas * std of the last losses, by the formula of the norms; see `Policy`."""
        if self.on == "norm":
            return None
        return self._above(self.losses) if len(self.losses) >= min(self.window, max(self.warmup_steps, 1)) else inf

    def _start(self, warmup_norms: list[float]) -> None:
        self.norms.extend(self._winsorized(warmup_norms))

    def _threshold(self) -> float:
        return inf if self.on == "loss" else self._above(self.norms)

    def _observe(self, norm: float, loss: float | None) -> None:
        self.norms.update(norm)

    def _observe_loss(self, loss: float) -> None:
        if self.on != "norm":
            self.losses.update(loss)

    def _above(self, values: SlidingMean) -> float:
        mean = values.get()
        return float(mean + self.sigmas * max(values.std(), self.least_spread * abs(mean)))
