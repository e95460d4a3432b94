"""Figures of a run directory: how fast the loss fell, and how much the learning rate mattered."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from autoclip.errors import RunError
from autoclip.records import clip_rate, finite_or_none, is_active, mean_coefficient
from autoclip.run_directory import METRICS, SUMMARY, read_json
from autoclip.tuning.replay import spikes

LEAST_GAIN = 0.05
"""A run learned something if its loss is below the best constant predictor's by more than this share."""


@dataclass(frozen=True)
class Run:
    """The data of one finished run that scoring needs.

    Attributes:
        losses: training loss before each update, one per step taken; NaN if it was not finite.
        clipped: for each active step (see `records.is_active`), whether it was clipped.
        coefficients: of the same steps.
        planned_steps: number of steps configured, at least `len(losses)`.
        validation_loss: at the end; NaN if the run diverged.
        initial_loss: validation loss before the first step, L0.
        trivial_loss: validation loss of the best constant predictor, Ltriv; inf if the task names none.
        diverged: non-finite numbers ended the run.
        seconds: of training.
    """

    losses: tuple[float, ...]
    clipped: tuple[bool, ...]
    coefficients: tuple[float, ...]
    planned_steps: int
    validation_loss: float
    initial_loss: float
    trivial_loss: float
    diverged: bool
    seconds: float

    @property
    def failed(self) -> bool:
        """True if the run diverged, or is no better than a constant (see `learned_nothing`)."""
        return self.diverged or learned_nothing(self.validation_loss, self.trivial_loss)

    @property
    def bounded_loss(self) -> float:
        """Vc = min(V, L0); L0 if V is not finite."""
        return min(self.validation_loss, self.initial_loss) if isfinite(self.validation_loss) else self.initial_loss


def learned_nothing(validation_loss: float, trivial_loss: float) -> bool:
    """Return True if a loss is no better than the best constant predictor's: V > Ltriv - .05 |Ltriv|, or NaN."""
    return not validation_loss <= trivial_loss * (1 - LEAST_GAIN if trivial_loss > 0 else 1 + LEAST_GAIN)


def read_run(directory: Path) -> Run:
    """Read a finished run directory.

    Raises:
        RunError: it holds no finished run, its initial validation loss is not finite, or its files are damaged or do
            not belong together.
    """
    try:
        return _read_run(directory)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RunError(
            f"{directory} is damaged ({reason}): move it away, and the sweep's command trains it again"
        ) from None


def _read_run(directory: Path) -> Run:
    summary = read_json(directory / SUMMARY)
    if summary is None or summary.get("status") not in ("finished", "diverged"):
        raise RunError(f"{directory} holds no finished run")
    text = (directory / METRICS).read_text(encoding="utf-8")
    lines = json.loads(f"[{','.join(text.splitlines())}]")  # much faster than line by line
    if len(lines) != summary["steps"]:
        raise RunError(f"{directory / METRICS} has {len(lines)} lines, but its summary has {summary['steps']} steps")
    active = [line for line in lines if is_active(line["phase"], line["total_norm"])]
    initial = _number(summary["initial_validation_loss"])
    if not isfinite(initial):
        raise RunError(
            f"{directory} has no finite validation loss from before the first step, which is needed to judge it: the "
            f"task's evaluate() must return a finite loss for the untrained model"
        )
    return Run(
        losses=tuple(_number(line["loss"]) for line in lines),
        clipped=tuple(line["clipped"] for line in active),
        coefficients=tuple(_number(line["coefficient"]) for line in active),
        planned_steps=summary["planned_steps"],
        validation_loss=_number(summary["validation_loss"]),
        initial_loss=initial,
        trivial_loss=inf if summary["trivial_loss"] is None else summary["trivial_loss"],
        diverged=summary["status"] == "diverged",
        seconds=summary["seconds"],
    )


def aulc(run: Run) -> float:
    """Area under the learning curve, mean over the planned steps of min(L_t, L0); steps not taken count L0.

    It is finite for every outcome, and needs no target.
    """
    bounded = [min(loss, run.initial_loss) if isfinite(loss) else run.initial_loss for loss in run.losses]
    missing = run.planned_steps - len(bounded)
    return fmean([*bounded, *([run.initial_loss] * missing)])


@dataclass(frozen=True)
class Score:
    """Figures of one run, small enough for a database.

    Attributes:
        multiplier: factor on the configured learning rate.
        seed: of weights and batches.
        aulc: area under the learning curve.
        validation_loss: at the end; None if it is not finite.
        bounded_loss: Vc.
        initial_loss: L0.
        failed: non-finite, or no better than a constant.
        clip_rate: share of the active steps clipped; None without one.
        spikes: number of spikes of the loss (see `replay.spikes`); only descriptive: a dead network has none, and a
            well trained one may have many.
        steps: steps taken.
        seconds: of training.
        trivial_loss: Ltriv; None if the task names none.
        mean_coefficient: share of the gradient's length that remains, over the active steps; None without one, and in
            older scores.
        lows: (steps taken, smoothed training loss) whenever this loss was lower than before by a thousandth of the
            first; a sweep keeps them only at the configured learning rate.
    """

    multiplier: float
    seed: int
    aulc: float
    validation_loss: float | None
    bounded_loss: float
    initial_loss: float
    failed: bool
    clip_rate: float | None
    spikes: int
    steps: int
    seconds: float
    trivial_loss: float | None = None
    mean_coefficient: float | None = None
    lows: tuple[tuple[int, float], ...] = ()


def score(run: Run, multiplier: float, seed: int) -> Score:
    """Figures of one run."""
    return Score(
        multiplier=multiplier,
        seed=seed,
        aulc=aulc(run),
        validation_loss=run.validation_loss if isfinite(run.validation_loss) else None,
        bounded_loss=run.bounded_loss,
        initial_loss=run.initial_loss,
        failed=run.failed,
        clip_rate=finite_or_none(clip_rate(sum(run.clipped), len(run.clipped))),
        spikes=int(spikes(np.asarray(run.losses)).sum()),
        steps=len(run.losses),
        seconds=run.seconds,
        trivial_loss=run.trivial_loss if isfinite(run.trivial_loss) else None,
        mean_coefficient=finite_or_none(mean_coefficient(sum(run.coefficients), len(run.coefficients))),
        lows=_lows(run.losses),
    )


def score_from(fields: Mapping[str, Any]) -> Score:
    """A score from its `dataclasses.asdict`, which may have been JSON in between."""
    return Score(**{**fields, "lows": tuple((int(step), float(loss)) for step, loss in fields["lows"])})


def base_scores(scores: Sequence[Score]) -> tuple[Score, ...]:
    """The scores at the configured learning rate, or at the nearest one."""
    least = min(abs(one.multiplier - 1) for one in scores)
    nearest = next(one.multiplier for one in scores if abs(one.multiplier - 1) == least)
    return tuple(one for one in scores if one.multiplier == nearest)


def instability_of(one: Score, reference: float) -> float:
    """One run's share in S, (Vc - V*) / (L0 - V*): 0 at the reference, 1 if nothing was learned or the run failed.

    S is the mean over seeds and learning rates.

    Args:
        one: of a run.
        reference: V*, the best mean validation loss over the fixed grid.

    Reference: Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023,
    arXiv 2309.14322 (learning-rate sensitivity), here normalised.
    """
    if one.failed or not one.initial_loss > reference:
        return 1.0
    return (one.bounded_loss - reference) / (one.initial_loss - reference)


def reference_loss(grid: Iterable[Sequence[Score]]) -> float:
    """V*: the least mean over seeds of Vc, over all thresholds of the fixed grid and all learning rates.

    Args:
        grid: the scores of each fixed threshold.
    """
    means = []
    for scores in grid:
        multipliers = sorted({one.multiplier for one in scores})
        means += [fmean(one.bounded_loss for one in scores if one.multiplier == factor) for factor in multipliers]
    return min(means)


def steps_to_target(one: Score, reference: float) -> int | None:
    """Steps until the training loss, averaged with decay .9, is below V* + .1 (Ltriv - V*).

    Exact to a thousandth of the first loss. None: it never was, it was not finite before, or the task names no Ltriv.
    """
    if one.trivial_loss is None:
        return None
    target = reference + 0.1 * (one.trivial_loss - reference)
    return next((step for step, loss in one.lows if loss <= target), None)


def _lows(losses: Iterable[float]) -> tuple[tuple[int, float], ...]:
    """Steps at which the training loss, averaged with decay .9, was lower than before, until it is not finite.

    Only falls by a thousandth of the first loss count, so that a long run has at most about a thousand.
    """
    lows: list[tuple[int, float]] = []
    average: float | None = None
    least_fall = 0.0
    for step, loss in enumerate(losses, 1):
        if not isfinite(loss):
            break
        if average is None:
            average, least_fall = loss, abs(loss) / 1000
        else:
            average = 0.9 * average + 0.1 * loss
        if not lows or average < lows[-1][1] - least_fall:
            lows.append((step, average))
    return tuple(lows)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
