"""What the spikes of a training have in common, and what to try where clipping does not help."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoclip.findings import Finding, Level
from autoclip.spikes.event import SpikeEvent, some

SEVERAL = 3
"""Events that make a pattern."""
NEAR = 100
"""Steps before an event in which updates may grow."""
GREW = 2.0
"""Factor by which they have grown then."""


def event_findings(
    events: Sequence[SpikeEvent], updates: tuple[NDArray[Any], NDArray[Any]] | None = None
) -> list[Finding]:
    """What the events of a training say: how many, then each cause that can be seen, with what to try.

    Args:
        events: of one training, by steps.
        updates: steps, and norms of the updates there (see `log.updates_every`); None: they were not measured.
    """
    if not events:
        return [Finding("good", "no spikes", {"spikes": 0})]
    steps = [event.step for event in events]
    words = {"norm": "of the norm", "loss": "of the loss"}
    kinds = [f"{count} {words.get(kind, kind)}" for kind, count in Counter(event.kind for event in events).items()]
    told = f"{len(events)} {'spike' if len(events) == 1 else 'spikes'} ({', '.join(kinds)}), at step {some(steps, 5)}"
    if len(events) >= SEVERAL and all(event.at["clipped"] or event.at["skipped"] for event in events):
        told += "; all were clipped or left out, and others followed: that bounds them, but leaves the cause"
    causes = [*_weights(events), *_batches(events), *_rates(events), *_leaders(events)]
    if updates is not None:
        causes += _updates(events, *updates)
    causes = causes or _losses(events)
    level: Level = "bad" if causes or len(events) >= SEVERAL else "note"
    return [Finding(level, told, {"spikes": len(events), "steps": steps}), *causes]


def _weights(events: Sequence[SpikeEvent]) -> list[Finding]:
    """Where numbers that are not finite began."""
    found = []
    broken = next((event for event in events if event.broken_weights), None)
    if broken is not None:
        told = (
            f"weights are not finite by step {broken.step}, in {some(broken.broken_weights)}: go back to a checkpoint "
            f"before it, as no clipping helps any more"
        )
        found.append(Finding("bad", told, {"weights": broken.broken_weights}))
    for name, count in Counter(event.nonfinite[0] for event in events if event.nonfinite).most_common(1):
        told = (
            f"gradients that are not finite began in {name} ({_times(count, events)}): look for a division, a root or "
            f"a logarithm after it, or compute that part in float32"
        )
        found.append(Finding("bad", told, {"parameter": name, "events": count}))
    return found


def _batches(events: Sequence[SpikeEvent]) -> list[Finding]:
    """Batches, or samples, that stood out more than once."""
    steps: dict[str, set[int]] = {}
    for event in events:
        out = [(event.step, event.batch), *((one["step"], one["batch"]) for one in event.further)]
        for name, earlier in event.repeated.items():
            own = [step for step, batch in out if name in map(str, batch if isinstance(batch, list) else [batch])]
            steps.setdefault(name, set()).update(earlier, own)
    if not steps:
        return []
    worst = sorted(steps, key=lambda name: -len(steps[name]))
    at = some(sorted(steps[worst[0]]), 5)
    told = (
        f"batch {worst[0]} stood out {len(steps[worst[0]])} times (step {at}), whenever it came: look at its data, "
        f"leave it out, or add skip=SkipStep(on='loss or norm')"
    )
    if len(worst) > 1:
        told += f"; so did {some(worst[1:])}"
    return [Finding("bad", told, {"batches": {name: sorted(steps[name]) for name in worst}})]


def _rates(events: Sequence[SpikeEvent]) -> list[Finding]:
    """Learning rates that jumped before a spike."""
    for event in events:
        if event.lr_before is not None:
            told = (
                f"the learning rate jumped from {event.lr_before:.3g} to {event.lr:.3g} before the spike at step "
                f"{event.step}: lower it, or let it rise over more steps"
            )
            return [Finding("bad", told, {"lr_before": event.lr_before, "lr": event.lr})]
    return []


def _leaders(events: Sequence[SpikeEvent]) -> list[Finding]:
    """A parameter whose weights moved, or which led most spikes."""
    found = []
    moved = Counter(event.moved[0]["name"] for event in events if event.moved)
    led = Counter(event.leaders[0]["name"] for event in events if event.leaders and not event.is_of_batch)
    of_batch = sum(event.is_of_batch for event in events)
    for name, count in moved.most_common(1):
        first = next(event.moved[0] for event in events if event.moved and event.moved[0]["name"] == name)
        told = (
            f"the weights of {name} changed in norm by a factor of {first['ratio']:.2g} within "
            f"{next(event.step for event in events if event.moved) - first['since']} steps, others did not "
            f"({_times(count, events)}): bound them, by weight decay or normalisation, or lower their learning rate"
        )
        found.append(Finding("bad", told, {"parameter": name, "events": count, "ratio": first["ratio"]}))
    for name, count in led.most_common(1):
        if count >= SEVERAL and 2 * count > len(events) and name not in moved:
            told = (
                f"{name} led {count} of {len(events)} spikes: scope='parameter' bounds it alone; a lower learning rate "
                f"for it, or a normalisation before it, removes the cause"
            )
            found.append(Finding("note", told, {"parameter": name, "events": count}))
    if of_batch >= SEVERAL and 2 * of_batch > len(events) and not found:
        told = (
            f"most layers' gradients rose together, or the loss of one step ({_times(of_batch, events)}): that is "
            f"a batch, not a layer: look at the batches (clipper.note names them), or add skip=SkipStep(on='loss or "
            f"norm')"
        )
        found.append(Finding("note", told, {"events": of_batch}))
    return found


def _losses(events: Sequence[SpikeEvent]) -> list[Finding]:
    """Losses that rose before any norm."""
    count = sum(event.first == "loss" for event in events)
    if 2 * count <= len(events):
        return []
    told = (
        f"the loss rose before any norm ({_times(count, events)}), which a threshold on norms cannot see: look at the "
        f"data and the learning rate there, or add skip=SkipStep(on='loss')"
    )
    return [Finding("bad", told, {"events": count})]


def _updates(events: Sequence[SpikeEvent], steps: NDArray[Any], norms: NDArray[Any]) -> list[Finding]:
    """Updates that grew before the spikes, as they can under Adam while the gradients are clipped."""
    for event in events:
        before = norms[(steps < event.step - NEAR) & np.isfinite(norms)][-NEAR:]
        near = norms[(steps >= event.step - NEAR) & (steps < event.step) & np.isfinite(norms)]
        if len(before) and len(near) and near.max() > GREW * np.median(before):
            ratio = float(near.max() / np.median(before))
            told = (
                f"the updates grew by a factor of {ratio:.2g} in the {NEAR} steps before the spike at step "
                f"{event.step}, which clipping gradients does not bound: under Adam take a smaller beta2, as .95, or a "
                f"lower learning rate"
            )
            return [Finding("bad", told, {"ratio": ratio})]
    return []


def _times(count: int, events: Sequence[SpikeEvent]) -> str:
    return f"{count} of {len(events)} {'spike' if len(events) == 1 else 'spikes'}"
