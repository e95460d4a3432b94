import json
import tracemalloc
from dataclasses import asdict, replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.errors import RunError
from autoclip.sweeps.scoring import (
    Run,
    aulc,
    base_scores,
    instability_of,
    learned_nothing,
    read_run,
    reference_loss,
    score,
    score_from,
    steps_to_target,
)
from tests.references import steps_until

GOOD = Run(
    losses=(2.0, 1.0, 0.5, 0.5),
    clipped=(True, False, True, True),
    coefficients=(0.5, 1.0, 0.25, 0.0),
    planned_steps=4,
    validation_loss=0.6,
    initial_loss=2.0,
    trivial_loss=2.2,
    diverged=False,
    seconds=1.0,
)


def test_the_area_counts_the_initial_loss_for_what_is_missing():
    assert aulc(GOOD) == 1.0
    assert aulc(replace(GOOD, losses=(9.0, 1.0, 0.5, 0.5))) == 1.0
    assert aulc(replace(GOOD, losses=(2.0, nan, inf, 0.5))) == (2 + 2 + 2 + 0.5) / 4
    assert aulc(replace(GOOD, losses=(2.0, 1.0), diverged=True)) == (2 + 1 + 2 + 2) / 4
    assert aulc(replace(GOOD, losses=())) == 2.0


def test_the_instability_of_a_run():
    def scored(**changes):
        return score(replace(GOOD, **changes), multiplier=1.0, seed=0)

    assert instability_of(scored(validation_loss=0.5), reference=0.5) == 0.0
    assert instability_of(scored(validation_loss=1.25), reference=0.5) == 0.5
    assert instability_of(scored(validation_loss=0.2), reference=0.5) == pytest.approx(-0.2)
    dead, broken = scored(validation_loss=2.1), scored(validation_loss=nan, diverged=True)
    assert dead.failed
    assert broken.failed
    assert broken.validation_loss is None
    assert instability_of(dead, 0.5) == instability_of(broken, 0.5) == 1.0


def test_the_reference_is_the_best_mean_over_seeds():
    def scored(loss, multiplier, seed):
        return score(replace(GOOD, validation_loss=loss), multiplier, seed)

    first = [scored(0.4, 1, 0), scored(0.8, 1, 1), scored(0.5, 3, 0), scored(0.5, 3, 1)]
    second = [scored(0.1, 1, 0), scored(1.1, 1, 1)]
    assert reference_loss([first, second]) == 0.5


@pytest.mark.parametrize(
    ("loss", "diverged", "failed"), [(2.09, False, False), (2.091, False, True), (nan, False, True), (0.1, True, True)]
)
def test_a_run_fails_when_it_is_non_finite_or_no_better_than_a_constant(loss, diverged, failed):
    assert replace(GOOD, validation_loss=loss, diverged=diverged).failed is failed


@pytest.mark.parametrize(
    ("loss", "trivial", "nothing"),
    [
        (-0.96, -1.0, True),
        (-1.0, -1.0, True),
        (-1.04, -1.0, True),
        (-1.06, -1.0, False),
        (0.0, 0.0, False),
        (0.01, 0.0, True),
        (-0.1, 0.0, False),
        (0.94, 1.0, False),
        (0.96, 1.0, True),
        (nan, -1.0, True),
        (1e9, inf, False),
    ],
)
def test_a_loss_near_that_of_a_constant_is_no_better_whatever_its_sign(loss, trivial, nothing):
    assert learned_nothing(loss, trivial) is nothing
    assert replace(GOOD, validation_loss=loss, trivial_loss=trivial).failed is nothing


def test_a_task_without_a_trivial_loss_fails_only_by_diverging():
    assert not replace(GOOD, validation_loss=1e9, trivial_loss=inf).failed


def test_an_unbounded_loss_counts_as_the_initial_one():
    assert replace(GOOD, validation_loss=50.0).bounded_loss == 2.0
    assert replace(GOOD, validation_loss=nan).bounded_loss == 2.0
    assert GOOD.bounded_loss == 0.6


def scored(**changes):
    return score(replace(GOOD, **changes), multiplier=1.0, seed=0)


def test_steps_to_target_follow_the_average_loss():
    losses = (2.0, *([0.1] * 40))
    expected = steps_until(losses, 0.1 + 0.1 * (2.2 - 0.1))
    assert expected == 22  # .1 + 1.9 x .9^21 is the first below .31
    assert steps_to_target(scored(losses=losses), reference=0.1) == expected
    assert steps_to_target(scored(), reference=0.1) is None
    assert steps_to_target(scored(losses=(0.2, 5.0)), reference=0.1) == 1
    assert steps_to_target(scored(losses=()), reference=0.1) is None


def test_the_target_is_missed_where_the_loss_broke_before():
    falling = (2.0, *([0.1] * 40))
    assert steps_to_target(scored(losses=(2.0, nan, *falling)), reference=0.1) is None
    assert steps_to_target(scored(losses=(inf, *falling)), reference=0.1) is None
    assert steps_to_target(scored(losses=(*falling, nan, 0.0)), reference=0.1) == 22


def test_a_task_without_a_trivial_loss_has_no_target():
    one = scored(trivial_loss=inf)
    assert one.trivial_loss is None
    assert steps_to_target(one, reference=0.1) is None
    assert scored().trivial_loss == 2.2


any_losses = st.lists(st.one_of(st.floats(-5, 5), st.sampled_from([nan, inf])), max_size=40)


@given(any_losses, st.floats(-5, 2))
def test_the_lows_tell_the_steps_to_any_target(losses, reference):
    one = scored(losses=tuple(losses))
    target = reference + 0.1 * (2.2 - reference)
    assert steps_to_target(one, reference) == steps_until(losses, target)
    steps, lows = [step for step, _ in one.lows], [low for _, low in one.lows]
    assert steps == sorted(set(steps))
    assert lows == sorted(set(lows), reverse=True)


@given(any_losses, st.sampled_from([0.4, nan]), st.sampled_from([2.2, inf]))
def test_a_score_is_the_same_after_json(losses, validation_loss, trivial_loss):
    one = scored(losses=tuple(losses), validation_loss=validation_loss, trivial_loss=trivial_loss)
    text = json.dumps(asdict(one), allow_nan=False)
    assert score_from(json.loads(text)) == score_from(asdict(one)) == one


def test_the_base_is_every_run_at_the_configured_rate():
    def at(*multipliers):
        scores = [replace(scored(), multiplier=multiplier) for multiplier in multipliers]
        return [one.multiplier for one in base_scores(scores)]

    assert at(10, 1, 3, 10, 1, 3) == [1, 1]
    assert at(0.1, 3, 0.1) == [0.1, 0.1]
    assert at(0.5, 1.5, 0.5, 1.5) == [0.5, 0.5]  # of two as near the first, never a mixture
    assert at(1.5, 0.5) == [1.5]


def test_a_spike_stands_six_deviations_above_the_128_losses_before():
    calm = tuple(1.0 + 0.01 * (-1) ** step for step in range(200))
    assert scored(losses=calm).spikes == 0
    assert scored(losses=(*calm, 1.05)).spikes == 0
    assert scored(losses=(*calm, 1.07)).spikes == 1
    assert scored(losses=(*calm[:127], 50.0)).spikes == 0


def test_a_loss_that_is_not_finite_hides_no_spike():
    calm = tuple(1.0 + 0.01 * (-1) ** step for step in range(200))
    for broken in (nan, inf):
        assert scored(losses=(*calm, broken, 1.07, 1.0)).spikes == 1
        assert scored(losses=(*calm, broken)).spikes == 0


def test_spikes_of_a_long_run_take_little_memory():
    run = replace(GOOD, losses=tuple(np.random.default_rng(0).normal(1.0, 0.1, 300_000).tolist()))
    tracemalloc.start()
    score(run, multiplier=1.0, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6  # 128 values beside each loss are 300 MB


def test_the_clip_rate_is_the_share_of_clipped_steps():
    assert score(GOOD, multiplier=1.0, seed=0).clip_rate == 0.75
    assert score(replace(GOOD, clipped=()), multiplier=1.0, seed=0).clip_rate is None


def test_the_mean_coefficient_is_that_of_the_active_steps():
    assert score(GOOD, multiplier=1.0, seed=0).mean_coefficient == (0.5 + 1.0 + 0.25) / 4
    assert score(replace(GOOD, coefficients=()), multiplier=1.0, seed=0).mean_coefficient is None


def test_a_score_of_before_there_was_a_mean_coefficient_is_read():
    fields = asdict(score(GOOD, multiplier=1.0, seed=0))
    del fields["mean_coefficient"]
    assert score_from(fields).mean_coefficient is None


def test_a_run_directory_is_read_and_an_unfinished_one_refused(tmp_path):
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
    first["coefficient"] = 0.25
    second = {**first, "step": 1, "loss": None, "phase": "active"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    run = read_run(tmp_path)
    assert run.losses[0] == 2.0
    assert run.losses[1] != run.losses[1]
    assert (run.clipped, run.planned_steps, run.trivial_loss, run.diverged) == ((True,), 5, inf, True)
    assert aulc(run) == (2.0 + 4 * 2.5) / 5
    for initial in (None, float("nan"), float("inf")):
        (tmp_path / "summary.json").write_text(json.dumps(summary | {"initial_validation_loss": initial}))
        with pytest.raises(RunError, match="no finite validation loss from before the first step"):
            read_run(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(first) + "\n")
    with pytest.raises(RunError, match=r"has 1 lines, but its summary has 2 steps"):
        read_run(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    with pytest.raises(RunError, match="no finished run"):
        read_run(tmp_path)
