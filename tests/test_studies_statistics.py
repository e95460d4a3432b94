from math import exp, inf, log

import numpy as np
import pytest
from scipy import stats

from experiments.studies.results import RunRow
from experiments.studies.statistics import cells_of, holm, paired, pooled, regrets, signed_rank, wilson
from experiments.studies.study import Study
from experiments.studies.tables import (
    failure_rows,
    failure_table,
    pair_table,
    regret_rows,
    regret_table,
)


def row(arm: str, seed: int, loss: float | None, *, task: str = "a", lr: float = 0.1, failed: bool = False) -> RunRow:
    return RunRow(
        task=task,
        arm=arm,
        lr=lr,
        seed=seed,
        setting="00000000",
        data="",
        failed=failed,
        validation_loss=loss,
        initial_loss=2.0,
        trivial_loss=2.0,
        aulc=1.0,
        steps=10,
        clip_rate=0.25,
        spikes=0,
        recovery=None,
        seconds=1.0,
    )


# Medians of the cell a@0.1: x .5, y 1.0, z 2.0 (one run has no loss and counts L0, another is above L0).
HAND = [
    *(row("x", seed, loss) for seed, loss in enumerate((0.4, 0.5, 0.6))),
    *(row("y", seed, loss) for seed, loss in enumerate((0.8, 1.0, 1.2))),
    *(row("z", seed, loss, failed=True) for seed, loss in enumerate((None, 7.0, 1.9))),
]
ARMS = ["x", "y", "z"]
STUDY = Study.model_validate(
    {
        "seeds": 3,
        "tasks": {"a": {"config": "a.yaml", "lrs": [0.1]}, "b": {"config": "b.yaml", "lrs": [0.1]}},
        "arms": {arm: {"policy": {"kind": "none"}} for arm in ARMS},
        "references": ["x"],
        "default": "y",
        "untouched": ["b"],
    }
)


def test_regret_is_the_distance_to_the_best_median_in_units_of_what_can_be_learned():
    (cell,) = cells_of(HAND, ARMS)
    assert cell.name == "a@0.1"
    assert cell.medians.tolist() == [0.5, 1.0, 2.0]
    assert cell.regrets == pytest.approx([0.0, 0.5 / 1.5, 1.0])
    rows = regret_rows([cell])
    assert [one["regret"] for one in rows] == pytest.approx([0.0, 1 / 3, 1.0])
    assert [one["failed"] for one in rows] == [0, 0, 3]


def test_regret_is_zero_for_all_where_nobody_learned():
    assert regrets(np.array([[2.0, 2.0], [2.0, 2.0]]), 2.0).tolist() == [0.0, 0.0]


def test_a_seed_that_a_rule_has_not_finished_is_left_out_of_its_cell_only():
    rows = [one for one in HAND if (one.arm, one.seed) != ("y", 2)] + [row("x", 5, 0.1, task="b")]
    first, second = cells_of(rows, ARMS)
    assert first.seeds == (0, 1)
    assert first.losses.shape == (3, 2)
    assert (second.arms, second.seeds) == (("x",), (5,))


def test_pooled_regret_brackets_the_median_and_the_worst_cell():
    rows = HAND + [
        row(arm, seed, loss, task="b") for seed in range(3) for arm, loss in zip(ARMS, (1, 1, 1), strict=True)
    ]
    cells = cells_of(rows, ARMS)
    over = pooled(cells, "y")
    assert over.median == pytest.approx((1 / 3 + 0) / 2)
    assert over.worst == pytest.approx(1 / 3)
    assert over.worst_cell == "a@0.1"
    assert over.worst_interval[0] <= over.worst <= over.worst_interval[1]
    assert over == pooled(cells, "y"), "the bootstrap has a seed of its own"


def test_wilson_agrees_with_published_values():
    assert wilson(0, 45) == pytest.approx((0.0, 0.0787), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(3, 3) == pytest.approx((0.4385, 1.0), abs=1e-4)


def test_paired_comparison_is_a_t_test_on_the_logs():
    own, others = [0.4, 0.5, 0.6, 0.45], [0.8, 1.1, 1.1, 0.7]
    result = paired(own, others)
    reference = stats.ttest_rel(np.log(own), np.log(others))
    interval = reference.confidence_interval(0.95)
    assert result.p == pytest.approx(reference.pvalue)
    assert (log(result.low), log(result.high)) == pytest.approx((interval.low, interval.high))
    assert result.ratio == pytest.approx(exp(np.mean(np.log(own) - np.log(others))))


def test_paired_comparison_of_equal_runs_and_of_a_single_pair():
    same = paired([0.5, 0.7], [0.5, 0.7])
    assert (same.ratio, same.low, same.high, same.p) == (1.0, 1.0, 1.0, 1.0)
    single = paired([0.5], [1.0])
    assert (single.ratio, single.low, single.high, single.p) == (0.5, 0.0, inf, 1.0)


def test_signed_rank_and_holm():
    assert signed_rank([0.0, 0.0]) == 1.0
    assert signed_rank([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 2**6)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_failures_are_counted_by_task_and_over_all():
    rows = HAND + [row(arm, seed, 1.0, task="b") for arm in ARMS for seed in range(3)]
    counted = {
        (one["arm"], one["task"]): (one["failed"], one["runs"]) for one in failure_rows(cells_of(rows, ARMS), ARMS)
    }
    assert counted["z", "a"] == (3, 3)
    assert counted["z", "all"] == (3, 6)
    assert counted["x", "all"] == (0, 6)


def test_tables_hold_a_row_for_every_rule_and_mark_the_default_and_what_it_never_saw():
    rows = HAND + [row(arm, seed, 1.0, task="b") for arm in ARMS for seed in range(3)]
    cells = cells_of(rows, ARMS)
    lines = regret_table(STUDY, cells).splitlines()
    assert lines[0].startswith(
        "| rule | a 0.1 | b 0.1* | median cell | worst cell | failed runs | avoidable | median of * |"
    )
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| x", "| **y** (default)", "| z"]
    assert [line.split(" | ")[1] for line in lines[2:]] == ["0", "33", "100"]
    assert [line.split(" | ")[6] for line in lines[2:]] == ["0", "0", "3"]
    assert "| z | 3/3 [44, 100] | 0/3 [0, 56] | 3/6 [19, 81] |" in failure_table(cells, ARMS)
    pairs = pair_table(cells, ARMS, "x").splitlines()
    assert len(pairs) == 4, "the reference is not compared with itself"
    assert pairs[2].startswith(f"| y | {2**0.5:.2f} |"), "twice the loss in one cell, the same in the other"
