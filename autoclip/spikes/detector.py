"""Which steps stand out of those before them."""

from collections import deque
from math import exp, inf, isfinite, log
from statistics import median
from typing import Any, Literal

from autoclip.records import ClipRecord

Kind = Literal["norm", "loss", "not finite", "skipped"]

WINDOW = 128
"""Steps before a step that it is compared with."""
FEWEST = 64
"""With fewer of them nothing is said."""
LEAST_RATIO = 5.0
"""A norm stands out above this many times the median of those before ..."""
NORM_DEVIATIONS = 4.0
"""... and this many deviations: 1.4826 times the median distance from the median, of logarithms."""
STAYS = 8
"""A loss stands out when so many in a row ..."""
LOSS_DEVIATIONS = 6.0
"""... are this many deviations above the median ..."""
WILD_DEVIATIONS = 10.0
"""... or one is this many above it ..."""
WILD_SHARE = 0.25
"""... and undoes this share of all that the loss has fallen, which the noise of a converged training does not."""
EVERY = 32
"""Steps between two looks at the window."""


class Detector:
    """Compares each step with those before it, by medians, so that what stood out before hides nothing.

        norm        n > max(5 m, m exp(4 s)), and above the threshold; m, s: median, deviation of the 128 norms before
        loss        eight in a row above m + 6 s of the 128 losses before, or one above m + 10 s and m + (first - m) / 4
        not finite  the norm or the loss
        skipped     the clipper left the step out

    `norm_limit` and `loss_limit` are the bounds for the next step; `onset` is the number of steps by which what stood
    out last began before it was seen.
    """

    def __init__(self) -> None:
        self.norm_limit = self.loss_limit = self.wild_limit = inf
        self.first_loss: float | None = None
        self.onset = 0
        self.steps = 0
        self.high_losses = 0
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def look(self, record: ClipRecord) -> Kind | None:
        """Say what stands out in a step, and learn from it."""
        norm, loss = record.total_norm, record.loss
        self.onset = 0
        if not (record.finite and (loss is None or isfinite(loss))):
            return "not finite"
        kind: Kind | None = "skipped" if record.skipped else None
        if norm > self.norm_limit and (norm > record.threshold or record.threshold == inf):
            self._measure()
            if norm > self.norm_limit and kind is None:
                kind = "norm"
        if norm > 0:
            self._norms.append(norm)
        if loss is not None:
            self.high_losses = self.high_losses + 1 if loss > self.loss_limit else 0
            self._losses.append(loss)
            stays = self.high_losses == STAYS
            if kind is None and (stays or (self.high_losses == 1 and loss > self.wild_limit)):
                kind, self.onset = "loss", STAYS - 1 if stays else 0
        self.steps += 1
        if self.steps % EVERY == 0:
            self._measure()
        return kind

    def _measure(self) -> None:
        """Take the limits from the window; that of the loss stays while losses may be about to stay above it."""
        if len(self._norms) >= FEWEST:
            middle, deviation = spread([log(one) for one in self._norms])
            self.norm_limit = exp(min(middle + max(log(LEAST_RATIO), NORM_DEVIATIONS * deviation), 700.0))
        if len(self._losses) >= FEWEST and not 0 < self.high_losses < STAYS:
            middle, deviation = spread(self._losses)
            self.first_loss = middle if self.first_loss is None else self.first_loss
            self.loss_limit = middle + LOSS_DEVIATIONS * deviation
            self.wild_limit = middle + max(WILD_DEVIATIONS * deviation, WILD_SHARE * (self.first_loss - middle))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps are compared with, as plain values."""
        return {**vars(self), "_norms": [*self._norms], "_losses": [*self._losses]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict()`."""
        vars(self).update(state)
        self._norms, self._losses = (deque(state[name], maxlen=WINDOW) for name in ("_norms", "_losses"))


def spread(values: "deque[float] | list[float]") -> tuple[float, float]:
    """Median, and standard deviation by the median distance from it, as of a normal distribution."""
    middle = median(values)
    return middle, 1.4826 * median(abs(one - middle) for one in values)
