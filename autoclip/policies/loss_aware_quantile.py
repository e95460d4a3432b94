"""A running quantile that loosens while the loss falls and tightens while it rises."""

from dataclasses import KW_ONLY, dataclass
from math import exp

from autoclip.policies.parameters import AtLeastOne, Decay, Floor, Percentile, Rate, Share, Steps
from autoclip.policies.policy import Policy
from autoclip.statistics import FIRST_NORMS, GeometricQuantile, LossTrend, percentile_of, usual_norm


@dataclass
class LossAwareQuantile(Policy):
    """A low running percentile that a falling loss lifts and a rising one cuts, with a slow start and no warm-up.

        first step:  C = start * norm, read before that step is clipped
        then:        C <- C * exp(rate * (above - (1 - q))),  above = 1 if norm > C else 0,  q = percentile / 100
                     C <- lift * C   if above = 1 and the loss falls:  slow - fast > margin * sd / sqrt(w)
                     C <- cut * C    if the loss rises:                fast - slow > margin * sd
                     C <- max(C, floor * D),  D = the same tracker without lifts and cuts, from the first norm on
        after ten:   C <- start * m, D <- m  if m > 10 * first norm,  m = the third smallest of the first ten norms

    `fast` and `slow` are exponential averages of the loss, this step's included, and start at the first loss. sd^2 is
    the average of the squared distances of each loss from the slow average before it; it starts at zero and decays as
    the slow average does. w is the weight that it has gathered. So noise alone hardly counts. One wild loss cuts a few
    times and lifts nothing as it leaves. In the first steps a rise counts at once, a fall only when it is clear.

    While the loss stands still, 90 % of the steps are clipped: they have almost equal length, and survive a learning
    rate that is too high. A rise shortens them. While the loss falls steadily the share x of clipped steps solves
    x (rate q + ln lift) = (1 - x) rate (1 - q): 61 % by default. A step raises the threshold by at most
    lift * exp(rate * q), 12 % by default. The last line is for a first norm below a tenth of the usual one (a batch
    nearly all masked, layers that start at zero), from where the rise would take hundreds of steps.

    Scale-free in norms and loss, and a constant added to the loss does not matter. In a step without a loss q is
    `without_loss` / 100, without lift or cut. Without any loss this is `RunningQuantile` at that percentile with a slow
    start.

    Args:
        percentile: in [0, 100], percentile of the norms while the loss neither falls nor rises.
        rate: in (0, 10], the tracker's step in log space.
        lift: >= 1, factor on the threshold in a clipped step while the loss falls.
        cut: in (0, 1], factor on the threshold in a step of rising loss. 1, with a lift of 1, ignores the loss.
        margin: >= 0, standard deviations by which the loss has to fall or rise.
        fast: in [0, 1), decay of the fast average of the loss.
        slow: in [0, 1), decay of the slow one.
        start: in (0, 1], the first threshold as a share of the first norm.
        floor: in (0, 1], least threshold, as a share of the tracker without lifts and cuts.
        without_loss: in [0, 100], the percentile in steps without a loss.
        warmup_steps: 0 by default. Otherwise the tracker starts at the percentile of the warm-up's norms.

    Reference: our own, see `experiments/studies/thresholds`; the tracker is that of Andrew et al., 2019, arXiv
    1905.03871.
    """

    reads_loss = True

    percentile: Percentile = 10
    rate: Rate = 0.2
    cut: Share = 0.8
    fast: Decay = 0.8
    slow: Decay = 0.97
    start: Share = 0.3
    floor: Share = 0.1
    lift: AtLeastOne = 1.1
    margin: Floor = 0.5
    without_loss: Percentile = 25
    _: KW_ONLY
    warmup_steps: Steps = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.quantile = GeometricQuantile(self.percentile, self.rate)
        self.steady = GeometricQuantile(self.percentile, self.rate)
        self.losses = LossTrend(self.fast, self.slow)
        self.first_norms: list[float] = []  # until there are ten
        self.inclusive = self.warmup_steps == 0  # until the first norm is known

    def _start(self, warmup_norms: list[float]) -> None:
        norm = percentile_of(sorted(warmup_norms), self.percentile)
        self.steady.start(self._capped(norm))
        self.quantile.start(self.steady.get() if self.warmup_steps else self.start * norm)
        self.first_norms = [] if self.warmup_steps else [norm]
        self.inclusive = False

    def _restart(self, norms: list[float]) -> None:
        self._start(norms)
        self.quantile.start(self.steady.get())  # the slow start is for untrained weights
        self.first_norms = []

    def _threshold(self) -> float:
        return self.quantile.get()

    def _observe(self, norm: float, loss: float | None) -> None:
        above = norm > self.quantile.get()
        self.quantile.update(norm)
        self.steady.update(norm)
        if loss is None:
            other_percentile = exp(self.rate * (self.without_loss - self.percentile) / 100)
            self.quantile.scale(other_percentile)
            self.steady.scale(other_percentile)
        else:
            self.quantile.scale(self._factor(above))
        least = self.floor * self.steady.get()
        if self.quantile.get() < least:
            self.quantile.start(least)
        if self.first_norms:
            self._look_at_the_first([*self.first_norms, norm])

    def _look_at_the_first(self, norms: list[float]) -> None:
        """Start again if the first norm turns out to be far below those after it."""
        self.first_norms = norms if len(norms) < FIRST_NORMS else []
        if len(norms) == FIRST_NORMS and (usual := usual_norm(norms)) is not None:
            self.steady.start(usual)
            self.quantile.start(self.start * usual)

    def _factor(self, above: bool) -> float:
        """Factor that the loss puts on the threshold; `above`: the step was clipped."""
        if self.losses.rises(self.margin):
            return float(self.cut)
        return float(self.lift) if above and self.losses.falls(self.margin) else 1.0

    def _observe_loss(self, loss: float) -> None:
        self.losses.update(loss)
