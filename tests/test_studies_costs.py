from dataclasses import replace
from math import isnan

import pytest

from experiments.studies.costs import (
    cell_table,
    cost_sections,
    cost_table,
    headline_table,
    is_saved,
    is_tame,
    ratio,
    told_apart,
)
from experiments.studies.statistics import Cell, cells_of
from experiments.studies.study import Study
from tests.test_studies_statistics import row

ARMS = ["none", "fixed 1", "net"]
STUDY = Study.model_validate(
    {
        "seeds": 3,
        "tasks": {name: {"config": "a.yaml", "lrs": [0.1]} for name in ("calm", "wild", "lost", "solved")},
        "arms": {arm: {"policy": {"kind": "none"}} for arm in ARMS},
        "default": "net",
        "untouched": ["wild"],
    }
)


def cell(task: str, losses: list[float], failed: tuple[str, ...] = (), left: float | None = 0.9) -> Cell:
    rows = [
        replace(
            row(arm, seed, loss + 0.01 * (seed - 1), task=task, failed=arm in failed and seed == 0),
            mean_coefficient=left,
        )
        for arm, loss in zip(ARMS, losses, strict=True)
        for seed in range(3)
    ]
    (found,) = cells_of(rows, ARMS)
    return found


CALM = cell("calm", [0.5, 0.4, 0.44])
WILD = cell("wild", [1.9, 0.5, 0.8], failed=("none",))
LOST = cell("lost", [1.9, 1.9, 1.9], failed=("none", "fixed 1", "net"))
SOLVED = cell("solved", [0.5, 0.001, 0.4])


def test_a_cell_is_tame_where_nothing_fails_without_clipping_and_saved_where_a_rule_keeps_all_runs():
    assert [is_tame(one) for one in (CALM, WILD, LOST)] == [True, False, False]
    assert [is_saved(one) for one in (CALM, WILD, LOST)] == [False, True, False]


def test_ratios_are_of_the_medians_and_there_is_none_to_a_loss_of_almost_nothing():
    assert ratio(CALM, "net", ["none", "fixed 1", "fixed 5"]) == pytest.approx(1.1)
    assert ratio(CALM, "fixed 1", ARMS) == 1.0
    assert isnan(ratio(SOLVED, "net", ARMS))


def test_the_summary_takes_ratios_from_tame_cells_and_failures_from_saved_ones():
    lines = cost_table(STUDY, [CALM, WILD, LOST]).splitlines()
    assert lines[-1] == (
        "| **net** (default) | 1.10 (1.10) | 1.10 (1.10) | 0.88 (0.88) | 25 (25) | 90 (90) | 0 of 3 | 20 (20) |"
    )
    assert "| none | 1.25 (1.25) | 1.25 (1.25) | 1.00 (1.00) | 25 (25) | 90 (90) | 1 of 3 | 93 (93) |" in lines
    (text, _) = cost_sections(STUDY, [CALM, WILD, LOST])
    assert "In 1 of 3 cells no run fails" in text
    assert "In 1 no rule is without a failed run." in text
    assert cost_sections(STUDY, []) == []


def test_a_length_that_was_not_kept_is_no_number():
    assert cost_table(STUDY, [cell("calm", [0.5, 0.4, 0.44], left=None)]).splitlines()[-1].split(" | ")[5] == "-"


def test_the_cells_have_plain_losses_and_what_the_default_did():
    assert cell_table(STUDY, [CALM, WILD]).splitlines()[2:] == [
        "| calm 0.1 | 0.5 | 0.4 | 0.44 | 1.10 | 2.5 | 25 | 90 |",
        "| wild 0.1* | 1.9 F1 | 0.5 | 0.8 | 1.60 | 20 | 25 | 90 |",
    ]


def test_the_short_table_has_the_losses_of_the_named_cells_and_the_failures_of_all():
    named = STUDY.model_copy(
        update={"headline": ("none", "net"), "headline_cells": {"one": "calm@0.1", "two": "wild@0.1"}}
    )
    lines = headline_table(named, [CALM, WILD]).splitlines()
    assert lines[0] == "|  | one | two* | failed runs, all 2 |"
    assert lines[2:] == ["| none | 0.5 | 1.9 F1 | 1 of 6 |", "| **net** (default) | 0.44 | 0.8 | 0 of 6 |"]


def test_a_cell_of_the_short_table_is_one_of_the_study():
    with pytest.raises(ValueError, match="headline_cells must be among"):
        Study.model_validate(STUDY.model_dump() | {"headline_cells": {"other": "calm@0.2"}})


def test_cells_are_told_apart_seed_by_seed_and_where_nothing_fails():
    near = cell("lost", [0.5, 0.4, 0.402])
    text = told_apart(STUDY, [CALM, near, WILD])
    assert "in the 2 cells" in text
    assert "behind the best constant in 2: calm 0.1 (1.1 [" in text
    assert "lost 0.1 (" in text.partition("; ahead in 0: none;")[0]
    better = cell("calm", [0.5, 0.44, 0.4])
    assert "behind the best constant in 0: none; ahead in 1: calm 0.1 (0.909" in told_apart(STUDY, [better])
    noisy = replace(CALM, losses=CALM.losses[:, [0, 1, 2]] * [[1, 1, 1], [1, 3, 1 / 3], [1, 1, 1]])
    assert "in the other 1 the two cannot be told apart" in told_apart(STUDY, [noisy])
