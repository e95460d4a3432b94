"""Regret, intervals and paired tests over the rows of a study."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log, nan, sqrt
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.studies.results import RunRow

RESAMPLES = 2000
LEAST_LOSS = 1e-12
"""Losses of zero have no logarithm."""


@dataclass(frozen=True)
class Cell:
    """A task at a learning rate, with the seeds that every arm has finished.

    Attributes:
        task: name.
        lr: learning rate.
        arms: names, in the study's order; those without any row are left out.
        seeds: ascending.
        losses: (arms, seeds) Vc = min(V, L0), L0 where V is not finite.
        failed: (arms, seeds) bool.
        clip_rates: (arms, seeds).
        lengths_left: (arms, seeds) mean coefficient; NaN where it was not kept.
        initial_loss: median of L0 over the seeds.
    """

    task: str
    lr: float
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    losses: NDArray[np.float64]
    failed: NDArray[np.bool_]
    clip_rates: NDArray[np.float64]
    lengths_left: NDArray[np.float64]
    initial_loss: float

    @property
    def name(self) -> str:
        """`task@lr`."""
        return f"{self.task}@{self.lr:g}"

    @property
    def medians(self) -> NDArray[np.float64]:
        """(arms,) of the losses over the seeds."""
        return np.asarray(np.median(self.losses, axis=1))

    def median_of(self, arm: str) -> float:
        """The median loss of an arm of the cell."""
        return float(self.medians[self.arms.index(arm)])

    def failures_of(self, arm: str) -> int:
        """Number of its failed runs."""
        return int(self.failed[self.arms.index(arm)].sum())

    @property
    def regrets(self) -> NDArray[np.float64]:
        """(arms,) normalised regret of the medians."""
        return regrets(self.losses, self.initial_loss)


def regrets(losses: NDArray[np.float64], initial_loss: float) -> NDArray[np.float64]:
    """Normalised regret (Vc - Vbest) / (L0 - Vbest): Vc the arm's median over the seeds, Vbest that of the best arm.

    0 is the best arm, 1 an arm that learned nothing. Where no arm learned anything all are 0.

    Args:
        losses: (..., arms, seeds) Vc.
        initial_loss: L0.
    """
    medians = np.median(losses, axis=-1)
    best = medians.min(axis=-1, keepdims=True)
    scale = initial_loss - best
    result: NDArray[np.float64] = np.divide(medians - best, scale, out=np.zeros_like(medians), where=scale > 0)
    return result


def cells_of(rows: Iterable[RunRow], arms: Sequence[str]) -> list[Cell]:
    """Arrange rows into cells; a seed that one of the arms of a cell has not finished is left out of that cell.

    Args:
        rows: one for each arm, task, learning rate and seed.
        arms: the order of the arms.
    """
    found: dict[tuple[str, float], dict[str, dict[int, RunRow]]] = {}
    for row in rows:
        found.setdefault((row.task, row.lr), {}).setdefault(row.arm, {})[row.seed] = row
    cells = []
    for (task, lr), of_arm in found.items():
        there = tuple(arm for arm in arms if arm in of_arm)
        seeds = tuple(sorted(set.intersection(*(set(of_arm[arm]) for arm in there))))
        if not seeds:
            continue
        grid = [[of_arm[arm][seed] for seed in seeds] for arm in there]
        cells.append(
            Cell(
                task=task,
                lr=lr,
                arms=there,
                seeds=seeds,
                losses=np.array([[row.bounded_loss for row in line] for line in grid]),
                failed=np.array([[row.failed for row in line] for line in grid]),
                clip_rates=np.array([[row.clip_rate for row in line] for line in grid]),
                lengths_left=np.array([[_or_nan(row.mean_coefficient) for row in line] for line in grid]),
                initial_loss=median(row.initial_loss for row in grid[0]),
            )
        )
    return cells


def _or_nan(value: float | None) -> float:
    return nan if value is None else value


def wilson(failures: int, runs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate.

    Args:
        failures: at most `runs`.
        runs: at least 1.
        confidence: of the interval.

    >>> low, high = wilson(0, 45)
    >>> round(low, 3), round(high, 3)
    (0.0, 0.079)
    """
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    rate = failures / runs
    middle = rate + z * z / (2 * runs)
    half = z * sqrt(rate * (1 - rate) / runs + z * z / (4 * runs * runs))
    scale = 1 + z * z / runs
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


@dataclass(frozen=True)
class Paired:
    """Ratio of two arms' losses over the same seeds: geometric mean, 95 % interval by Student's t on the logs, p."""

    pairs: int
    ratio: float
    low: float
    high: float
    p: float


def paired(losses: Sequence[float], others: Sequence[float]) -> Paired:
    """Compare the losses of two arms, seed by seed, on the log scale.

    With one pair the interval is everything; where all differences are equal it is the ratio itself.

    Args:
        losses: of the one arm, at least one.
        others: of the other, in the same order of seeds.
    """
    pairs = zip(losses, others, strict=True)
    logs = [log(max(loss, LEAST_LOSS)) - log(max(other, LEAST_LOSS)) for loss, other in pairs]
    mean, count = fmean(logs), len(logs)
    if count < 2:
        return Paired(count, exp(mean), 0.0, float("inf"), 1.0)
    error = float(np.std(logs, ddof=1)) / sqrt(count)
    if error == 0:
        return Paired(count, exp(mean), exp(mean), exp(mean), 1.0 if mean == 0 else 0.0)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
    return Paired(count, exp(mean), exp(mean - half), exp(mean + half), p)


def signed_rank(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, 1 where all differences are zero."""
    values = [one for one in differences if one != 0]
    return float(stats.wilcoxon(values).pvalue) if values else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number after Holm.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Pooled:
    """Median and worst cell of an arm's regret, with 95 % bootstrap intervals over the seeds."""

    median: float
    median_interval: tuple[float, float]
    worst: float
    worst_interval: tuple[float, float]
    worst_cell: str


def pooled(cells: Sequence[Cell], arm: str, seed: int = 0) -> Pooled:
    """Regret of an arm over cells.

    The bootstrap draws the arm's seeds anew within each cell. The best loss of a cell, and which cell is the worst, are
    held: drawn anew, the least and the largest of several would be biased.

    Args:
        cells: at least one that holds the arm.
        arm: its name.
        seed: of the bootstrap.
    """
    there = [cell for cell in cells if arm in cell.arms]
    generator = np.random.default_rng(seed)
    own = [float(cell.regrets[cell.arms.index(arm)]) for cell in there]
    drawn = [_resampled(cell, arm, generator) for cell in there]
    worst = max(range(len(own)), key=own.__getitem__)
    return Pooled(
        median=median(own),
        median_interval=_interval(np.median(drawn, axis=0)),
        worst=own[worst],
        worst_interval=_interval(drawn[worst]),
        worst_cell=there[worst].name,
    )


def _resampled(cell: Cell, arm: str, generator: np.random.Generator) -> NDArray[np.float64]:
    """(RESAMPLES,) regrets of an arm with its seeds drawn with replacement."""
    count = len(cell.seeds)
    losses = cell.losses[cell.arms.index(arm)][generator.integers(count, size=(RESAMPLES, count))]
    best = float(cell.medians.min())
    scale = cell.initial_loss - best
    return np.asarray((np.median(losses, axis=1) - best) / scale if scale > 0 else np.zeros(RESAMPLES))


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
