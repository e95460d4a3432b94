"""The score of a run, with what a test does not care about filled in."""

from dataclasses import replace
from typing import Any

from autoclip.sweeps.scoring import Score

SCORE = Score(
    multiplier=1.0,
    seed=0,
    aulc=1.0,
    validation_loss=0.5,
    bounded_loss=0.5,
    initial_loss=2.0,
    failed=False,
    clip_rate=0.25,
    spikes=2,
    steps=10,
    seconds=0.5,
    mean_coefficient=0.8,
)


def score_with(**changes: Any) -> Score:
    """The same with other values."""
    return replace(SCORE, **changes)
