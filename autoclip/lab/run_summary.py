"""Summaries of finished runs: `summary.json` of a seed and over the seeds, and the table of `autoclip run`."""

import json
from collections.abc import Mapping
from math import nan
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, NonNegativeInt, ValidationError

from autoclip.errors import RunError
from autoclip.flow import GradientFlow, by_verdict, diagnose, read_samples
from autoclip.lab.config import ExperimentConfig, policies_of
from autoclip.records import is_active, rate_text, threshold_text
from autoclip.run_directory import LAYERS, METRICS, SUMMARY, earlier_lines, read_json
from autoclip.terminal import aligned
from autoclip.tuning.usual_rate import Steps, is_default, verdict

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
    "gradient_flow",
    "seconds",
    "error",
)
"""Keys of a seed's summary that the summary over the seeds repeats."""


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


def gradient_flow(directory: Path) -> GradientFlow | None:
    """The gradient flow of a run; None: no layers were logged."""
    samples = read_samples(directory / LAYERS) if (directory / LAYERS).is_file() else []
    return diagnose(samples) if any(sample.norms for sample in samples) else None


def clip_rate_verdict(config: ExperimentConfig, summaries: list[dict[str, Any]], output_dir: Path) -> str | None:
    """A sentence on the clip rates of the seeds; None: the policy is not the default, or no step was active."""
    if not is_default(config.clip.model_dump()):
        return None
    runs = {
        f"seed {seed['seed']}": _active_steps(output_dir / f"seed-{seed['seed']}" / METRICS, seed["steps"])
        for seed in summaries
        if seed["status"] != "failed"
    }
    found = verdict({label: steps for label, steps in runs.items() if steps})
    return found and found.text


def over_seeds(config: ExperimentConfig, summaries: list[dict[str, Any]], output_dir: Path) -> dict[str, Any]:
    """The summary over the seeds; their directories lie in `output_dir`."""
    losses = [summary["validation_loss"] for summary in summaries if summary["status"] == "finished"]
    rates = [rate for summary in summaries if (rate := summary.get("clip_rate")) is not None]
    left = [share for summary in summaries if (share := summary.get("mean_coefficient")) is not None]
    return {
        "name": config.name,
        "policy": ", skip=".join(map(repr, policies_of(config.clip))),
        "seeds": [{name: summary.get(name) for name in SHOWN} for summary in summaries],
        "failed": sum(summary["status"] == "failed" for summary in summaries),
        "diverged": sum(summary["status"] == "diverged" for summary in summaries),
        "median_validation_loss": median(losses) if losses else None,
        "median_clip_rate": median(rates) if rates else None,
        "median_mean_coefficient": median(left) if left else None,
        "clip_rate_verdict": clip_rate_verdict(config, summaries, output_dir),
    }


def table(total: dict[str, Any], output_dir: Path) -> str:
    """The summary as text: a line for each seed, then the clip rate and the gradient flow."""
    rows = [("seed", "status", "steps", "validation", "clipped", "left", "skipped", "last threshold")]
    for seed in total["seeds"]:
        loss = seed["validation_loss"]
        if seed["status"] == "failed":
            rows.append((str(seed["seed"]), "failed", "-", "-", "-", "-", "-", "-"))
            continue
        rows.append(
            (
                str(seed["seed"]),
                seed["status"],
                str(seed["steps"]),
                "-" if loss is None else f"{loss:.4f}",
                rate_text(seed["clip_rate"]),
                rate_text(seed.get("mean_coefficient")),
                str(seed["skipped_steps"]),
                threshold_text(seed["threshold"]),
            )
        )
    heading = f"{total['name']}: {total['policy']}, in {output_dir}/seed-N"
    rates = [f"clip rate: {told}"] if (told := total.get("clip_rate_verdict")) else []
    return "\n".join([heading, *aligned(rows, "><>>>>>>"), *rates, *_flow_lines(total, output_dir)])


def _active_steps(metrics: Path, steps: int) -> Steps | None:
    """The active steps among the first `steps` of a run; None if somebody has changed the lines."""
    lines: list[Mapping[str, Any]] = [json.loads(line) for line in earlier_lines(metrics, steps).lines]
    try:
        active = [line for line in lines if is_active(line["phase"], line["total_norm"])]
        losses = [nan if line["loss"] is None else float(line["loss"]) for line in active]
        return Steps([line["total_norm"] for line in active], losses, [line["clipped"] is True for line in active])
    except (KeyError, TypeError, ValueError):
        return None


def _flow_lines(total: dict[str, Any], output_dir: Path) -> list[str]:
    """A line on the gradient flow of the seeds, and one on what helps if it vanishes or explodes."""
    found = {f"seed-{seed['seed']}": gradient_flow(output_dir / f"seed-{seed['seed']}") for seed in total["seeds"]}
    flows = {name: flow for name, flow in found.items() if flow}
    alike = by_verdict(flows)
    is_plain = len(flows) == 1 or (len(alike) == 1 and alike[0].verdict == "undetermined")
    shares = ["" if is_plain else f" in {len(one.labels)} of {len(flows)} seeds" for one in alike]
    told = [f"{one.words}{share}: {one.evidence}" for one, share in zip(alike, shares, strict=True)]
    helps = [f"where it is {one.words}: {one.advice}" for one in alike if one.verdict in ("vanishing", "exploding")]
    lines = {"gradient flow: ": told, "what helps ": helps}
    return [head + "; ".join(parts) for head, parts in lines.items() if parts]


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
