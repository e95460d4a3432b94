"""The report of one experiment: all its seeds, or a single run directory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from autoclip.flow import GradientFlow, diagnose, read_samples
from autoclip.lab.yaml_source import shortened
from autoclip.pictures.norms import QUANTITIES
from autoclip.pictures.picture import Picture
from autoclip.pictures.series import Series
from autoclip.records import rate_text, threshold_text
from autoclip.report import plots
from autoclip.report.configuration import read_configuration, read_summary
from autoclip.report.page import LEVELS, Reading, code, figures, folded, heading, page, paragraph, readings, table
from autoclip.report.readings import flow_readings, norm_readings, rate_readings, status_readings
from autoclip.report.series import read_series
from autoclip.run_directory import CONFIG, LAYERS
from autoclip.tuning.usual_rate import Steps, Verdict, is_default, verdict

LONGEST_SEED = 24
PROMISING = ("running_quantile", "fixed_percentile", "autoclip")
"""Policies with a percentile that promises the clip rate."""


@dataclass(frozen=True)
class SeedRun:
    """The content of a run directory.

    Attributes:
        directory: its path.
        series: its steps.
        summary: `summary.json`, empty if there is none yet.
        config: `config.yaml`, empty if there is none.
        flow: its gradient flow; None: no layers were logged.
    """

    directory: Path
    series: Series
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    flow: GradientFlow | None

    @property
    def status(self) -> str:
        """Status in the summary; "unfinished" without a summary."""
        return str(self.summary.get("status", "unfinished"))


def read_seed_run(directory: Path) -> SeedRun:
    """Read a run directory; one that was never finished has no summary.

    Raises:
        OSError: the metrics cannot be read.
        UsageError: the summary is not a JSON object, or the configuration is not YAML.
    """
    summary = read_summary(directory)
    place = directory.resolve().name
    name = f"seed {shortened(str(summary['seed']), LONGEST_SEED)}" if "seed" in summary else _label(place)
    samples = read_samples(directory / LAYERS) if (directory / LAYERS).is_file() else []
    flow = diagnose(samples) if any(sample.norms for sample in samples) else None
    return SeedRun(directory, read_series(directory, name), summary, read_configuration(directory / CONFIG), flow)


def stepless_seeds(directory: Path, runs: Sequence[SeedRun], total: Mapping[str, Any]) -> list[str]:
    """Labels of the seeds that have a directory, or are in the summary over the seeds, but left no steps.

    Failed seeds are left out: their errors are shown.

    Args:
        directory: of all seeds.
        runs: those that were read there.
        total: the summary over the seeds.
    """
    begun = sorted(
        (path.name for path in directory.glob("seed-*") if path.is_dir()), key=lambda name: (len(name), name)
    )
    labels = [*map(_label, begun), *(f"seed {one.get('seed')}" for one in _entries(total))]
    known = {_label(run.directory.name) for run in runs} | _failed(total).keys()
    return [shortened(label, LONGEST_SEED) for label in dict.fromkeys(labels) if label not in known]


def default_verdict(runs: Sequence[SeedRun]) -> Verdict | None:
    """A verdict on the clip rates; None: the policy is not the default, or no step was active."""
    clip = runs[0].config.get("clip")
    if not isinstance(clip, dict) or not is_default(clip):
        return None
    return verdict({run.series.label: _active_steps(run.series) for run in runs})


def run_page(
    runs: Sequence[SeedRun],
    total: Mapping[str, Any],
    flow_picture: Picture | None,
    stepless: Sequence[str] = (),
    rates: Verdict | None = None,
) -> tuple[str, list[Picture]]:
    """The page of an experiment and its pictures.

    Args:
        runs: of its seeds, at least one.
        total: the summary over the seeds; empty for a single run directory.
        flow_picture: norms of the layers; None: none were logged.
        stepless: labels of the seeds that left no steps.
        rates: verdict on the clip rates of the default; None: it is another policy.
    """
    config = runs[0].config
    clip = config["clip"] if isinstance(config.get("clip"), dict) else {}
    failed = _failed(total)
    policy = str(total.get("policy") or runs[0].summary.get("policy") or clip.get("policy") or "policy not recorded")
    quantity = quantity_of(clip)
    promised = _promised(clip)
    pictures = _pictures(runs, quantity, promised, clip)
    if flow_picture:
        pictures.append(flow_picture)
    told = [
        *status_readings({run.series.label: run.summary for run in runs}, failed, stepless),
        *([Reading("good" if rates.is_usual else "note", rates.text)] if rates else []),
        *([] if rates else rate_readings([run.series for run in runs], promised)),
        *norm_readings([run.series for run in runs]),
        *flow_readings({run.series.label: run.flow for run in runs if run.flow}),
    ]
    name = str(
        total.get("name") or runs[0].summary.get("name") or config.get("name") or runs[0].directory.resolve().name
    )
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else runs[0].series.label
    blocks = [
        heading("Outcome"),
        _table(runs, failed, stepless),
        heading("What the figures say"),
        readings(sorted(told, key=lambda one: LEVELS.index(one.level))),
        heading("Figures"),
        figures(pictures)
        if pictures
        else paragraph("No step with a finite norm was recorded: there is nothing to draw."),
    ]
    if not flow_picture:
        blocks.append(paragraph("No norms of layers were logged; log.layers_every: 50 in the configuration logs them."))
    if config:
        text = (runs[0].directory / CONFIG).read_text(encoding="utf-8", errors="replace")
        blocks += [heading("Configuration"), folded(f"{CONFIG} of {runs[0].series.label}", text)]
    facts = _facts(runs[0].summary)
    if facts:
        blocks += [heading("Made with"), code(facts)]
    return page(name, f"Training run, {seeds}, clipped by {policy}", blocks), pictures


def _active_steps(series: Series) -> Steps:
    norms, losses, clipped = (array[series.active].tolist() for array in (series.norms, series.losses, series.clipped))
    return Steps(norms, losses, clipped)


def _pictures(runs: Sequence[SeedRun], quantity: str, promised: float | None, clip: Mapping[str, Any]) -> list[Picture]:
    all_series = [run.series for run in runs]
    validation = {run.series.label: _validation(run.summary) for run in runs}
    trivial = runs[0].summary.get("trivial_loss")
    scope = ""
    if clip.get("scope") in ("parameter", "group"):
        scope = (
            f"Scope {clip['scope']}: the norm of all gradients, and the bound that the thresholds set on it together."
        )
    found = [
        plots.norms_picture(
            run.series,
            "norms" if len(runs) == 1 else f"norms_{_file_name(run.series.label)}",
            quantity,
            title=f"Norm and threshold, {run.series.label}",
            caption=scope,
        )
        for run in runs
    ]
    found += [
        plots.loss_picture(all_series, validation, trivial if isinstance(trivial, int | float) else None),
        plots.clip_rate_picture(all_series, promised),
        plots.histogram_picture(all_series, quantity),
    ]
    return [picture for picture in found if picture]


def _table(runs: Sequence[SeedRun], failed: Mapping[str, str], stepless: Sequence[str]) -> str:
    headings = ["run", "status", "steps", "validation loss", "before training", "training loss", "clipped", "left"]
    headings += ["skipped", "not finite", "last threshold", "gradient flow", "time"]
    rows = []
    for run in runs:
        summary, series = run.summary, run.series
        finite = series.losses[(series.losses == series.losses) & (abs(series.losses) != float("inf"))]
        planned = summary.get("planned_steps")
        rows.append(
            [
                series.label,
                "failed" if series.label in failed else run.status,
                f"{len(series)}" + (f" of {planned}" if isinstance(planned, int) and planned != len(series) else ""),
                _number(summary.get("validation_loss")),
                _number(summary.get("initial_validation_loss")),
                _number(float(finite[-20:].mean()) if len(finite) else None),
                rate_text(series.clip_rate),
                rate_text(series.mean_coefficient),
                str(int(series.skipped.sum())),
                str(int((series.norms != series.norms).sum())),
                threshold_text(series.thresholds[-1]) if len(series) else "-",
                run.flow.words if run.flow else "not logged",
                f"{summary['seconds']:.1f} s" if isinstance(summary.get("seconds"), int | float) else "-",
            ]
        )
    known = {run.series.label for run in runs}
    others = {**dict.fromkeys(failed, "failed"), **dict.fromkeys(stepless, "no steps")}
    rows += [[name, status, *["-"] * (len(headings) - 2)] for name, status in others.items() if name not in known]
    return table(
        headings,
        rows,
        "Clipped: share of the steps after the warm-up. Left: their mean coefficient, the share of the gradient's "
        "length that remains (modes value and agc: of the largest element or ratio). Training loss: mean of the last "
        "20 steps. Losses are in the task's own unit.",
    )


def _failed(total: Mapping[str, Any]) -> dict[str, str]:
    """Label and error of the seeds whose task raised."""
    failed = [one for one in _entries(total) if one.get("status") == "failed"]
    return {f"seed {one.get('seed')}": str(one.get("error")) for one in failed}


def _entries(total: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of the seeds in the summary over the seeds."""
    seeds = total.get("seeds")
    return [one for one in seeds if isinstance(one, dict)] if isinstance(seeds, list) else []


def _label(directory: str) -> str:
    """Label of the run in a directory of this name."""
    return directory.replace("seed-", "seed ")


def quantity_of(clip: Mapping[str, Any]) -> str:
    """Name of the quantity that a `clip` section measures."""
    return QUANTITIES.get(str(clip.get("mode")), QUANTITIES["norm"])


def _promised(clip: Mapping[str, Any]) -> float | None:
    """Clip rate that the policy's percentile promises."""
    policy = clip.get("policy")
    if not isinstance(policy, dict) or policy.get("kind") not in PROMISING or policy.get("scale", 1.0) != 1.0:
        return None
    if clip.get("scope") not in (None, "global"):
        return None  # each group keeps its own promise
    percentile = policy.get("percentile")
    return 1 - percentile / 100 if isinstance(percentile, int | float) else None


def _validation(summary: Mapping[str, Any]) -> list[tuple[int, float]]:
    found = summary.get("validation")
    entries = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    points = [(one.get("step"), one.get("loss")) for one in entries]
    return [
        (step, float(loss))
        for step, loss in points
        if isinstance(step, int) and isinstance(loss, int | float) and isfinite(loss)
    ]


def _facts(summary: Mapping[str, Any]) -> str:
    names = ("device", "precision", "threads", "parameters", "task", "data_hash", "versions")
    facts = {name: summary[name] for name in names if summary.get(name) is not None}
    return "\n".join(f"{name}: {one if isinstance(one, str) else json.dumps(one)}" for name, one in facts.items())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and isfinite(value) else "-"


def _file_name(label: str) -> str:
    return "".join(character if character.isalnum() and character.isascii() else "_" for character in label)
