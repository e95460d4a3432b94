"""How much a rule's result depends on the learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.studies.statistics import Cell

USABLE = 0.1
"""Normalised regret to the best rule at its best rate, up to which a learning rate counts as usable."""


@dataclass(frozen=True)
class Sensitivity:
    """Of one arm on one task.

    Attributes:
        value: mean over learning rates and seeds of (Vc - V*) / (L0 - V*), 1 for a failed run; V* is the best median of
            any arm at any learning rate.
        low: end of the 95 % interval, Student's t over the seeds' means; NaN with one seed.
        high: the other end.
        first: least usable learning rate: the median regret to V* is at most 10 %, and no run failed; NaN: none is.
        last: largest one.
        rates: number of usable ones, of so many.
        of: number of learning rates.
    """

    value: float
    low: float
    high: float
    first: float
    last: float
    rates: int
    of: int

    @property
    def decades(self) -> float:
        """Width of the usable range, 0 for a single rate; NaN without any."""
        return log10(self.last / self.first)


def sensitivity(cells: Sequence[Cell], arm: str) -> Sensitivity:
    """Of one arm over the cells of one task, which must all hold it; seeds that not all cells have are left out.

    Reference: Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities", 2023,
    arXiv 2309.14322 (learning-rate sensitivity), here normalised.
    """
    best = min(float(cell.medians.min()) for cell in cells)
    seeds = sorted(set.intersection(*(set(cell.seeds) for cell in cells)))
    shares = np.array([_regrets(cell, arm, best, seeds) for cell in cells])  # (learning rates, seeds)
    usable = [cell.lr for cell in cells if _is_usable(cell, arm, best)]
    by_seed = shares.mean(axis=0)
    half = nan
    if len(seeds) > 1:
        half = float(stats.t.ppf(0.975, len(seeds) - 1)) * float(np.std(by_seed, ddof=1)) / sqrt(len(seeds))
    mean = float(by_seed.mean())
    first, last = (min(usable), max(usable)) if usable else (nan, nan)
    return Sensitivity(mean, mean - half, mean + half, first, last, len(usable), len(cells))


def _regrets(cell: Cell, arm: str, best: float, seeds: Sequence[int]) -> NDArray[np.float64]:
    place = cell.arms.index(arm)
    columns = [cell.seeds.index(seed) for seed in seeds]
    scale = cell.initial_loss - best
    values = (cell.losses[place, columns] - best) / scale if scale > 0 else np.ones(len(columns))
    return np.asarray(np.where(cell.failed[place, columns], 1.0, values))


def _is_usable(cell: Cell, arm: str, best: float) -> bool:
    place = cell.arms.index(arm)
    regret = (float(cell.medians[place]) - best) / (cell.initial_loss - best)
    return not cell.failed[place].any() and regret <= USABLE
