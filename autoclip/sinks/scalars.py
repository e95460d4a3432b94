"""Records of steps as named numbers, thinned out without losing a spike."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any, Protocol

from autoclip.records import ClipRecord, clip_rate, is_active, mean_coefficient
from autoclip.warn_once import WarnOnce

RECENT = 100
"""Number of active steps that the recent clip rate is of, where a window is not longer."""


class Watched(Protocol):
    """What a sink can read of a clipper, besides the records."""

    @property
    def clip_rate(self) -> float:
        """Share of the active steps in which anything was clipped; NaN before the first."""

    @property
    def mean_coefficient(self) -> float:
        """Mean coefficient of the active steps; NaN before the first."""

    @property
    def skipped_steps(self) -> int:
        """Number of skipped steps."""

    def layer_norms(self) -> dict[str, float]:
        """Norm of each parameter's gradient in the latest step."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Name -> parameter."""

    def settle(self) -> None:
        """Record the latest step, if that was not done yet."""


class Scalars:
    """Collects records, and at the last of every `every` steps gives the numbers to plot.

    A window ends where (step + 1) is a multiple of `every`, so that a resumed run has the same windows. Its numbers:

        total_norm        mean of the norms before clipping;  total_norm_max: their largest
        clipped_norm      mean of the norms after clipping;   clipped_norm_max
        threshold         mean of the thresholds that were no inf
        coefficient       mean of the factors;                coefficient_min
        loss              mean, where the loop gave one;      loss_max
        clip_rate         share of the active steps in which anything was clipped, so far
        recent_clip_rate  the same of the last 100 active steps, or of the last `every`, if those are more
        mean_coefficient  share of the gradient's length that is left: mean coefficient of the active steps, so far
        skipped_steps     number so far;  nonfinite_steps: number of non-finite norms that this sink was told of
        skipped_by_norm   of the skipped steps that it was told of, those whose norm stood out;  skipped_by_loss: whose
                          loss did (a step may count in both); missing before the first
        layer_norm/<name> norm of that parameter's gradient before clipping, of every `layers_every`-th step
        update_norm       norm of what the optimizer's step before this record changed (see `UpdateNorm`)

    The largest and smallest are left out if a window is one step. Numbers that are not finite are left out of means. A
    number without any finite value in a window is missing there, and so are rates before the first active step. Clip
    rate, mean coefficient and skipped steps are the watched clipper's; without one, those of the records since the sink
    was made.

    Args:
        every: steps of a window.
        layers_every: steps between layer norms, which are read from the device; None: never.
        updates_every: steps between norms of updates, each of which costs a copy of the parameters; None: never.

    Raises:
        ValueError: one of them is not a whole number >= 1.
    """

    def __init__(self, every: int = 1, layers_every: int | None = None, updates_every: int | None = None) -> None:
        self.every = checked_every("every", every)
        self.layers_every = None if layers_every is None else checked_every("layers_every", layers_every)
        self.updates_every = None if updates_every is None else checked_every("updates_every", updates_every)
        self._update: Any = None  # an UpdateNorm
        self._update_norms: list[float] = []  # measured, not taken yet
        self._looked = -1  # step
        self._watched: Watched | None = None
        self._records: list[ClipRecord] = []
        self._recent: deque[bool] = deque(maxlen=max(self.every, RECENT))
        self._active = self._clipped = self._skipped = self._nonfinite = 0
        self._skipped_by: Counter[str] = Counter()
        self._coefficients = 0.0  # their sum over the active steps
        self._warn_once = WarnOnce()

    def watch(self, clipper: Watched) -> None:
        """Read layer norms, and rates that survive a resume, from this clipper."""
        self._watched = clipper

    def take(self, record: ClipRecord) -> dict[str, float]:
        """The numbers to plot at the step of this record; empty in the middle of a window."""
        if self._records and record.step <= self._records[-1].step:  # the loop was set back
            self._records = [one for one in self._records if one.step < record.step]
        self._records.append(record)
        self._count(record)
        scalars = self._flushed() if (record.step + 1) % self.every == 0 else {}
        if self.layers_every is not None and record.step % self.layers_every == 0:
            scalars |= self._layers()
        if not self._looked - 1 <= record.step <= self._looked:  # else it was announced
            self.announce(record.step)
        if self._update_norms:
            scalars["update_norm"] = self._update_norms.pop()
        return scalars

    def announce(self, step: int) -> None:
        """Look at the parameters before a step, whose record may follow later."""
        if self.updates_every is None:
            return
        self._looked = step
        parameters = {} if self._watched is None else self._watched.parameters
        if not parameters:
            self._tell_of_none("updates_every")
            return
        if self._update is None:
            from autoclip.gradients.updates import UpdateNorm  # needs torch, a sink does not

            self._update = UpdateNorm()
        norm = self._update.after()
        if norm is not None and isfinite(norm):
            self._update_norms = [norm]
        if step % self.updates_every == 0:
            self._update.before(parameters)

    def rest(self) -> tuple[int, dict[str, float]]:
        """Step and numbers of the unfinished window, which this ends."""
        if self._watched is not None:
            self._watched.settle()
        return (self._records[-1].step, self._flushed()) if self._records else (0, {})

    def _count(self, record: ClipRecord) -> None:
        self._skipped += record.skipped
        if record.skipped_by is not None:
            self._skipped_by.update(record.skipped_by.split(" and "))
        self._nonfinite += not record.finite
        if is_active(record.phase, record.total_norm):
            self._active += 1
            self._clipped += record.clipped
            self._coefficients += record.coefficient
            self._recent.append(record.clipped)

    def _flushed(self) -> dict[str, float]:
        records, self._records = self._records, []
        scalars = summarised(records, extremes=self.every > 1)
        watched = self._watched
        rates = {
            "clip_rate": clip_rate(self._clipped, self._active) if watched is None else watched.clip_rate,
            "recent_clip_rate": clip_rate(sum(self._recent), len(self._recent)),
            "mean_coefficient": mean_coefficient(self._coefficients, self._active)
            if watched is None
            else watched.mean_coefficient,
        }
        scalars |= {name: rate for name, rate in rates.items() if isfinite(rate)}
        scalars["skipped_steps"] = float(self._skipped if watched is None else watched.skipped_steps)
        scalars["nonfinite_steps"] = float(self._nonfinite)
        scalars |= {f"skipped_by_{reason}": float(count) for reason, count in self._skipped_by.items()}
        return scalars

    def _layers(self) -> dict[str, float]:
        norms = {} if self._watched is None else self._watched.layer_norms()
        if not norms:
            self._tell_of_none("layers_every")
        return {f"layer_norm/{name}": norm for name, norm in norms.items() if isfinite(norm)}

    def _tell_of_none(self, setting: str) -> None:
        self._warn_once(
            setting, f"{setting} was given, but the sink knows no clipper of parameters: call its watch(clipper)"
        )


def summarised(records: Sequence[ClipRecord], *, extremes: bool) -> dict[str, float]:
    """Means of the records' finite numbers by name; if asked for, also their largest (of coefficients: smallest)."""
    columns: dict[str, tuple[Iterable[float | None], Callable[[list[float]], float] | None]] = {
        "loss": ((one.loss for one in records), max),
        "total_norm": ((one.total_norm for one in records), max),
        "clipped_norm": ((one.total_norm * one.coefficient for one in records if one.finite), max),
        "threshold": ((one.threshold for one in records), None),
        "coefficient": ((one.coefficient for one in records if one.finite), min),
    }
    scalars = {}
    for name, (values, extreme) in columns.items():
        finite = [value for value in values if value is not None and isfinite(value)]
        if not finite:
            continue
        scalars[name] = sum(value / len(finite) for value in finite)  # the sum of the values could overflow
        if extremes and extreme is not None:
            scalars[f"{name}_{extreme.__name__}"] = extreme(finite)
    return scalars


def checked_every(name: str, value: int) -> int:
    """A number of steps.

    Raises:
        ValueError: it is not a whole number >= 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of steps >= 1, got {value!r}")
    return value
