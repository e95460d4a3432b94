"""A low running quantile that loosens while the loss falls."""

from math import exp, hypot, sqrt
from sys import float_info
from typing import Unpack

from autoclip.policies.parameters import AtLeastOne, Bounds, Decay, Floor, Percentile, Rate, Share, Steps
from autoclip.policies.policy import Policy
from autoclip.statistics import GeometricQuantile, percentile_of


class ProgressQuantile(Policy):
    """Threshold = a low running percentile of the norms, which a falling loss lifts, with a slow start.

        first step:  C = start * norm, read before that step is clipped
        then:        C <- C * exp(rate * (above - (1 - q))),  above = 1 if norm > C else 0,  q = percentile / 100
                     C <- lift * C   where above = 1 and the loss falls:  slow - fast > margin * deviation

    `fast` and `slow` are exponential averages of the loss up to this step, from the first loss on; deviation is the
    root of the average, decayed as the slow one, of the squared distances of each loss from the slow average before
    it. So noise alone hardly counts as progress, and one wild loss makes the rule wait instead of loosen.

    While the loss falls all the time, a share x of the steps is clipped where x (rate q + ln lift) = (1 - x) rate
    (1 - q): 61 % by default. While it does not, 90 %: steps of nearly the same length, which is what survives a
    learning rate that is too high. The threshold rises by at most lift * exp(rate * q) a step, 12 % by default.
    Scale-free in the norms; neither scale nor shift of the loss matters. In a step without a loss q is
    `without_loss` / 100 and nothing is lifted.

    Args:
        percentile: in [0, 100], of the norms, while the loss does not fall.
        rate: in (0, 10], the tracker's step in log space.
        lift: >= 1, factor on the threshold in a clipped step while the loss falls; 1 ignores the loss.
        margin: >= 0, how far the loss must fall, in its standard deviations.
        fast: in [0, 1), decay of the fast average of the loss.
        slow: in [0, 1), decay of the slow one.
        start: in (0, 1], the first threshold as a share of the first norm.
        without_loss: in [0, 100], the percentile in steps without a loss.
        warmup_steps: 0 by default; otherwise the tracker starts at the percentile of the warm-up's norms.
        **bounds: see `Policy`.

    Reference: our own, see `experiments/studies/thresholds`; the tracker is that of Andrew et al., 2019, arXiv
    1905.03871.
    """

    def __init__(
        self,
        percentile: Percentile = 10,
        rate: Rate = 0.2,
        lift: AtLeastOne = 1.1,
        margin: Floor = 0.5,
        fast: Decay = 0.8,
        slow: Decay = 0.97,
        start: Share = 0.3,
        without_loss: Percentile = 25,
        *,
        warmup_steps: Steps = 0,
        **bounds: Unpack[Bounds],
    ) -> None:
        super().__init__(warmup_steps=warmup_steps, **bounds)
        self.percentile = self._checked("percentile", percentile)
        self.rate = self._checked("rate", rate)
        self.lift = self._checked("lift", lift)
        self.margin = self._checked("margin", margin)
        self.fast = self._checked("fast", fast)
        self.slow = self._checked("slow", slow)
        self.start = self._checked("start", start)
        self.without_loss = self._checked("without_loss", without_loss)
        self.quantile = GeometricQuantile(self.percentile, self.rate)
        self.losses: list[float] = []  # the fast and the slow average and the deviation, empty before the first loss
        self.inclusive = self.warmup_steps == 0  # until the first norm is known

    def _start(self, warmup_norms: list[float]) -> None:
        norm = percentile_of(sorted(warmup_norms), self.percentile)
        self.quantile.start(self._contained(norm) if self.warmup_steps else self.start * norm)
        self.inclusive = False

    def _restart(self, norms: list[float]) -> None:
        self._start(norms)
        self.quantile.start(percentile_of(sorted(norms), self.percentile))  # the slow start is for untrained weights

    def _threshold(self) -> float:
        return self.quantile.get()

    def _observe(self, norm: float, loss: float | None) -> None:
        above = norm > self.quantile.get()
        self.quantile.update(norm)
        if loss is None:
            self.quantile.scale(exp(self.rate * (self.without_loss - self.percentile) / 100))
        elif above and self._loss_falls():
            self.quantile.scale(self.lift)

    def _loss_falls(self) -> bool:
        fast, slow, deviation = self.losses
        return slow - fast > self.margin * deviation

    def _observe_loss(self, loss: float) -> None:
        if not self.losses:
            self.losses = [loss, loss, 0.0]
            return
        fast, slow, deviation = self.losses
        spread = hypot(sqrt(self.slow) * deviation, sqrt(1 - self.slow) * (loss - slow))
        self.losses = [
            self.fast * fast + (1 - self.fast) * loss,
            self.slow * slow + (1 - self.slow) * loss,
            min(spread, float_info.max),
        ]
