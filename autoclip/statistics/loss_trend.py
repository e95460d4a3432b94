"""Whether a loss rises or falls, by more than its noise."""

from math import hypot, inf, sqrt
from sys import float_info
from typing import Any

CERTAIN_WEIGHT = 0.25
"""Weight that the deviation has gathered before it limits the next loss: ten losses, at a decay of .97."""
LARGEST = float_info.max


class LossTrend:
    """A fast and a slow exponential average of a loss, and the standard deviation of the loss around the slow one.

        e = loss - slow,  at most `limit` corrected deviations sd / sqrt(w) to either side, once w > .25
        sd^2 <- d sd^2 + (1 - d) e^2,  w <- d w + 1 - d,  d = slow_decay;  both 0 at first
        slow <- d slow + (1 - d) (slow + e),  fast likewise;  both the first loss at first

    So in the first steps a rise counts at once, and a fall only when it is clear. The highest and the lowest slow
    average tell how far the loss has come. Neither the scale of the loss nor a constant added to it matters.

    Args:
        fast_decay: in [0, 1).
        slow_decay: in [0, 1).
        limit: > 0, in deviations, so that one wild loss counts little; inf: none.

    >>> trend = LossTrend()
    >>> for loss in (3.0, 2.0, 1.0, 0.5, 0.4):
    ...     trend.update(loss)
    >>> trend.rises(0.5), trend.falls(0.5)
    (False, True)
    """

    def __init__(self, fast_decay: float = 0.8, slow_decay: float = 0.97, limit: float = inf) -> None:
        self.fast_decay, self.slow_decay, self.limit = fast_decay, slow_decay, limit
        self._kept_share, self._new_share = sqrt(slow_decay), sqrt(1 - slow_decay)  # of the deviation
        self._averages: list[float] = []  # fast, slow, sd, w, highest and lowest slow; empty before the first loss

    def update(self, loss: float) -> None:
        """Add a finite loss."""
        if not self._averages:
            self._averages = [loss, loss, 0.0, 0.0, loss, loss]
            return
        fast, slow, deviation, weight, highest, lowest = self._averages
        surprise = loss - slow
        if weight > CERTAIN_WEIGHT and deviation > 0 and self.limit < inf:
            most = self.limit * deviation / sqrt(weight)
            if abs(surprise) > most:
                surprise = most if surprise > 0 else -most
                loss = slow + surprise
        spread = hypot(self._kept_share * deviation, self._new_share * surprise)
        slow = self.slow_decay * slow + (1 - self.slow_decay) * loss
        self._averages = [
            self.fast_decay * fast + (1 - self.fast_decay) * loss,
            slow,
            LARGEST if spread > LARGEST else spread,
            self.slow_decay * weight + (1 - self.slow_decay),
            slow if slow > highest else highest,
            slow if slow < lowest else lowest,
        ]

    def rises(self, margin: float, share: float = 0.0) -> bool:
        """Return True if fast - slow > max(margin * sd, share * (highest - lowest slow)).

        False before the first loss.
        """
        if not self._averages:
            return False
        fast, slow, deviation, _, highest, lowest = self._averages
        return fast - slow > margin * deviation and fast - slow > share * (highest - lowest)

    def falls(self, margin: float) -> bool:
        """Return True if slow - fast > margin * sd / sqrt(w); False before the second loss."""
        if not self._averages:
            return False
        fast, slow, deviation, weight, _, _ = self._averages
        return weight > 0 and slow - fast > margin * deviation / sqrt(weight)

    def state_dict(self) -> list[float]:
        """Both averages, the deviation and its weight, the extremes of the slow one; empty before the first loss."""
        return list(self._averages)

    def load_state_dict(self, state: Any) -> None:
        """Continue from the numbers of a `state_dict()`."""
        if len(state) not in (0, 6):
            raise ValueError(f"the state of a LossTrend has none or six numbers, got {state!r:.100}")
        self._averages = [float(value) for value in state]
