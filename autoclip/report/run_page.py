"""The report of one experiment: all its seeds, or a single run directory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from autoclip.findings import LEVELS, Finding, Table
from autoclip.flow import GradientFlow, flow_findings
from autoclip.lab.run_summary import cells, gradient_flow
from autoclip.lab.yaml_source import shortened
from autoclip.pictures.norms import QUANTITIES
from autoclip.pictures.picture import Picture
from autoclip.pictures.series import Series, read_series
from autoclip.report import plots
from autoclip.report.flow_plot import flow_picture
from autoclip.report.page import Block, render
from autoclip.report.run_findings import norm_findings, rate_findings, status_findings
from autoclip.report.series import read_configuration
from autoclip.report.spikes import Spikes, of_run, spike_findings
from autoclip.report.spikes_page import spike_blocks
from autoclip.run_directory import CONFIG, SUMMARY, read_json
from autoclip.tuning.usual_rate import is_default, rate_finding

LONGEST_SEED = 24
PROMISING = ("running_quantile", "fixed_percentile", "autoclip")
"""Policies with a percentile that promises the clip rate."""
EXPLAINED = (
    "Clipped: share of the steps after the warm-up. Left: their mean coefficient, the share of the gradient's length "
    "that remains (modes value and agc: of the largest element or ratio). Training loss: mean of the last 20 steps. "
    "Losses are in the task's own unit."
)


@dataclass(frozen=True)
class SeedRun:
    """The content of a run directory.

    Attributes:
        directory: its path.
        series: its steps.
        summary: `summary.json`, empty if there is none yet.
        config: `config.yaml`, empty if there is none.
        flow: its gradient flow; None: no layers were logged.
        spikes: its spikes.
    """

    directory: Path
    series: Series
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    flow: GradientFlow | None
    spikes: Spikes

    def cells(self) -> dict[str, str]:
        """The figures of the run as text; a run that has not ended has them too."""
        series, losses = self.series, self.series.losses[np.isfinite(self.series.losses)]
        measured = {
            "steps": len(series),
            "train_loss": float(losses[-20:].mean()) if len(losses) else None,
            "clip_rate": series.clip_rate,
            "mean_coefficient": series.mean_coefficient,
            "threshold": float(series.thresholds[-1]) if len(series) else None,
            "skipped_steps": int(series.skipped.sum()),
            "nonfinite_steps": int(np.isnan(series.norms).sum()),
            "gradient_flow": self.flow and self.flow.words,
        }
        return cells({**self.summary, **measured})


def read_seed_run(directory: Path) -> SeedRun:
    """Read a run directory; one that was never finished has no summary.

    Raises:
        OSError: the metrics cannot be read.
        RunError: the summary is not a JSON object.
        UsageError: the configuration is not YAML.
    """
    summary = read_json(directory / SUMMARY) or {}
    place = directory.resolve().name
    name = f"seed {shortened(str(summary['seed']), LONGEST_SEED)}" if "seed" in summary else _label(place)
    config = read_configuration(directory / CONFIG)
    series = read_series(directory, name)
    return SeedRun(directory, series, summary, config, gradient_flow(directory), of_run(directory, series))


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
    labels = [*map(_label, begun), *(f"seed {one.get('seed')}" for one in _objects(total.get("seeds")))]
    known = {_label(run.directory.name) for run in runs} | _failed(total).keys()
    return [shortened(label, LONGEST_SEED) for label in dict.fromkeys(labels) if label not in known]


def default_rates(runs: Sequence[SeedRun]) -> Finding | None:
    """The finding on the clip rates; None: the policy is not the default, or no step was active."""
    clip = runs[0].config.get("clip")
    if not isinstance(clip, dict) or not is_default(clip):
        return None
    return rate_finding({run.series.label: run.series for run in runs})


def run_findings(
    runs: Sequence[SeedRun], total: Mapping[str, Any], stepless: Sequence[str] = (), rates: Finding | None = None
) -> list[Finding]:
    """What there is to say of an experiment, the worst first; the arguments are those of `run_page`."""
    series = [run.series for run in runs]
    found = [
        *status_findings({run.series.label: run.summary for run in runs}, _failed(total), stepless),
        *([rates] if rates else rate_findings(series, _promised(runs[0].config.get("clip")))),
        *norm_findings(series),
        *flow_findings({run.series.label: run.flow for run in runs if run.flow}),
        *spike_findings([run.spikes for run in runs]),
    ]
    return sorted(found, key=lambda one: LEVELS.index(one.level))


def run_page(
    runs: Sequence[SeedRun], total: Mapping[str, Any], findings: Sequence[Finding], stepless: Sequence[str] = ()
) -> tuple[str, list[Picture]]:
    """The page of an experiment and its pictures.

    Args:
        runs: of its seeds, at least one.
        total: the summary over the seeds; empty for a single run directory.
        findings: on them.
        stepless: labels of the seeds that left no steps.
    """
    config, summary = runs[0].config, runs[0].summary
    clip = config["clip"] if isinstance(config.get("clip"), dict) else {}
    policy = str(total.get("policy") or summary.get("policy") or clip.get("policy") or "policy not recorded")
    pictures = _pictures(runs, clip)
    flow = flow_picture({run.series.label: run.flow for run in runs if run.flow})
    pictures += [flow] if flow else []
    names = (one.get("name") for one in (total, summary, config))
    name = str(next(filter(None, names), runs[0].directory.resolve().name))
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else runs[0].series.label
    blocks: list[Block] = [
        ("heading", "Outcome"),
        ("table", _table(runs, _failed(total), stepless)),
        ("heading", "What the figures say"),
        ("findings", findings),
        ("heading", "Figures"),
    ]
    if pictures:
        blocks.append(("figures", pictures))
    else:
        blocks.append(("paragraph", "No step with a finite norm was recorded: there is nothing to draw."))
    if not flow:
        told = "No norms of layers were logged; log.layers_every: 50 in the configuration logs them."
        blocks.append(("paragraph", told))
    spike_part, spike_pictures = spike_blocks([run.spikes for run in runs])
    blocks, pictures = blocks + spike_part, pictures + spike_pictures
    if config:
        text = (runs[0].directory / CONFIG).read_text(encoding="utf-8", errors="replace")
        blocks += [("heading", "Configuration"), ("folded", (f"{CONFIG} of {runs[0].series.label}", text))]
    if facts := _facts(summary):
        blocks += [("heading", "Made with"), ("code", facts)]
    return render(name, f"Training run, {seeds}, clipped by {policy}", blocks), pictures


def quantity_of(clip: Mapping[str, Any]) -> str:
    """Name of the quantity that a `clip` section measures."""
    return QUANTITIES.get(str(clip.get("mode")), QUANTITIES["norm"])


def _pictures(runs: Sequence[SeedRun], clip: Mapping[str, Any]) -> list[Picture]:
    all_series, quantity = [run.series for run in runs], quantity_of(clip)
    validation = {run.series.label: _validation(run.summary) for run in runs}
    trivial = runs[0].summary.get("trivial_loss")
    scope = ""
    if clip.get("scope") in ("parameter", "group"):
        bound = "the norm of all gradients, and the bound that the thresholds set on it together"
        scope = f"Scope {clip['scope']}: {bound}."
    found = []
    for run in all_series:
        name = "norms" if len(runs) == 1 else f"norms_{_file_name(run.label)}"
        title = f"Norm and threshold, {run.label}"
        found.append(plots.norms_picture(run, name, quantity, title=title, caption=scope))
    found += [
        plots.loss_picture(all_series, validation, trivial if isinstance(trivial, int | float) else None),
        plots.clip_rate_picture(all_series, _promised(clip)),
        plots.histogram_picture(all_series, quantity),
        plots.updates_picture(all_series),
    ]
    return [picture for picture in found if picture]


def _table(runs: Sequence[SeedRun], failed: Mapping[str, str], stepless: Sequence[str]) -> Table:
    told = {run.series.label: run.cells() for run in runs}
    for label in failed:
        told[label] = {**told.get(label, cells({})), "status": "failed"}
    told |= {label: {**cells({}), "status": "no steps"} for label in stepless if label not in told}
    return Table(("run", *cells({})), [[label, *row.values()] for label, row in told.items()], EXPLAINED)


def _failed(total: Mapping[str, Any]) -> dict[str, str]:
    """Label and error of the seeds whose task raised."""
    failed = [one for one in _objects(total.get("seeds")) if one.get("status") == "failed"]
    return {f"seed {one.get('seed')}": str(one.get("error")) for one in failed}


def _objects(found: Any) -> list[dict[str, Any]]:
    """The objects in what should be a list of them."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _label(directory: str) -> str:
    """Label of the run in a directory of this name."""
    return directory.replace("seed-", "seed ")


def _promised(clip: Any) -> float | None:
    """Clip rate that the percentile of a `clip` section's policy promises."""
    policy = clip.get("policy") if isinstance(clip, dict) else None
    if not isinstance(policy, dict) or policy.get("kind") not in PROMISING or policy.get("scale", 1.0) != 1.0:
        return None
    if clip.get("scope") not in (None, "global"):
        return None  # each group keeps its own promise
    percentile = policy.get("percentile")
    return 1 - percentile / 100 if isinstance(percentile, int | float) else None


def _validation(summary: Mapping[str, Any]) -> list[tuple[int, float]]:
    points = [(one.get("step"), one.get("loss")) for one in _objects(summary.get("validation"))]
    return [
        (step, float(loss))
        for step, loss in points
        if isinstance(step, int) and isinstance(loss, int | float) and isfinite(loss)
    ]


def _facts(summary: Mapping[str, Any]) -> str:
    names = ("device", "precision", "threads", "parameters", "task", "data_hash", "versions")
    facts = {name: summary[name] for name in names if summary.get(name) is not None}
    return "\n".join(f"{name}: {one if isinstance(one, str) else json.dumps(one)}" for name, one in facts.items())


def _file_name(label: str) -> str:
    return "".join(character if character.isalnum() and character.isascii() else "_" for character in label)
