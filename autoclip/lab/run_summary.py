"""Summaries of finished runs: `summary.json` of a seed and over the seeds, and the table of `autoclip run`."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, NonNegativeInt, ValidationError

from autoclip.errors import RunError
from autoclip.findings import Finding
from autoclip.flow import GradientFlow, diagnose, flow_findings, read_samples
from autoclip.lab.config import ExperimentConfig, policy_text
from autoclip.lab.task import description_of
from autoclip.pictures.series import read_series
from autoclip.records import finite_or_none, rate_text, threshold_text
from autoclip.run_directory import LAYERS, METRICS, SUMMARY, read_json
from autoclip.terminal import aligned
from autoclip.tuning.usual_rate import is_default, rate_finding

if TYPE_CHECKING:
    from autoclip.lab.train import Training

SHOWN = (
    "seed",
    "status",
    "steps",
    "validation_loss",
    "train_loss",
    "clip_rate",
    "mean_coefficient",
    "threshold",
    "skipped_steps",
    "spikes",
    "gradient_flow",
    "seconds",
    "error",
)
"""Keys of a seed's summary that the summary over the seeds repeats."""

COLUMNS = ("status", "steps", "validation loss", "clipped", "left", "skipped", "last threshold")
"""Figures of a seed that the table shows."""


def read_summary(directory: Path) -> dict[str, Any]:
    """The `summary.json` of a run; empty if there is no file.

    Raises:
        RunError: it is damaged.
    """
    summary = read_json(directory / SUMMARY) or {}
    try:
        if summary:
            _Summary.model_validate(summary)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise RunError(
            f"{directory / SUMMARY} is damaged ({reason}); move it away; --resume does not need it"
        ) from None
    return summary


def summarise(status: str, training: "Training") -> dict[str, Any]:
    """The `summary.json` of one seed."""
    config, tally, clipper = training.config, training.tally, training.clipper
    return {
        "name": config.name,
        "seed": training.seed,
        "status": status,
        "steps": tally.steps,
        "planned_steps": config.steps,
        "validation_loss": tally.validation[-1]["loss"] if tally.validation else None,
        "initial_validation_loss": tally.initial_validation_loss,
        "trivial_loss": getattr(training.task, "trivial_loss", None),
        "train_loss": fmean(tally.recent_losses) if tally.recent_losses else None,
        "validation": tally.validation,
        "policy": policy_text(config.clip),
        "threshold": tally.threshold,
        "clip_rate": finite_or_none(clipper.clip_rate),
        "mean_coefficient": finite_or_none(clipper.mean_coefficient),
        "skipped_steps": clipper.skipped_steps,
        "spikes": training.recorder and training.recorder.events,
        "rewinds": tally.rewinds,
        "nonfinite_steps": tally.nonfinite_steps,
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "task": description_of(training.task),
        "data_hash": getattr(training.task, "data_hash", None),
        "device": str(training.device),
        "precision": config.precision,
        "threads": config.threads,
        "seconds": round(tally.seconds, 3),
    }


def gradient_flow(directory: Path) -> GradientFlow | None:
    """The gradient flow of a run; None: no layers were logged."""
    samples = read_samples(directory / LAYERS) if (directory / LAYERS).is_file() else []
    return diagnose(samples) if any(sample.norms for sample in samples) else None


def findings(config: ExperimentConfig, summaries: list[dict[str, Any]], output_dir: Path) -> list[Finding]:
    """What the clip rates of the default policy and the layers of the seeds say."""
    seeds = [seed["seed"] for seed in summaries if seed["status"] != "failed"]
    runs = {f"seed {seed}": output_dir / f"seed-{seed}" for seed in seeds if (output_dir / f"seed-{seed}").is_dir()}
    rates = None
    if is_default(config.clip.model_dump()):
        rates = rate_finding(
            {label: read_series(run, label) for label, run in runs.items() if (run / METRICS).is_file()}
        )
    flows = {label: gradient_flow(run) for label, run in runs.items()}
    return [
        *([rates] if rates else []),
        *flow_findings({label: flow for label, flow in flows.items() if flow}),
        *_spikes(summaries, output_dir),
    ]


def _spikes(summaries: list[dict[str, Any]], output_dir: Path) -> list[Finding]:
    counts = {f"seed {seed['seed']}": seed["spikes"] for seed in summaries if seed.get("spikes")}
    if not counts:
        return []
    told = ", ".join(f"{count} in {label}" for label, count in counts.items())
    return [Finding("note", f"spikes: {told}; `autoclip spikes {output_dir}` tells of them", {"spikes": counts})]


def over_seeds(config: ExperimentConfig, summaries: list[dict[str, Any]], output_dir: Path) -> dict[str, Any]:
    """The summary over the seeds; their directories lie in `output_dir`."""
    losses = [summary["validation_loss"] for summary in summaries if summary["status"] == "finished"]
    rates = [rate for summary in summaries if (rate := summary.get("clip_rate")) is not None]
    left = [share for summary in summaries if (share := summary.get("mean_coefficient")) is not None]
    return {
        "name": config.name,
        "policy": policy_text(config.clip),
        "seeds": [{name: summary.get(name) for name in SHOWN} for summary in summaries],
        "failed": sum(summary["status"] == "failed" for summary in summaries),
        "diverged": sum(summary["status"] == "diverged" for summary in summaries),
        "median_validation_loss": median(losses) if losses else None,
        "median_clip_rate": median(rates) if rates else None,
        "median_mean_coefficient": median(left) if left else None,
        "findings": [one.as_json() for one in findings(config, summaries, output_dir)],
    }


def cells(summary: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a run as text, by the heading of their column; the summary may lack some of them."""
    steps, planned = summary.get("steps"), summary.get("planned_steps")
    known = steps is not None
    of = f" of {planned}" if isinstance(planned, int) and planned != steps else ""
    seconds = summary.get("seconds")
    return {
        "status": str(summary.get("status", "unfinished")),
        "steps": f"{steps}{of}" if known else "-",
        "validation loss": number_text(summary.get("validation_loss")),
        "before training": number_text(summary.get("initial_validation_loss")),
        "training loss": number_text(summary.get("train_loss")),
        "clipped": rate_text(summary.get("clip_rate")),
        "left": rate_text(summary.get("mean_coefficient")),
        "skipped": str(summary.get("skipped_steps", "-")) if known else "-",
        "not finite": str(summary.get("nonfinite_steps", "-")) if known else "-",
        "last threshold": threshold_text(summary.get("threshold")) if steps else "-",
        "gradient flow": str(summary.get("gradient_flow") or ("not logged" if known else "-")),
        "time": f"{seconds:.1f} s" if isinstance(seconds, int | float) else "-",
    }


def table(total: Mapping[str, Any], output_dir: Path) -> str:
    """The summary as text: a line for each seed, then the findings."""
    rows: list[tuple[str, ...]] = [("seed", *COLUMNS)]
    for seed in total["seeds"]:
        told = cells({"status": "failed"} if seed["status"] == "failed" else seed)
        rows.append((str(seed["seed"]), *(told[name] for name in COLUMNS)))
    heading = f"{total['name']}: {total['policy']}, in {output_dir}/seed-N"
    return "\n".join([heading, *aligned(rows, "><>>>>>>"), *(one["text"] for one in total.get("findings", ()))])


def number_text(value: Any) -> str:
    """A figure to four digits; "-" for what is no finite number."""
    return f"{value:.4g}" if isinstance(value, int | float) and isfinite(value) else "-"


class _Summary(BaseModel, strict=True):
    """The keys of a `summary.json` that `autoclip run` reads."""

    status: Literal["finished", "diverged", "interrupted"]
    steps: NonNegativeInt
    validation_loss: float | None
    clip_rate: float | None
    mean_coefficient: float | None = None  # older files lack it
    skipped_steps: NonNegativeInt
    threshold: float | None
    code: dict[str, str] = {}
