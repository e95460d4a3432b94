"""What is known of a spike: the step, the parameters and the batch, and what the clipper did."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import inf, isfinite, isnan
from pathlib import Path
from typing import Any, Literal

from autoclip.errors import UsageError
from autoclip.run_directory import json_text, read_json, write_atomically
from autoclip.spikes.detector import Kind

HALF = 0.5
"""Share of the layers that rise alike at a broken batch."""


@dataclass
class SpikeEvent:
    """One spike, with the steps around it. `str()` tells it in some sentences.

    Attributes:
        step: at which it began; a loss that stays high began with the first high one.
        kind: what stood out first: "norm", "loss", "not finite" or "skipped".
        norm: total norm of that step before clipping.
        ratio: that norm over the median of the steps before; None: it is not finite, or there were none.
        norm_limit: norm above which a step stood out then; inf: none did.
        loss_limit: the same of the loss.
        leaders: parameters that made the norm rise, largest ratio first: `name`, `norm`, `median` of the steps before,
            `ratio` of the two (None where there is no median).
        share: of the layers, whose norms rose at least a quarter as much as that of the layer that rose most.
        sudden: the loss of this one step was far above those before.
        nonfinite: the first parameter on the way back whose gradient is not finite, and the one before it there, if
            any; empty: none is so, or all are, as after a loss that is not finite.
        broken_weights: parameters whose weights are not finite.
        moved: parameters whose weights changed much more than the others' of late, the most first: `name`, `ratio` of
            their norm now and then, `since` (a step).
        lr: learning rate; None: unknown.
        lr_before: the one before it jumped, within the steps before; None: it did not.
        batch: what the loop noted for the step; None: nothing.
        repeated: those of its ids that stood out at earlier steps, as the list of these steps.
        further: later steps that belong to it: `step`, `kind`, `batch`.
        steps: those around it, as in `metrics.jsonl`, each with its `batch`.
        norms: by parameter the norms at `steps`; None: unknown.
        medians: by parameter the median norm of the steps before.
        rewound_to: step that the training went back to; None: it did not.
    """

    step: int
    kind: Kind
    norm: float
    ratio: float | None
    norm_limit: float
    loss_limit: float
    leaders: list[dict[str, Any]] = field(default_factory=list)
    share: float = 0.0
    sudden: bool = False
    nonfinite: list[str] = field(default_factory=list)
    broken_weights: list[str] = field(default_factory=list)
    moved: list[dict[str, Any]] = field(default_factory=list)
    lr: float | None = None
    lr_before: float | None = None
    batch: Any = None
    repeated: dict[str, list[int]] = field(default_factory=dict)
    further: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    norms: dict[str, list[float | None]] = field(default_factory=dict)
    medians: dict[str, float] = field(default_factory=dict)
    rewound_to: int | None = None

    @property
    def at(self) -> dict[str, Any]:
        """The line of the step itself."""
        return next(line for line in self.steps if line["step"] == self.step)

    @property
    def first(self) -> Literal["norm", "loss", "both"] | None:
        """What stood out first in the steps around it; None: neither did, or there was no loss."""
        norm = self._first_above("total_norm", self.norm_limit)
        loss = self._first_above("loss", self.loss_limit)
        if norm == loss:
            return None if norm == inf else "both"
        return "norm" if norm < loss else "loss"

    def _first_above(self, name: str, limit: float) -> float:
        """First step whose value is above a limit, or not finite; inf: none."""
        values = ((line["step"], line[name]) for line in self.steps)
        return min((step for step, one in values if one is not None and not one <= limit), default=inf)

    def write(self, directory: Path, mark: str = "") -> None:
        """Write `step-<n>.json`, with a mark before the ending, at once: a kill leaves the whole file or none.

        Raises:
            OSError: it cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / f"step-{self.step}{mark}.json", json_text(asdict(self)) + "\n")

    def told(self) -> str:
        """What happened, and what the clipper did."""
        line = self.at
        if self.kind == "not finite":
            what = f"the {'norm' if not isfinite(self.norm) else 'loss'} was not finite"
        elif self.kind == "loss":
            what = f"the loss rose to {line['loss']:.3g}, above {self.loss_limit:.3g}"
        else:
            times = "" if self.ratio is None else f", {factor_text(self.ratio)} its median"
            what = f"the norm was {self.norm:.3g}{times}"
        if line["skipped"]:
            did = "the step was left out"
        elif line["coefficient"] == 0:
            did = "the gradient was made zero"
        elif line["clipped"]:
            did = f"the gradient was clipped to {line['threshold']:.3g}"
        else:
            did = "nothing was clipped"
        order = {"norm": "; the norm moved first", "loss": "; the loss moved first"}.get(self.first or "", "")
        told = f"step {self.step}: {what}{'' if isnan(line['coefficient']) else f'; {did}'}"
        return told + (order if line["loss"] is not None else "")

    @property
    def is_of_batch(self) -> bool:
        """True if it looks like a batch, not a layer: half of the layers rose alike, or the loss jumped."""
        return self.share >= HALF or self.sudden

    def evidence(self) -> list[str]:
        """What may have caused it, the surest first, a sentence without its period each."""
        found = []
        if self.broken_weights:
            found.append(f"weights that are not finite: {some(self.broken_weights)}")
        elif self.nonfinite:
            after = f", after {self.nonfinite[1]}" if self.nonfinite[1:] else ""
            found.append(f"on its way back the gradient was first not finite in {self.nonfinite[0]}{after}")
        if self.lr_before is not None:
            found.append(f"the learning rate had jumped from {self.lr_before:.3g} to {self.lr:.3g}")
        for one, steps in self.repeated.items():
            found.append(f"batch {one} stood out before, at step {some(steps)}")
        if self.moved:
            told = [f"{one['name']} ({factor_text(one['ratio'])} since step {one['since']})" for one in self.moved]
            found.append(f"weights whose norm changed: {some(told)}")
        if self.leaders:
            ratios = ["new" if one["ratio"] is None else factor_text(one["ratio"]) for one in self.leaders]
            told = [f"{one['name']} ({ratio})" for one, ratio in zip(self.leaders, ratios, strict=True)]
            rose = "gradients rose in most layers" if self.share >= HALF else "gradients that led"
            found.append(f"{rose}, by their own median: {some(told)}")
        if self.batch is not None and not self.repeated:
            found.insert(0 if self.is_of_batch and not found[1:] else len(found), f"batch {some(flat(self.batch))}")
        return found

    @property
    def named(self) -> str | None:
        """The first suspect: a parameter, "learning rate", or "batch <id>"; None: nothing stands out."""
        if self.broken_weights or self.nonfinite:
            return [*self.broken_weights, *self.nonfinite][0]
        if self.lr_before is not None:
            return "learning rate"
        if self.repeated:
            return f"batch {next(iter(self.repeated))}"
        if self.moved or not self.is_of_batch or self.batch is None:
            return next((str(one["name"]) for one in [*self.moved, *self.leaders]), None)
        return f"batch {some(flat(self.batch))}"

    def __str__(self) -> str:
        return " ".join(f"{one[0].upper()}{one[1:]}." for one in (self.told(), *self.evidence()))


def read_events(directory: Path) -> list[SpikeEvent]:
    """Events in a folder of `step-<n>.json`, by steps.

    Raises:
        RunError: a file there is no JSON.
        UsageError: it is no event.
    """
    events, known = [], {one.name for one in fields(SpikeEvent)}
    for path in directory.glob("step-*.json"):
        values = read_json(path) or {}
        if not {"step", "steps", "kind", "norm"} <= {*values} <= known:
            raise UsageError(f"{path} is no event of a SpikeRecorder: move it away")
        events.append(SpikeEvent(**values))
    return sorted(events, key=lambda event: event.step)


def batch_name(batch: Any, otherwise: Any) -> Any:
    """What a batch is called: by its entry "index", "indices", "idx", "id" or "ids", if it is a dict that has one."""
    keys = ("index", "indices", "idx", "id", "ids")
    found = next((key for key in keys if key in batch), None) if isinstance(batch, Mapping) else None
    return otherwise if found is None else batch[found]


def ids(batch: Any) -> Any:
    """What a loop noted of a batch as plain values; a tensor or array becomes a list."""
    plain = batch.tolist() if hasattr(batch, "tolist") else batch
    if isinstance(plain, list | tuple | set):
        return [ids(one) for one in plain]
    return plain if plain is None or isinstance(plain, str | int | float) else str(plain)


def flat(batch: Any) -> list[Any]:
    """Every id in what was noted."""
    if isinstance(batch, list):
        return [one for part in batch for one in flat(part)]
    return [] if batch is None else [batch]


def some(names: Sequence[Any], most: int = 3) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(map(str, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def factor_text(ratio: float) -> str:
    """A ratio to two digits."""
    return f"{ratio:.2g} times" if ratio < 100 else f"{ratio:.0f} times" if ratio < 1e5 else f"{ratio:.1e} times"
