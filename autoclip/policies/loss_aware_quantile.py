"""A running quantile that also tightens while the loss rises."""

from typing import Unpack

from autoclip.policies.parameters import Bounds, Decay, Percentile, Rate, Share, Steps
from autoclip.policies.policy import Policy
from autoclip.statistics import GeometricQuantile, percentile_of


class LossAwareQuantile(Policy):
    """`RunningQuantile` whose threshold also falls while the loss rises, with a slow start instead of a warm-up.

        first step:  C = start * norm, read before that step is clipped
        then:        C <- C * exp(rate * (above - (1 - q))),  above = 1 if norm > C else 0,  q = percentile / 100
                     C <- cut * C   in each step whose fast average of the loss lies above the slow one
                     C <- max(C, floor * D),  D = the same tracker without cuts, from the first norm on

    The averages are exponential, with decays `fast` and `slow`, from the first loss on. Scale-free in norms and in
    the loss. Without a loss it is `RunningQuantile` with the slow start.

    The percentile is an upper limit here: while the loss rises more steps are clipped. On a plateau the averages of a
    noisy loss cross in half of the steps; cuts then outweigh the tracker, and the threshold rests on the floor, where
    nearly every step is clipped to the same small norm, until the loss falls again. Where the loss is mostly noise
    (tiny batches, policy gradients, adversarial training) use `RunningQuantile`.

    Args:
        percentile: in [0, 100], of the tracked norms.
        rate: in (0, 10], the tracker's step in log space.
        cut: in (0, 1], factor on the threshold in a step of rising loss; 1 ignores the loss.
        fast: in [0, 1), decay of the fast average of the loss.
        slow: in [0, 1), decay of the slow one.
        start: in (0, 1], the first threshold as a share of the first norm.
        floor: in (0, 1], least share of the tracker without cuts.
        warmup_steps: 0 by default; otherwise the tracker starts at the percentile of the warm-up's norms.
        **bounds: see `Policy`.

    Reference: our own; the tracker is that of Andrew et al., 2019, arXiv 1905.03871.
    """

    def __init__(
        self,
        percentile: Percentile = 50,
        rate: Rate = 0.1,
        cut: Share = 0.9,
        fast: Decay = 0.8,
        slow: Decay = 0.97,
        start: Share = 0.3,
        floor: Share = 0.1,
        *,
        warmup_steps: Steps = 0,
        **bounds: Unpack[Bounds],
    ) -> None:
        super().__init__(warmup_steps=warmup_steps, **bounds)
        self.percentile = self._checked("percentile", percentile)
        self.rate = self._checked("rate", rate)
        self.cut = self._checked("cut", cut)
        self.fast = self._checked("fast", fast)
        self.slow = self._checked("slow", slow)
        self.start = self._checked("start", start)
        self.floor = self._checked("floor", floor)
        self.quantile = GeometricQuantile(self.percentile, self.rate)
        self.uncut = GeometricQuantile(self.percentile, self.rate)
        self.losses: list[float] = []  # the fast and the slow average, empty before the first loss
        self.inclusive = self.warmup_steps == 0  # until the first norm is known

    def _start(self, warmup_norms: list[float]) -> None:
        norm = percentile_of(sorted(warmup_norms), self.percentile)
        self.uncut.start(self._contained(norm))
        self.quantile.start(self.uncut.get() if self.warmup_steps else self.start * norm)
        self.inclusive = False

    def _restart(self, norms: list[float]) -> None:
        self._start(norms)
        self.quantile.start(self.uncut.get())  # the slow start is for untrained weights

    def _threshold(self) -> float:
        return self.quantile.get()

    def _observe(self, norm: float, loss: float | None) -> None:
        self.quantile.update(norm)
        self.uncut.update(norm)
        if loss is not None and self.losses[0] > self.losses[1]:
            self.quantile.scale(self.cut)
        least = self.floor * self.uncut.get()
        if self.quantile.get() < least:
            self.quantile.start(least)

    def _observe_loss(self, loss: float) -> None:
        if not self.losses:
            self.losses = [loss, loss]
            return
        fast, slow = self.losses
        self.losses = [self.fast * fast + (1 - self.fast) * loss, self.slow * slow + (1 - self.slow) * loss]
