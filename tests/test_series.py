from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

from autoclip.pictures.series import Series, series_of
from autoclip.records import ClipRecord


def series(**changes: object) -> Series:
    count = len(changes["norms"]) if "norms" in changes else 4  # type: ignore[arg-type]
    empty = np.zeros(count, dtype=np.bool_)
    fields = {
        "label": "run",
        "steps": np.arange(count),
        "norms": np.ones(count),
        "thresholds": np.full(count, inf),
        "losses": np.ones(count),
        "coefficients": np.ones(count),
        "clipped": empty,
        "skipped": empty,
        "warmup": empty,
    }
    return Series(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_clip_rate_leaves_out_warm_up_zeros_and_what_is_not_finite() -> None:
    found = series(
        norms=np.array([1.0, 2.0, nan, 0.0, 3.0, 1.0]),
        clipped=np.array([True, True, True, True, False, False]),
        warmup=np.array([True, False, False, False, False, False]),
        coefficients=np.array([0.1, 0.25, nan, 1.0, 0.75, 0.5]),
    )
    assert found.active.tolist() == [False, True, False, False, True, True]
    assert found.clip_rate == pytest.approx(1 / 3)
    assert found.mean_coefficient == 0.5
    assert np.isnan(replace(found, coefficients=np.full(6, nan)).mean_coefficient)


def test_the_rolling_rate_is_that_of_each_window() -> None:
    clipped = np.random.default_rng(0).random(1500) < 0.3
    steps, rates, window = series(norms=np.ones(1500), clipped=clipped).rolling_clip_rate()
    assert window == 200
    assert (steps[0], steps[-1], len(steps)) == (199, 1499, 1301)
    for place in (0, 700, 1300):
        assert rates[place] == pytest.approx(clipped[place : place + 200].mean())


@pytest.mark.parametrize(("count", "window"), [(19, 0), (20, 20), (300, 60), (5000, 200)])
def test_short_trainings_have_shorter_windows(count: int, window: int) -> None:
    steps, _, used = series(norms=np.ones(count)).rolling_clip_rate()
    assert len(steps) == (count - window + 1 if window else 0)
    assert used == (window or 20)


def test_records_become_the_arrays_of_a_training() -> None:
    records = [
        ClipRecord(7, "warmup", 5.0, 1.0, 0.2, clipped=True, skipped=False, finite=True, loss=0.7),
        ClipRecord(8, "active", nan, 2.0, 0.0, clipped=False, skipped=True, finite=False),
        ClipRecord(9, "active", 1.0, inf, 1.0, clipped=False, skipped=False, finite=True, loss=inf),
    ]
    found = series_of([record.as_json() for record in records], "run")
    assert found.steps.tolist() == [7, 8, 9]
    assert found.norms.tolist() == pytest.approx([5.0, nan, 1.0], nan_ok=True)
    assert found.thresholds.tolist() == [1.0, 2.0, inf]
    assert found.losses.tolist() == pytest.approx([0.7, nan, nan], nan_ok=True)
    assert found.coefficients.tolist() == [0.2, 0.0, 1.0]
    assert found.clipped.tolist() == [True, False, False]
    assert found.skipped.tolist() == [False, True, False]
    assert found.warmup.tolist() == [True, False, False]
