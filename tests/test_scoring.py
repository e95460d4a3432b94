import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest

from autoclip.errors import RunError
from autoclip.tuning.scoring import (
    Run,
    Score,
    aulc,
    clip_rate,
    instability,
    instability_of,
    read_run,
    reference_loss,
    score,
    spikes,
    steps_to_target,
)

GOOD = Run(
    losses=(2.0, 1.0, 0.5, 0.5),
    clipped=(True, False, True, True),
    planned_steps=4,
    validation_loss=0.6,
    initial_loss=2.0,
    trivial_loss=2.2,
    diverged=False,
    seconds=1.0,
)


def test_the_area_counts_the_initial_loss_for_what_is_above_it_missing_or_not_finite() -> None:
    assert aulc(GOOD) == 1.0
    assert aulc(replace(GOOD, losses=(9.0, 1.0, 0.5, 0.5))) == 1.0
    assert aulc(replace(GOOD, losses=(2.0, nan, inf, 0.5))) == (2 + 2 + 2 + 0.5) / 4
    assert aulc(replace(GOOD, losses=(2.0, 1.0), diverged=True)) == (2 + 1 + 2 + 2) / 4
    assert aulc(replace(GOOD, losses=())) == 2.0


def test_instability_is_zero_at_the_reference_one_for_a_failure_and_a_mean_over_runs() -> None:
    def scored(**changes: object) -> Score:
        return score(replace(GOOD, **changes), multiplier=1.0, seed=0)

    assert instability_of(scored(validation_loss=0.5), reference=0.5) == 0.0
    assert instability_of(scored(validation_loss=1.25), reference=0.5) == 0.5
    assert instability_of(scored(validation_loss=0.2), reference=0.5) == pytest.approx(-0.2)
    dead, broken = scored(validation_loss=2.1), scored(validation_loss=nan, diverged=True)
    assert dead.failed
    assert broken.failed
    assert broken.validation_loss is None
    assert instability([scored(validation_loss=0.5), dead, broken, broken], reference=0.5) == 0.75


def test_the_reference_is_the_best_mean_over_seeds_of_any_threshold_and_learning_rate() -> None:
    def scored(loss: float, multiplier: float, seed: int) -> Score:
        return score(replace(GOOD, validation_loss=loss), multiplier, seed)

    first = [scored(0.4, 1, 0), scored(0.8, 1, 1), scored(0.5, 3, 0), scored(0.5, 3, 1)]
    second = [scored(0.1, 1, 0), scored(1.1, 1, 1)]
    assert reference_loss([first, second]) == 0.5


@pytest.mark.parametrize(
    ("loss", "diverged", "failed"), [(2.09, False, False), (2.091, False, True), (nan, False, True), (0.1, True, True)]
)
def test_a_run_fails_when_it_is_non_finite_or_no_better_than_a_constant(
    loss: float, diverged: bool, failed: bool
) -> None:
    assert replace(GOOD, validation_loss=loss, diverged=diverged).failed is failed


def test_a_task_without_a_trivial_loss_fails_only_by_diverging() -> None:
    assert not replace(GOOD, validation_loss=1e9, trivial_loss=inf).failed


def test_an_unbounded_loss_counts_as_the_initial_one() -> None:
    assert replace(GOOD, validation_loss=50.0).bounded_loss == 2.0
    assert replace(GOOD, validation_loss=nan).bounded_loss == 2.0
    assert GOOD.bounded_loss == 0.6


def test_steps_to_target_follow_the_average_loss() -> None:
    run = replace(GOOD, losses=(2.0, *([0.1] * 40)), planned_steps=41)
    average, expected = 2.0, None
    for step, loss in enumerate(run.losses[1:], start=2):
        average = 0.9 * average + 0.1 * loss
        if average <= 0.1 + 0.1 * (2.2 - 0.1):
            expected = step
            break
    assert steps_to_target(run, reference=0.1) == expected
    assert steps_to_target(GOOD, reference=0.1) is None
    assert steps_to_target(replace(run, losses=(2.0, nan, *([0.1] * 40))), reference=0.1) is None


def test_a_spike_stands_six_deviations_above_the_128_losses_before() -> None:
    calm = tuple(1.0 + 0.01 * (-1) ** step for step in range(200))
    assert spikes(replace(GOOD, losses=calm)) == 0
    assert spikes(replace(GOOD, losses=(*calm, 1.05))) == 0
    assert spikes(replace(GOOD, losses=(*calm, 1.07))) == 1
    assert spikes(replace(GOOD, losses=(*calm[:127], 50.0))) == 0


def test_the_clip_rate_is_the_share_of_clipped_steps() -> None:
    assert clip_rate(GOOD) == 0.75
    assert clip_rate(replace(GOOD, clipped=())) == 0.0


def test_a_run_directory_is_read_and_an_unfinished_one_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run"):
        read_run(tmp_path)
    summary = {
        "status": "diverged",
        "steps": 2,
        "planned_steps": 5,
        "validation_loss": None,
        "initial_validation_loss": 2.5,
        "trivial_loss": None,
        "seconds": 3.0,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    first = {"step": 0, "loss": 2.0, "total_norm": 4.0, "clipped": True, "phase": "warmup", "finite": True}
    second = {**first, "step": 1, "loss": None, "phase": "active"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    run = read_run(tmp_path)
    assert run.losses[0] == 2.0
    assert run.losses[1] != run.losses[1]
    assert (run.clipped, run.planned_steps, run.trivial_loss, run.diverged) == ((True,), 5, inf, True)
    assert aulc(run) == (2.0 + 4 * 2.5) / 5
    (tmp_path / "metrics.jsonl").write_text(json.dumps(first) + "\n")
    with pytest.raises(RunError, match=r"has 1 lines, its summary tells of 2 steps"):
        read_run(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    with pytest.raises(RunError, match="no finished run"):
        read_run(tmp_path)
