import json
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest

from autoclip.pictures.series import read_series
from autoclip.report.series import is_metrics, logged_series, smoothed, smoothing
from autoclip.traces import NormTrace
from tests.report_runs import STEPS, WARMUP, metrics_of, write_run


def test_what_json_cannot_hold_is_read_back(tmp_path: Path) -> None:
    found = read_series(write_run(tmp_path / "seed-0", metrics_of(nonfinite=[3, 40], threshold=None)), "x")
    assert len(found) == STEPS
    assert np.flatnonzero(np.isnan(found.norms)).tolist() == [3, 40]
    assert np.flatnonzero(np.isnan(found.losses)).tolist() == [3, 40]
    assert np.isinf(found.thresholds).all()
    assert found.skipped.sum() == 2
    assert found.warmup.sum() == WARMUP
    assert found.clip_rate == 0


def test_a_torn_end_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, metrics_of())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 120, "los')
    assert len(read_series(tmp_path, "x")) == STEPS


def test_an_empty_file_is_a_run_without_steps(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert is_metrics(tmp_path / "metrics.jsonl")
    found = read_series(tmp_path, "x")
    assert len(found) == 0
    assert np.isnan(found.clip_rate)
    assert not len(found.rolling_clip_rate()[0])


@pytest.mark.parametrize("text", ['{"step": 1, "loss": 2}\n', "no json\n", "[1, 2]\n", "3\n"])
def test_other_files_of_this_name_are_not_taken_for_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    assert not is_metrics(tmp_path / "metrics.jsonl")


def test_lines_with_other_things_in_them_do_no_harm(tmp_path: Path) -> None:
    lines = metrics_of(2)
    lines[1] |= {"total_norm": "high", "loss": True, "clipped": 1, "phase": None}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_series(tmp_path, "x")
    assert np.isnan(found.norms).tolist() == [False, True]
    assert np.isnan(found.losses).tolist() == [False, True]
    assert not found.clipped[1]


def test_the_smoothed_loss_neither_lags_nor_shows_a_single_spike() -> None:
    losses = np.linspace(10, 0, 2001)
    losses[700] = 1e6
    at, width = smoothing(2001)
    curve = smoothed(losses, at, width)
    assert (len(at), width) == (1000, 40)
    inner = (at > 40) & (at < 1960)
    assert np.abs(curve - np.linspace(10, 0, 2001)[at])[inner].max() < 0.01


def test_a_trace_is_drawn_as_it_was_logged() -> None:
    trace = NormTrace(
        steps=[0, 10, 20, 30], norms=[1.0, 3.0, inf, 3.0], source="by hand", thresholds=[nan, 2.0, 2.0, inf]
    )
    found = logged_series(trace)
    assert found.steps.tolist() == [0, 10, 20, 30]
    assert np.isnan(found.norms).tolist() == [False, False, True, False]
    assert found.clipped.tolist() == [False, True, False, False]
    assert not found.warmup.any()
    assert not found.skipped.any()


def test_smoothing_passes_over_gaps_and_ends_with_the_run() -> None:
    losses = np.array([1.0, nan, 3.0, inf])
    assert smoothed(losses, np.array([0, 1, 2]), 3).tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(smoothed(losses, np.array([3, 4, 9]), 1)).all()
    assert smoothing(0)[0].tolist() == []
    assert smoothed(np.empty(0), *smoothing(0)).tolist() == []
