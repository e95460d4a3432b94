"""The statistics that the tables of the studies rely on, on numbers that are known."""

import math
from dataclasses import replace
from math import exp, inf, isnan, log

import numpy as np
import pytest
from scipy import stats

from autoclip.policies import Fixed, NoClip, RunningQuantile
from autoclip.sweeps.scoring import Run
from autoclip.traces import NormTrace
from experiments.studies.costs import cost_sections, cost_table, is_saved, is_tame, ratio, told_apart
from experiments.studies.drift.replays import replayed
from experiments.studies.drift.streams import streams
from experiments.studies.learning_rates.sensitivity import sensitivity
from experiments.studies.loss_scale.__main__ import _deviation
from experiments.studies.real_logs.facts import described, rank_trend
from experiments.studies.results import RunRow
from experiments.studies.runner import recovery_from
from experiments.studies.statistics import Cell, cells_of, holm, paired, pooled, regrets, signed_rank, wilson
from experiments.studies.study import Study
from experiments.studies.tables import failure_rows, failure_table, pair_table, regret_table


def row(arm: str, seed: int, loss: float | None, *, task: str = "a", failed: bool = False) -> RunRow:
    return RunRow(task, arm, 0.1, seed, "0" * 8, "", failed, loss, 2.0, 2.0, 1.0, 10, 0.25, 0, None, 1.0)


def study_of(tasks: str, arms: list[str], untouched: str) -> Study:
    return Study.model_validate(
        {
            "seeds": 3,
            "tasks": {name: {"config": "a.yaml", "lrs": [0.1]} for name in tasks.split()},
            "arms": {arm: {"policy": {"kind": "none"}} for arm in arms},
            "references": arms[:1],
            "default": arms[-1],
            "untouched": [untouched],
        }
    )


# Medians of the cell a@0.1: x .5, z 2.0 (one run has no loss and counts L0, another is above L0), y 1.0.
ARMS = ["x", "z", "y"]
HAND = [
    *(row("x", seed, loss) for seed, loss in enumerate((0.4, 0.5, 0.6))),
    *(row("y", seed, loss) for seed, loss in enumerate((0.8, 1.0, 1.2))),
    *(row("z", seed, loss, failed=True) for seed, loss in enumerate((None, 7.0, 1.9))),
]
EQUAL = [row(arm, seed, 1.0, task="b") for arm in ARMS for seed in range(3)]


def test_regret_is_the_distance_to_the_best_median():
    (cell,) = cells_of(HAND, ARMS)
    assert cell.medians.tolist() == [0.5, 2.0, 1.0]
    assert cell.regrets == pytest.approx([0.0, 1.0, 0.5 / 1.5])
    assert regrets(np.array([[2.0, 2.0], [2.0, 2.0]]), 2.0).tolist() == [0.0, 0.0], "nobody learned"


def test_a_seed_that_a_rule_has_not_finished_is_left_out_of_its_cell_only():
    rows = [one for one in HAND if (one.arm, one.seed) != ("y", 2)] + [row("x", 5, 0.1, task="b")]
    first, second = cells_of(rows, ARMS)
    assert (first.seeds, first.losses.shape) == ((0, 1), (3, 2))
    assert (second.arms, second.seeds) == (("x",), (5,))


def test_pooled_regret_brackets_the_median_and_the_worst_cell():
    over = pooled(cells_of(HAND + EQUAL, ARMS), "y")
    assert (over.median, over.worst, over.worst_cell) == (pytest.approx(1 / 6), pytest.approx(1 / 3), "a@0.1")
    assert over.worst_interval[0] <= over.worst <= over.worst_interval[1]
    assert over == pooled(cells_of(HAND + EQUAL, ARMS), "y"), "the bootstrap has a seed of its own"


def test_wilson_agrees_with_published_values():
    for (hits, of), interval in {(0, 45): (0.0, 0.0787), (5, 10): (0.2366, 0.7634), (3, 3): (0.4385, 1.0)}.items():
        assert wilson(hits, of) == pytest.approx(interval, abs=1e-4)


def test_paired_comparison_is_a_t_test_on_the_logs():
    own, others = [0.4, 0.5, 0.6, 0.45], [0.8, 1.1, 1.1, 0.7]
    result = paired(own, others)
    reference = stats.ttest_rel(np.log(own), np.log(others))
    interval = reference.confidence_interval(0.95)
    assert result.p == pytest.approx(reference.pvalue)
    assert (log(result.low), log(result.high)) == pytest.approx((interval.low, interval.high))
    assert result.ratio == pytest.approx(exp(np.mean(np.log(own) - np.log(others))))
    single = paired([0.5], [1.0])
    assert (single.ratio, single.low, single.high, single.p) == (0.5, 0.0, inf, 1.0)


def test_signed_rank_and_holm():
    assert signed_rank([0.0, 0.0]) == 1.0
    assert signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 2**6)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_tables_hold_a_row_for_every_rule():
    cells = cells_of(HAND + EQUAL, ARMS)
    failures = {(one["arm"], one["task"]): (one["failed"], one["runs"]) for one in failure_rows(cells, ARMS)}
    assert (failures["z", "a"], failures["z", "all"], failures["x", "all"]) == ((3, 3), (3, 6), (0, 6))
    assert "| z | 3/3 [44, 100] | 0/3 [0, 56] | 3/6 [19, 81] |" in failure_table(cells, ARMS)
    rows = [line.split(" | ") for line in regret_table(study_of("a b", ARMS, "b"), cells).splitlines()[2:]]
    assert [cells[:2] for cells in rows] == [["| x", "0"], ["| z", "100"], ["| **y** (default)", "33"]]
    assert f"| y | {2**0.5:.2f} |" in pair_table(cells, ARMS, "x"), "twice the loss in one cell, equal in the other"


def cell(task: str, losses: list[float], failed: tuple[str, ...] = ()) -> Cell:
    rows = [
        replace(
            row(arm, seed, loss + 0.01 * (seed - 1), task=task, failed=arm in failed and seed == 0),
            mean_coefficient=0.9,
        )
        for arm, loss in zip(("none", "fixed 1", "net"), losses, strict=True)
        for seed in range(3)
    ]
    (found,) = cells_of(rows, ["none", "fixed 1", "net"])
    return found


COSTS = study_of("calm wild lost solved", ["none", "fixed 1", "net"], "wild")
CALM = cell("calm", [0.5, 0.4, 0.44])
WILD = cell("wild", [1.9, 0.5, 0.8], failed=("none",))
LOST = cell("lost", [1.9, 1.9, 1.9], failed=("none", "fixed 1", "net"))


def test_tame_and_saved_cells():
    assert [(is_tame(one), is_saved(one)) for one in (CALM, WILD, LOST)] == [
        (True, False),
        (False, True),
        (False, False),
    ]


def test_ratios_are_of_medians_and_there_is_none_to_a_loss_of_almost_nothing():
    assert ratio(CALM, "net", ["none", "fixed 1", "fixed 5"]) == pytest.approx(1.1)
    assert isnan(ratio(cell("solved", [0.5, 0.001, 0.4]), "net", ["none", "fixed 1"]))


def test_the_summary_takes_ratios_from_tame_cells_and_failures_from_saved_ones():
    lines = cost_table(COSTS, [CALM, WILD, LOST]).splitlines()
    assert lines[-1] == (
        "| **net** (default) | 1.10 (1.10) | 1.10 (1.10) | 0.88 (0.88) | 25 (25) | 90 (90) | 0 of 3 | 20 (20) |"
    )
    assert "| none | 1.25 (1.25) | 1.25 (1.25) | 1.00 (1.00) | 25 (25) | 90 (90) | 1 of 3 | 93 (93) |" in lines
    assert cost_sections(COSTS, []) == []


def test_cells_are_told_apart_seed_by_seed():
    text = told_apart(COSTS, [CALM, cell("lost", [0.5, 0.4, 0.402]), WILD])
    assert "behind the best constant in 2: calm 0.1 (1.1 [" in text
    assert "ahead in 1: calm 0.1 (0.909" in told_apart(COSTS, [cell("calm", [0.5, 0.44, 0.4])])
    noisy = replace(CALM, losses=CALM.losses * [[1, 1, 1], [1, 3, 1 / 3], [1, 1, 1]])
    assert "in the other 1 the two cannot be told apart" in told_apart(COSTS, [noisy])


def test_sensitivity_by_hand():
    def at(lr: float, losses: list[list[float]], failed: list[list[bool]]) -> Cell:
        array = np.array(losses)
        ones = np.ones_like(array)
        return Cell("a", lr, ("x", "y"), (0, 1), array, np.array(failed), 0 * ones, ones, 2.0)

    no, yes = [False, False], [False, True]
    cells = [at(0.1, [[0.5, 0.5], [1.0, 1.0]], [no, no]), at(1.0, [[0.5, 0.7], [2.0, 1.4]], [no, yes])]
    x, y = sensitivity(cells, "x"), sensitivity(cells, "y")
    assert x.value == pytest.approx((0 + 0 + 0 + 0.2 / 1.5) / 4)
    assert y.value == pytest.approx((1 / 3 + 1 / 3 + 1 + 1) / 4), "the failed run counts 1, not .6"
    assert (x.first, x.last, x.rates, x.of, y.rates) == (0.1, 1.0, 2, 2, 0)


def test_steps_until_a_run_is_back():
    calm = np.tile([1.0, 1.1], 100)
    for after, steps in (([*[5.0] * 7, *calm], 7), (calm, 0), ([np.nan] * 30, 30), (calm[:9], None)):
        assert recovery_from(200, np.concatenate([calm, [50.0], after])) == steps


def test_realised_rates_and_caught_spikes():
    stream = streams(3000)["spikes"]
    tracker = replayed(stream, None, RunningQuantile(percentile=50))
    assert (tracker["promised"], tracker["clip_rate"]) == (0.5, pytest.approx(0.5, abs=0.02))
    assert tracker["caught"] == tracker["spikes"] > 5
    assert replayed(stream, None, NoClip())["caught"] == 0
    loose = replayed(stream, None, Fixed(20.0))
    assert loose["clip_rate"] == pytest.approx(stream.spiked.mean(), abs=0.005)
    assert loose["caught"] == 0, "twenty times the typical norm is not tamed"


def test_deviation_by_hand():
    def run(*losses: float) -> Run:
        return Run(losses, (), (), len(losses), losses[-1], 2.0, inf, False, 1.0)

    plain = run(1.0, 2.0, 4.0)
    for scaled, steps, deviation in ((run(8.0, 16.0, 32.0), 3, 0.0), (run(8.0, 16.0, 40.0), 2, 0.25)):
        found = _deviation(plain, scaled, 8.0)
        assert (found["same_steps"], found["deviation"]) == (steps, deviation)
    assert _deviation(plain, run(8.0, float("nan")), 8.0)["deviation"] == inf


def test_facts_of_a_published_run():
    def facts(norms: list[float]) -> dict[str, object]:
        return described(NormTrace(np.arange(len(norms)), np.array(norms, float), "a", None))

    spiked = facts([2.0] * 60 + [40.0] + [2.0] * 39)
    assert (spiked["above_1"], spiked["above_5"], spiked["drift"]) == (1.0, 0.01, 1.0)
    assert spiked["largest_over_median"] == pytest.approx(20)
    rising = facts(np.exp(np.arange(200) / 100).tolist())
    assert rising["drift"] == pytest.approx(exp(1.6)), "160 steps lie between the middles of the two fifths"
    halves = facts([*range(1, 41), *[15.0] * 20, *[30.0] * 16, *[37.0] * 4])
    assert (halves["held_50"], halves["held_90"]) == (0.5, 0.1)
    rho, low, high = rank_trend(np.array([1.0, 3.0, 2.0, 4.0, 5.0]), 28)
    half = 1.959964 * math.sqrt((1 + 0.81 / 2) / 25)
    assert (rho, low, high) == pytest.approx(
        (0.9, math.tanh(math.atanh(0.9) - half), math.tanh(math.atanh(0.9) + half))
    )
