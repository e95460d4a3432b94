"""From the steps of a training to its events."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from math import hypot, inf, isfinite, nan
from statistics import median
from typing import Any, NamedTuple

from autoclip.records import ClipRecord, restored
from autoclip.spikes.detector import STAYS, WINDOW, Detector, Kind
from autoclip.spikes.event import SpikeEvent, flat, ids

BEFORE = 32
"""Steps before an event that it keeps."""
AFTER = 32
"""What stands out within so many steps after an event began belongs to it."""
LEAST_SHARE = 0.05
"""A parameter leads if at least this share of the rise of the squared norm is its own."""
ALIKE = 4.0
"""Layers rose alike if their factors differ by no more than this."""
MOST_LEADERS = 8
MOST_PARAMETERS = 128
"""An event keeps the norms of so many parameters, of those with the largest norms."""
LR_JUMP = 2.5
"""Factor between two steps at which a learning rate has jumped; a schedule takes smaller steps."""
MOST_BATCHES = 1000
"""Ids of batches that stood out, which are remembered."""


class Step(NamedTuple):
    """A step as it is kept.

    Attributes:
        record: of the clipper.
        batch: what was noted for it, as it is.
        lr: learning rate; None: unknown.
        norms: names of the parameters, and an array or tensor with the norms of their gradients; None: unknown.
    """

    record: ClipRecord
    batch: Any = None
    lr: float | None = None
    norms: tuple[Collection[str], Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The line of `metrics.jsonl`, with the batch."""
        return restored(self.record.as_json(self.lr)) | {"batch": ids(self.batch)}


class SpikeFinder:
    """Keeps the latest steps, and makes an event where one stands out.

    `event` is the latest, to which the next 32 steps are added; None: there was none, or it is complete.

    Args:
        order: names of the parameters in forward order; None: as measured.
    """

    def __init__(self, order: Sequence[str] | None = None) -> None:
        self.order = order
        self.event: SpikeEvent | None = None
        self._detector = Detector()
        self._steps: deque[Step] = deque(maxlen=WINDOW + STAYS)
        self._batches: dict[str, list[int]] = {}

    def take(self, step: Step) -> bool:
        """Look at a step; returns True if an event begins with it."""
        kind = self._detector.look(step.record)
        self._steps.append(step)
        event = self.event
        while len(self._steps) > 1 and self._steps[-2].record.step >= step.record.step:  # the loop was set back
            del self._steps[-2]
        if event is not None and (
            not event.step <= step.record.step <= event.step + AFTER
            or (event.kind == "skipped" and kind not in (None, "skipped"))  # that one had an effect
        ):
            event = self.event = None
        if event is not None:
            event.steps.append(step.as_json())
            now = _by_name(step)
            for name, norms in event.norms.items():
                norms.append(now.get(name))
            if kind is not None:
                event.further.append({"step": step.record.step, "kind": kind, "batch": ids(step.batch)})
                self._compare_batch(event, step)
            return False
        if kind is None:
            return False
        self.event = self._begin(kind)
        self._compare_batch(self.event, step)
        return True

    def _begin(self, kind: Kind) -> SpikeEvent:
        """The event that the latest step shows; a loss that stays high began some steps before."""
        steps = [*self._steps]
        onset = max(len(steps) - 1 - self._detector.onset, 0)
        before, at, around = steps[:onset], steps[onset], steps[max(onset - BEFORE, 0) :]
        norms = [one.record.total_norm for one in before if 0 < one.record.total_norm < inf]
        norm, middle = at.record.total_norm, median(norms) if norms else 0.0
        event = SpikeEvent(
            step=at.record.step,
            kind=kind,
            norm=norm,
            ratio=norm / middle if middle and isfinite(norm) else None,
            norm_limit=self._detector.norm_limit,
            loss_limit=self._detector.loss_limit,
            sudden=at.record.loss is not None and at.record.loss > self._detector.wild_limit,
            lr=at.lr,
            lr_before=_before_jump([one.lr for one in [*before, at]]),
            batch=ids(at.batch),
            steps=[one.as_json() for one in around],
        )
        _add_parameters(event, [_by_name(one) for one in steps], onset, self.order)
        return event

    def _compare_batch(self, event: SpikeEvent, step: Step) -> None:
        """Remember what the batch of a step that stood out was made of, and what of that stood out before.

        An id that is also in a kept step which did not stand out is no suspect.
        """
        found = {str(one): one for one in flat(ids(step.batch))}
        out = {at for steps in self._batches.values() for at in steps}
        known = [name for name in found if name in self._batches]
        if known:
            calm = (one for one in self._steps if one is not step and one.record.step not in out)
            known = [*set(known).difference(*([*map(str, flat(ids(one.batch)))] for one in calm))]
        event.repeated |= {name: [*self._batches[name]] for name in found if name in known}
        for name in found:
            self._batches.setdefault(name, []).append(step.record.step)
        while len(self._batches) > MOST_BATCHES:
            del self._batches[next(iter(self._batches))]

    def state_dict(self) -> dict[str, Any]:
        """What later events depend on, as plain values; norms of parameters are not in it."""
        return {
            "detector": self._detector.state_dict(),
            "event": None if self.event is None else asdict(self.event),
            "batches": self._batches,
            "steps": [[asdict(one.record), ids(one.batch), one.lr] for one in self._steps],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict()`."""
        self._detector.load_state_dict(state["detector"])
        self.event = None if state["event"] is None else SpikeEvent(**state["event"])
        self._batches = {name: [*steps] for name, steps in state["batches"].items()}
        self._steps.clear()
        self._steps += [Step(ClipRecord(**record), batch, lr) for record, batch, lr in state["steps"]]


def events_of(records: Iterable[ClipRecord]) -> list[SpikeEvent]:
    """Events of a training of which only the records are known: neither parameters nor batches."""
    finder = SpikeFinder()
    return [event for record in records if finder.take(Step(record)) and (event := finder.event) is not None]


def _add_parameters(
    event: SpikeEvent, rows: Sequence[Mapping[str, float]], onset: int, order: Sequence[str] | None
) -> None:
    """Which parameters led, from the norms of their gradients in the step at `onset` and before."""
    now, before = rows[onset], rows[:onset]
    if not now:
        return
    now = {name: now[name] for name in order or () if name in now} or now
    usual = {name: [norm for row in before if 0 < (norm := row.get(name, nan)) < inf] for name in now}
    medians = {name: median(norms) for name, norms in usual.items() if norms}
    broken = [name for name, norm in now.items() if not isfinite(norm)]
    if broken:
        names = [*now]
        last = names.index(broken[-1])
        event.nonfinite = names[last : last + 2] if len(broken) < len(now) else []
    else:
        rises = {name: norm**2 - medians.get(name, 0.0) ** 2 for name, norm in now.items()}
        least = LEAST_SHARE * sum(rise for rise in rises.values() if rise > 0)
        leaders: list[dict[str, Any]] = [
            {
                "name": name,
                "norm": now[name],
                "median": medians.get(name),
                "ratio": _ratio(now[name], medians.get(name)),
            }
            for name, rise in rises.items()
            if rise > least
        ]
        event.share = _share(now, medians)
        event.leaders = sorted(leaders, key=lambda one: -(one["ratio"] or inf))[:MOST_LEADERS]
    kept = sorted(now, key=lambda name: -medians.get(name, inf))[:MOST_PARAMETERS]
    event.medians = {name: one for name, one in medians.items() if name in kept}
    event.norms = {name: [row.get(name) for row in rows[max(onset - BEFORE, 0) :]] for name in now if name in kept}


def _by_name(step: Step) -> dict[str, float]:
    """Parameter -> norm of its gradient."""
    return {} if step.norms is None else dict(zip(step.norms[0], step.norms[1].tolist(), strict=True))


def _share(now: Mapping[str, float], medians: Mapping[str, float]) -> float:
    """Share of the layers that rose at least a quarter as much as the one that rose most; 0 with one layer."""
    sums: dict[str, list[float]] = {}
    for name, middle in medians.items():
        parts = sums.setdefault(name.rpartition(".")[0] or name, [0.0, 0.0])
        parts[0], parts[1] = hypot(parts[0], now[name]), hypot(parts[1], middle)
    ratios = [norm / middle for norm, middle in sums.values()]
    return sum(ratio >= max(ratios) / ALIKE for ratio in ratios) / len(ratios) if len(ratios) > 1 else 0.0


def _ratio(norm: float, middle: float | None) -> float | None:
    return None if middle is None else norm / middle


def _before_jump(rates: Sequence[float | None]) -> float | None:
    """The learning rate before it jumped last; None: it did not."""
    pairs = [*pairwise(rates)]
    return next((one for one, after in reversed(pairs) if one and after and after / one >= LR_JUMP), None)
