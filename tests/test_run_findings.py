from collections.abc import Sequence

import numpy as np
import pytest

from autoclip.pictures.series import Series
from autoclip.report.run_findings import norm_findings, rate_findings, status_findings

COUNT = 1000


def series(
    label: str = "seed 0",
    *,
    clipped: float = 0.0,
    norms: np.ndarray | None = None,
    skipped: Sequence[int] = (),
    coefficient: float = np.nan,
) -> Series:
    """A run whose first norms, of the given share, are clipped."""
    values = np.ones(COUNT) if norms is None else norms
    nothing = np.zeros(len(values), dtype=np.bool_)
    left_out = nothing.copy()
    left_out[list(skipped)] = True
    return Series(
        label=label,
        steps=np.arange(len(values)),
        norms=values,
        thresholds=np.ones(len(values)),
        losses=np.ones(len(values)),
        coefficients=np.full(len(values), coefficient),
        clipped=np.arange(len(values)) < clipped * len(values),
        skipped=left_out,
        warmup=nothing,
    )


@pytest.mark.parametrize(
    ("summary", "level", "words"),
    [
        ({"status": "finished", "validation_loss": 0.2, "trivial_loss": 2.3}, "good", "the run finished"),
        ({"status": "finished", "validation_loss": 2.29, "trivial_loss": 2.3}, "bad", "learned nothing"),
        ({"status": "finished", "validation_loss": 5, "trivial_loss": 2}, "bad", "learned nothing"),
        ({"status": "finished", "validation_loss": -0.96, "trivial_loss": -1.0}, "bad", "learned nothing"),
        ({"status": "finished", "validation_loss": -1.5, "trivial_loss": -1.0}, "good", "the run finished"),
        ({"status": "finished", "validation_loss": 0.2, "trivial_loss": None}, "good", "the run finished"),
        ({"status": "diverged", "validation_loss": None}, "bad", "diverged"),
        ({"status": "interrupted"}, "note", "not ended yet"),
        ({}, "note", "not ended yet"),
    ],
)
def test_how_a_run_ended(summary, level, words):
    (found,) = status_findings({"seed 0": summary}, {})
    assert found.level == level
    assert words in found.text


def test_a_failed_seed_is_told_once_with_its_error():
    (found,) = status_findings({"seed 0": {}}, {"seed 0": "seed 0 stopped: RuntimeError: broke"})
    assert (found.level, found.text) == ("bad", "seed 0 failed: seed 0 stopped: RuntimeError: broke")


@pytest.mark.parametrize(
    ("rate", "promised", "level", "words"),
    [
        (0.52, 0.5, "good", "52% of the steps after the warm-up were clipped; the percentile promises 50%"),
        (0.2, 0.5, "note", "the norms fell faster"),
        (0.9, 0.5, "note", "the norms rose faster"),
        (0.0, None, "note", "the same as no clipping"),
        (0.99, None, "note", "acts as a learning rate"),
        (0.3, None, "good", "30% of the steps"),
    ],
)
def test_a_clip_rate_is_measured_by_what_was_promised(rate, promised, level, words):
    (found,) = rate_findings([series(clipped=rate)], promised)
    assert found.level == level
    assert words in found.text


def test_runs_of_which_the_same_is_to_be_said_share_a_sentence():
    runs = [series("seed 0", clipped=0.5), series("seed 1", clipped=0.45), series("seed 2", clipped=0.1)]
    same, other = rate_findings(runs, 0.5)
    assert same.text.startswith("seed 0, seed 1: 45% to 50% of the steps")
    assert other.text.startswith("seed 2: 10% of the steps")


def test_a_clip_rate_is_told_with_the_share_of_the_length_that_is_left():
    runs = [series("seed 0", clipped=0.5, coefficient=0.9), series("seed 1", clipped=0.5, coefficient=0.25)]
    (found,) = rate_findings(runs, 0.5)
    assert "50% of the steps after the warm-up were clipped, with a mean coefficient of 25% to 90%; the" in found.text


def test_calm_norms_and_large_steps_are_told_apart():
    generator = np.random.default_rng(0)
    norms = np.exp(generator.normal(0, 0.2, COUNT))
    (calm,) = norm_findings([series(norms=norms)])
    assert (calm.level, calm.text[:20]) == ("good", "the norms are calm: ")
    norms[::50] *= 300
    large, missed = norm_findings([series(norms=norms)])
    assert "large norms occur" in large.text
    assert missed.level == "note"
    assert missed.text.startswith("0 of ")
    *_, caught = norm_findings([series(norms=norms, clipped=1.0)])
    assert caught.level == "good"


def test_drift_is_told_with_its_factor_and_direction():
    norms = np.geomspace(1, 1000, COUNT)
    (found,) = [one for one in norm_findings([series(norms=norms)]) if "first fifth" in one.text]
    assert "rose by a factor of 253" in found.text
    falling = norm_findings([series("a", norms=norms[::-1]), series("b", norms=np.ones(COUNT))])
    assert any(one.text.startswith("a: ") and "fell by" in one.text for one in falling)


@pytest.mark.parametrize(("last", "word"), [(-300, "fell"), (300, "rose")])
def test_drift_beyond_every_float_is_told(last, word):
    found = norm_findings([series(norms=np.logspace(-last, last, COUNT))])
    assert any(f"{word} by a factor of 1.0e+304" in one.text for one in found)


@pytest.mark.parametrize(("broken", "level"), [(1, "note"), (50, "bad")])
def test_norms_that_are_not_finite(broken, level):
    norms = np.ones(COUNT)
    norms[:broken] = np.nan
    found = norm_findings([series(norms=norms, skipped=range(broken))])[0]
    assert found.level == level
    assert f"not finite in {broken} of 1000 steps" in found.text
    assert f"{broken} of them were skipped" in found.text


@pytest.mark.parametrize("norms", [np.empty(0), np.full(30, np.nan), np.zeros(30), np.ones(3)])
def test_of_too_few_norms_nothing_is_said_but_that_they_are_broken(norms):
    found = norm_findings([series(norms=norms)])
    assert all("not finite" in one.text for one in found)
    assert not rate_findings([series(norms=norms)], 0.5)
