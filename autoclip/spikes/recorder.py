"""A sink that writes a file for every spike."""

import re
from collections import deque
from collections.abc import Callable, Sequence
from math import inf, isfinite
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any

from autoclip.recorded import Recorded
from autoclip.records import ClipRecord, Sink
from autoclip.run_directory import SPIKES
from autoclip.spikes.event import SpikeEvent
from autoclip.spikes.finder import MOST_LEADERS, SpikeFinder, Step
from autoclip.warn_once import WarnOnce

WEIGHTS_EVERY = 64
"""Steps between two looks at the norms of the weights."""
MOVED = 4.0
"""Weights have moved if their norm changed by this factor, and by this much more than in the median parameter."""
MOST_EVENTS = 200
"""Files of one training; further events are counted."""


class SpikeRecorder(Sink):
    """Tells at a spike which parameters and which batch made it, and writes `step-<n>.json` into a directory.

        recorder = autoclip.sinks.SpikeRecorder("spikes")
        clipper = autoclip.attach(optimizer, sinks=[recorder])
        for batch in loader:
            clipper.note(batch["index"])  # before the step; what the event calls the batch

    It keeps the latest 136 steps with the norms of all parameters, as the clipper measures them, on their device. It
    reads them when a step stands out: its norm is five times the median of the 128 before, four deviations above it,
    and above the threshold; its loss stays six deviations above for eight steps; one of the two is not finite; or the
    clipper left the step out. The 32 steps after it belong to the same event: its file is written again with them.
    `autoclip spikes DIRECTORY` prints the events, `autoclip report` draws them.

    Every 64 steps it measures the norm of all weights, to tell which of them changed. Under a host wait of False the
    event comes a step late. Under distributed training give it to one rank.

    Args:
        directory: of the files; made at the first event.
        optimizer: the learning rate of its first group is noted. None: that of the optimizer which the clipper was
            made from, if any.
        order: names of the parameters in forward order, see `autoclip.flow.forward_order`, to tell where a NaN began;
            None: that of registration.
        on_event: called with the `SpikeEvent` when it begins, before the optimizer's step: to save a checkpoint, to
            notify, or to raise. Its file is written already.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory, SpikeRecorder(directory) as recorder:
    ...     for step in range(99):
    ...         norm = 90.0 if step == 80 else 1.0 + step % 3
    ...         recorder.log(ClipRecord(step, "active", norm, 4.0, 4 / max(norm, 4), norm > 4, False, finite=True))
    ...     print(recorder.event)
    Step 80: the norm was 90, 45 times its median; the gradient was clipped to 4.
    """

    def __init__(
        self,
        directory: str | PathLike[str] = SPIKES,
        *,
        optimizer: Any = None,
        order: Sequence[str] | None = None,
        on_event: Callable[[SpikeEvent], object] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.optimizer = optimizer
        self.on_event = on_event
        self.events = 0
        self._finder = SpikeFinder(order)
        self._clipper: Recorded | None = None
        self._noted: list[Any] = []
        self._announced: dict[int, tuple[Any, float | None]] = {}
        self._weights: deque[tuple[int, list[str], Any]] = deque(maxlen=2)
        self._warn_once = WarnOnce()

    @property
    def event(self) -> SpikeEvent | None:
        """The event to which the steps belong now; None: none."""
        return self._finder.event

    def use_order(self, order: Sequence[str]) -> None:
        """Take the order of the parameters, where it is known only now."""
        self._finder.order = order

    def watch(self, clipper: Recorded) -> None:
        """Read norms, weights and learning rate of this clipper."""
        self._clipper = clipper

    def note(self, batch: Any) -> None:
        """Hear what the batch of the next step is called; with several batches in a step all of them are kept."""
        self._noted.append(batch)

    def announce(self, step: int) -> None:
        """Hear that a step is under way whose record follows later."""
        self._announced[step] = self._of_next()

    def log(self, record: ClipRecord) -> None:
        """Take the record of one step. What `on_event` raises goes through."""
        batch, lr = self._announced.pop(record.step) if record.step in self._announced else self._of_next()
        clipper, finder = self._clipper, self._finder
        before = finder.event
        norms = None if clipper is None else clipper.latest_norms
        if record.step % WEIGHTS_EVERY == 0:
            self._weights.append((record.step, *self._weighed()))
        begins = finder.take(Step(record, batch, lr, norms))
        if before is not None and finder.event is not before:
            self._write(before)  # with the steps after it
        if begins:
            self._begin()

    def close(self) -> None:
        """Write the event that is not complete."""
        if self._clipper is not None:
            self._clipper.settle()
        if self._finder.event is not None:
            self._write(self._finder.event)

    def state_dict(self) -> dict[str, Any]:
        """What later events depend on, as plain values, so that a resumed training has the same."""
        return {"events": self.events, **self._finder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict()`, and remove the files of events after it."""
        self.events = state["events"]
        self._finder.load_state_dict(state)
        self._weights.clear()
        latest = state["steps"][-1][0]["step"] if state["steps"] else -1
        for path in self.directory.glob("step-*.json"):
            number = re.fullmatch(r"step-(\d+)\.json", path.name)
            if number and int(number[1]) > latest:
                path.unlink()

    def _of_next(self) -> tuple[Any, float | None]:
        """Batch and learning rate of the step under way."""
        noted, self._noted = self._noted, []
        optimizer = self.optimizer
        if optimizer is None and self._clipper is not None:
            optimizer = self._clipper.optimizer
        batch = None if not noted else noted[0] if len(noted) == 1 else noted
        return batch, None if optimizer is None else float(optimizer.param_groups[0]["lr"])

    def _begin(self) -> None:
        event = self._finder.event
        assert event is not None
        self.events += 1
        self._add_weights(event)
        self._write(event)
        if self.on_event is not None:
            self.on_event(event)

    def _write(self, event: SpikeEvent) -> None:
        if self.events > MOST_EVENTS:
            self._warn_once(
                "many", f"more than {MOST_EVENTS} spikes: those after step {event.step} are counted, not written"
            )
            return
        event.write(self.directory)

    def _weighed(self) -> tuple[list[str], Any]:
        """Names and norms of the weights, without a wait."""
        parameters = {} if self._clipper is None else self._clipper.parameters
        if not parameters:
            return [], None
        from autoclip.gradients.updates import weight_norms  # needs torch, a sink does not

        return [*parameters], weight_norms(parameters)

    def _add_weights(self, event: SpikeEvent) -> None:
        """Which weights are not finite, and which changed much more than the others since the look before the last."""
        if self._clipper is None or not self._weights or not self._weights[0][1]:
            return
        since, names, then = self._weights[0]
        current, norms = self._weighed()
        now = dict(zip(current, norms.tolist(), strict=True))
        event.broken_weights = [name for name, norm in now.items() if not isfinite(norm)]
        ratios = {
            name: now[name] / norm
            for name, norm in zip(names, then.tolist(), strict=True)
            if norm > 0 and 0 < now.get(name, 0.0) < inf and self._clipper.parameters[name].ndim > 1
        }
        changes = {name: max(ratio, 1 / ratio) for name, ratio in ratios.items()}
        least = MOVED * median(changes.values()) if changes else 0.0
        moved = [{"name": name, "ratio": ratios[name], "since": since} for name, one in changes.items() if one > least]
        event.moved = sorted(moved, key=lambda one: -changes[one["name"]])[:MOST_LEADERS]
