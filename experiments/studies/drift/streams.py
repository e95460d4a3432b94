"""Synthetic norms whose drift and spikes are known."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOG_DEVIATION = 0.5
DRIFT = 100.0
SPIKE_SHARE = 0.01
SPIKE_FACTOR = 100.0


@dataclass(frozen=True)
class Stream:
    """Norms, those that they would be without spikes, and where the spikes are.

    Attributes:
        norms: (n,) above 0.
        typical: (n,) the same without spikes.
        spiked: (n,) bool.
    """

    norms: NDArray[np.float64]
    typical: NDArray[np.float64]
    spiked: NDArray[np.bool_]


def streams(steps: int, seed: int = 0) -> dict[str, Stream]:
    """Name -> stream: lognormal norms (log-deviation .5) that drift, jump, have heavy tails or spikes.

    Args:
        steps: length of each.
        seed: of the random numbers.
    """
    random = np.random.default_rng(seed)
    time = np.arange(steps) / steps
    levels = {
        "steady": np.ones(steps),
        "rising 100 times": DRIFT**time,
        "falling 100 times": DRIFT**-time,
        "jump up 100 times": np.where(time < 0.5, 1.0, DRIFT),
        "jump down 100 times": np.where(time < 0.5, 1.0, 1 / DRIFT),
        "waves over a decade": 10 ** (0.5 * np.sin(10 * np.pi * time)),
    }
    made = {name: _plain(level * random.lognormal(0.0, LOG_DEVIATION, steps)) for name, level in levels.items()}
    made["heavy tail"] = _plain(1.0 + random.pareto(1.5, steps))
    for name, level in (("spikes", np.ones(steps)), ("spikes, falling 100 times", DRIFT**-time)):
        typical = level * random.lognormal(0.0, LOG_DEVIATION, steps)
        spiked = random.random(steps) < SPIKE_SHARE
        made[name] = Stream(typical * np.where(spiked, SPIKE_FACTOR, 1.0), typical, spiked)
    return made


def _plain(norms: NDArray[np.float64]) -> Stream:
    return Stream(norms, norms, np.zeros(len(norms), dtype=np.bool_))
