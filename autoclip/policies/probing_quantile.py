"""A running percentile that opens while training goes well, and steps back when the loss rises."""

from dataclasses import KW_ONLY, dataclass
from math import nextafter

from autoclip.policies.parameters import Floor, Percentile, Positive, Share, Steps, Window
from autoclip.policies.policy import Policy
from autoclip.statistics import FIRST_NORMS, LossTrend, SlidingQuantile, usual_norm

LIMIT = 2.5
"""A loss counts as this many standard deviations at most, so that one wild batch is no rise."""
LEAST = nextafter(0.0, 1.0)


@dataclass
class ProbingQuantile(Policy):
    """A percentile of recent norms that opens from low to high while all goes well, and steps back when the loss rises.

        first step:   C = start * norm, read before that step is clipped;  q = lowest
        each step:    q <- min(percentile, q + opening),  opening = pace at first, and again once q is `percentile`
                      C <- min(percentile q of the last `window` norms, (1 + growth) C)
        loss rises:   fast - slow average > margin * sd  and  > setback * (highest - lowest slow), see `LossTrend`
                      C <- max(cut * C, min(C, floor * median of the window))   instead
                      q <- max(lowest, q - step_back), opening <- memory * opening,   at most once in `pause` steps
        after ten:    C <- start * m   if m > 10 * first norm,  m = the third smallest of the first ten norms

    It probes how far the threshold may open, as network protocols probe the capacity of a link. What it promises:

    - A tame training is clipped in one step of ten, once q is open: after `(percentile - lowest) / pace` = 160 steps.
      The noise of a loss that has come down is no rise: a rise has to undo a tenth of the loss's range so far.
    - A spike is clipped. One wild loss is no rise: a loss counts as 2.5 standard deviations at most.
    - Where the learning rate is too high the loss rises again and again. Then q stays low: after each rise it opens
      more slowly. No explosion is followed: the threshold falls with the norms at once and rises by 3 % a step at most.
    - A loss that means nothing, as in adversarial training, is soon ignored. After `patience` step backs in a row, each
      within a window of the one before, closing has not helped: the loss counts again once q is open and a window has
      passed without a rise.

    Scale-free in norms and losses, and a constant added to the loss does not matter. A step without a loss is no rise.
    Without any loss, the high percentile and the bound on its growth are all there is.

    Args:
        percentile: in [0, 100], percentile of the norms that q opens to.
        lowest: in [0, percentile], where q begins; it steps back no further.
        window: >= 1, number of norms.
        start: in (0, 1], the first threshold as a share of the first norm.
        growth: > 0, largest rise of the threshold in a step, as a share.
        margin: >= 0, standard deviations by which the loss has to rise.
        setback: >= 0, share of its range so far by which the loss has to rise.
        cut: in (0, 1], factor on the threshold in a step of rising loss.
        floor: in (0, 1], share of the window's median below which nothing is cut.
        step_back: >= 0, points that q loses in a step back.
        pace: >= 0, points that q gains in a step at first.
        memory: in (0, 1], factor on that gain at each step back.
        pause: >= 0, least number of steps between two step backs.
        patience: >= 0, number of step backs in vain before the loss is ignored; 0 never listens to the loss.
        warmup_steps: 0 by default. Otherwise the threshold starts at percentile `lowest` of the warm-up's norms.

    Reference: our own, see `experiments/studies/default` and `experiments/studies/ablation`.
    """

    reads_loss = True

    percentile: Percentile = 90
    lowest: Percentile = 10
    window: Window = 100
    start: Share = 0.3
    growth: Positive = 0.03
    margin: Floor = 0.5
    setback: Floor = 0.1
    cut: Share = 0.8
    floor: Share = 0.1
    step_back: Floor = 40
    pace: Floor = 0.5
    memory: Share = 0.7
    pause: Steps = 10
    patience: Steps = 5
    _: KW_ONLY
    warmup_steps: Steps = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lowest > self.percentile:
            raise ValueError(f"lowest must be at most percentile, got {self.lowest:g} > {self.percentile:g}")
        self.norms = SlidingQuantile(self.window)
        self.losses = LossTrend(limit=LIMIT)
        self.current = 0.0
        self.q = self.lowest
        self.opening = self.pace
        self.since = self.pause + self.window  # steps since the latest step back, or rise not listened to
        self.in_vain = 0  # step backs in a row, each within a window of the one before
        self.first_norms: list[float] = []  # until there are ten
        self.inclusive = self.warmup_steps == 0  # until the first norm is known

    def _start(self, warmup_norms: list[float]) -> None:
        self.norms.extend(self._winsorized(warmup_norms))
        self.current = self.norms.get(self.q)
        self.inclusive = False
        if self.warmup_steps == 0:
            self.current = max(LEAST, self.start * self.current)
            self.first_norms = list(warmup_norms)

    def _restart(self, norms: list[float]) -> None:
        self._start(norms)
        self.current = self.norms.get(self.q)  # the slow start is for untrained weights
        self.first_norms = []

    def _threshold(self) -> float:
        return self.current

    def _observe(self, norm: float, loss: float | None) -> None:
        self.norms.update(norm)
        self.since += 1
        rises = loss is not None and self.losses.rises(self.margin, self.setback)
        if rises and self.in_vain < self.patience:
            self.current = max(self.cut * self.current, min(self.current, self.floor * self.norms.get(50)), LEAST)
            if self.since > self.pause:
                self._step_back()
        else:
            if rises:
                self.since = 0
            q = self.q = min(self.percentile, self.q + self.opening)
            self.current = min(self.norms.get(q), (1 + self.growth) * self.current)
            if q == self.percentile:
                self.opening = self.pace
                if self.since > self.window:
                    self.in_vain = 0
        if self.first_norms:
            self._look_at_the_first([*self.first_norms, norm])

    def _step_back(self) -> None:
        """Lower the percentile, or ignore the loss if that has not helped."""
        self.in_vain = self.in_vain + 1 if self.since <= self.window else 0
        self.since = 0
        if self.in_vain == self.patience:
            self.opening = self.pace
            return
        self.q = max(self.lowest, self.q - self.step_back)
        self.opening *= self.memory

    def _look_at_the_first(self, norms: list[float]) -> None:
        """Start again if the first norm turns out to be far below those after it."""
        self.first_norms = norms if len(norms) < FIRST_NORMS else []
        if len(norms) == FIRST_NORMS and (usual := usual_norm(norms)) is not None:
            self.current = self.start * usual

    def _observe_loss(self, loss: float) -> None:
        self.losses.update(loss)
