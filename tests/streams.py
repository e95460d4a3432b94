"""Streams of gradient norms, and of losses, that every policy meets: the same numbers in every run."""

from math import inf, nan

import numpy as np


def norm_streams(steps: int, seed: int = 0) -> dict[str, list[float]]:
    """Name -> `steps` norms: finite, >= 0, of order one where the stream begins."""
    random = np.random.default_rng(seed)
    time = np.arange(steps) / steps
    lognormal = {
        name: random.lognormal(0.0, 0.5, steps)
        for name in ("lognormal", "drift up", "drift down", "shift up", "shift down", "spikes", "zeros")
    }
    streams = {
        "constant": np.full(steps, 2.0),
        "lognormal": lognormal["lognormal"],
        "drift up": lognormal["drift up"] * 100**time,
        "drift down": lognormal["drift down"] * 100**-time,
        "shift up": lognormal["shift up"] * np.where(time < 0.5, 1.0, 100.0),
        "shift down": lognormal["shift down"] * np.where(time < 0.5, 1.0, 0.01),
        "heavy tail": 1.0 + random.pareto(1.1, steps),
        "spikes": lognormal["spikes"] * np.where(random.random(steps) < 0.01, 100.0, 1.0),
        "zeros": lognormal["zeros"] * (random.random(steps) > 0.1),
    }
    return {name: norms.tolist() for name, norms in streams.items()}


def loss_stream(steps: int, seed: int = 1) -> list[float]:
    """A loss that falls, is noisy, and rises for a while three times."""
    random = np.random.default_rng(seed)
    time = np.arange(steps) / steps
    return (3 * np.exp(-3 * time) + 0.5 * np.sin(6 * np.pi * time) + 1 + 0.2 * random.normal(size=steps)).tolist()


def with_useless_norms(norms: list[float], every: int = 7) -> list[float]:
    """The stream with a NaN, an Inf or a zero before the first, and before every `every`-th norm."""
    useless = [nan, inf, 0.0, -inf]
    mixed: list[float] = []
    for step, norm in enumerate(norms):
        if step % every == 0:
            mixed.append(useless[step // every % len(useless)])
        mixed.append(norm)
    return mixed


def follow(policy, norms, losses=None):
    """Threshold of each step as a clipper reads it: after the norm where the policy is inclusive, else before it."""
    thresholds = []
    for step, norm in enumerate(norms):
        loss = None if losses is None else losses[step]
        if policy.inclusive:
            policy.observe(norm, loss)
            thresholds.append(policy.threshold())
        else:
            thresholds.append(policy.threshold())
            policy.observe(norm, loss)
    return thresholds
