"""A candidate for the default, with every constant a setting, so that the study can change one at a time."""

from math import hypot, sqrt
from typing import Any

from autoclip.policies import Policy
from autoclip.statistics import SlidingQuantile

CERTAIN_LOSSES = 10
"""Losses after which their deviation is known well enough to limit the next one."""


class Net(Policy):
    """A high percentile of recent norms that rises slowly, and a brake for a loss that keeps rising.

        first step:  C = start * norm, read before that step is clipped
        then:        C <- min(percentile q of the last `window` norms, (1 + g) C)
                     g = lift where the loss falls: slow - fast > fall * sd / sqrt(w), else grow
        trouble:     the loss rises: fast - slow > margin * sd
                     C <- max(cut * C, floor * median of the window), where C lies above that floor
                     q <- max(low, q - drop) and pace <- memory * pace, at most once in `pause` steps
        otherwise:   q <- min(high, q + pace), pace = reopen at first

    `fast` and `slow` are exponential averages of the loss, sd is the decayed standard deviation of its innovations
    (loss - slow), and w the weight that sd has gathered. After ten losses an innovation counts at most `limit` standard
    deviations, so that one wild batch is no trouble. Scale-free in norms and losses. In steps without a loss there is
    neither lift nor trouble.

    Args:
        high: percentile without trouble.
        low: least percentile.
        window: number of norms.
        grow: largest rise of the threshold in a step, as a share.
        lift: the same while the loss falls; None: as `grow`.
        start: first threshold as a share of the first norm.
        margin: standard deviations by which the loss rises in trouble.
        fall: standard deviations of the average by which it falls where `lift` counts.
        limit: standard deviations that an innovation counts at most.
        cut: factor on the threshold in a step of trouble.
        floor: share of the median below which trouble does not cut.
        drop: points that the percentile loses at a trouble.
        reopen: points that it gains in a step without trouble.
        memory: factor on `reopen` at each trouble.
        pause: steps between two troubles that lower the percentile.
        fast: decay of the fast average.
        slow: decay of the slow one.
        brake: False: there is no trouble.
        warmup_steps: 0, or norms to collect first.
        **bounds: see `Policy`.
    """

    def __init__(
        self,
        high: float = 90.0,
        low: float = 10.0,
        window: int = 100,
        grow: float = 0.01,
        lift: float | None = None,
        start: float = 0.3,
        margin: float = 1.0,
        fall: float = 0.5,
        limit: float = 3.0,
        cut: float = 0.8,
        floor: float = 0.1,
        drop: float = 80.0,
        reopen: float = 0.25,
        memory: float = 0.7,
        pause: int = 10,
        fast: float = 0.8,
        slow: float = 0.97,
        brake: bool = True,
        *,
        warmup_steps: int = 0,
        **bounds: Any,
    ) -> None:
        super().__init__(warmup_steps=warmup_steps, **bounds)
        self.high, self.low, self.window, self.grow, self.lift, self.start = high, low, window, grow, lift, start
        self.margin, self.fall, self.limit, self.cut, self.floor = margin, fall, limit, cut, floor
        self.drop, self.reopen, self.memory, self.pause = drop, reopen, memory, pause
        self.fast, self.slow, self.brake = fast, slow, brake
        self.norms = SlidingQuantile(window)
        self.current = 0.0
        self.q, self.pace, self.since = high, reopen, pause
        self.losses: list[float] = []  # fast and slow average, sd, its weight, number of losses
        self.troubles = 0
        self.inclusive = warmup_steps == 0  # until the first norm is known

    def _start(self, warmup_norms: list[float]) -> None:
        self.norms.extend(warmup_norms)
        self.current = self.start * warmup_norms[-1]
        self.inclusive = False

    def _restart(self, norms: list[float]) -> None:
        self.norms.extend(norms)
        self.current = self.norms.get(self.q)

    def _threshold(self) -> float:
        return self.current

    def _observe(self, norm: float, loss: float | None) -> None:
        self.norms.update(norm)
        self.since += 1
        if self.brake and loss is not None and self._rises():
            self.troubles += 1
            if self.since > self.pause:
                self.q, self.since, self.pace = max(self.low, self.q - self.drop), 0, self.pace * self.memory
            least = min(self.floor * self.norms.get(50), self.current)
            self.current = max(self.cut * self.current, least)
            return
        self.q = min(self.high, self.q + self.pace)
        lifted = self.lift is not None and loss is not None and self._falls()
        grow = self.lift if lifted and self.lift is not None else self.grow
        self.current = min(self.norms.get(self.q), self.current * (1 + grow))

    def _observe_loss(self, loss: float) -> None:
        if not self.losses:
            self.losses = [loss, loss, 0.0, 0.0, 0.0]
            return
        fast, slow, sd, weight, count = self.losses
        step = loss - slow
        if count > CERTAIN_LOSSES and sd > 0:
            most = self.limit * sd / sqrt(weight)
            step = max(-most, min(most, step))
        loss = slow + step
        self.losses = [
            self.fast * fast + (1 - self.fast) * loss,
            self.slow * slow + (1 - self.slow) * loss,
            hypot(sqrt(self.slow) * sd, sqrt(1 - self.slow) * step),
            self.slow * weight + 1 - self.slow,
            count + 1,
        ]

    def _rises(self) -> bool:
        fast, slow, sd, _, _ = self.losses
        return fast - slow > self.margin * sd

    def _falls(self) -> bool:
        fast, slow, sd, weight, _ = self.losses
        return weight > 0 and slow - fast > self.fall * sd / sqrt(weight)
