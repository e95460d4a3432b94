import csv
from dataclasses import replace
from io import StringIO
from itertools import product
from math import isnan
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.tuning.candidates import Candidate, fixed, of_percentile
from autoclip.tuning.outcome import Result, as_csv, degenerate, pareto_front, recommend, result
from autoclip.tuning.scoring import Score
from tests.scores import score_with

NONE = Candidate("none", {"kind": "none"})
QUANTILE = of_percentile("running_quantile", 90)


def scored(seed: int = 0, multiplier: float = 1.0, **changes: object) -> Score:
    return score_with(seed=seed, multiplier=multiplier, **changes)


def reaching(step: int | None) -> dict[str, object]:
    """What makes a run reach any of the tests' targets at the step, or never."""
    return {"trivial_loss": 2.2, "lows": ((1, 2.0),) if step is None else ((1, 2.0), (step, 0.0))}


def found(
    convergence: float,
    instability: float,
    failed: bool = False,
    candidate: Candidate = QUANTILE,
    seeds: int = 1,
) -> Result:
    return Result(
        candidate=candidate,
        scores=tuple(scored(seed, aulc=convergence, failed=failed) for seed in range(seeds)),
        convergence=convergence,
        convergence_spread=0.0,
        instability=instability,
        instability_spread=0.0,
        steps_to_target=None,
    )


def test_figures_are_means_over_seeds_at_the_configured_rate_and_over_all_runs_for_the_instability() -> None:
    runs = [
        scored(0, 1, aulc=1.0, bounded_loss=0.5, clip_rate=0.2),
        scored(0, 3, aulc=9.0, bounded_loss=1.25, clip_rate=0.9),
        scored(1, 1, aulc=1.6, bounded_loss=0.8, clip_rate=0.4),
        scored(1, 3, aulc=9.0, bounded_loss=2.0, failed=True),
    ]
    one = result(QUANTILE, runs, reference=0.5)
    assert one.convergence == pytest.approx(1.3)
    assert one.convergence_spread == pytest.approx(stdev([1.0, 1.6]))
    assert one.instability == pytest.approx((0.0 + 0.5 + 0.2 + 1.0) / 4)
    assert one.instability_spread == pytest.approx(stdev([0.25, 0.6]))
    assert (one.failures, one.all_failures, one.seeds, one.seconds) == (0, 1, 2, 2.0)
    assert one.validation_loss == pytest.approx(0.65)
    assert one.clip_rate == pytest.approx(0.3)
    assert [score.multiplier for score in one.base] == [1, 1]


@pytest.mark.parametrize(
    ("steps", "median"),
    [
        ([7], 7),
        ([None], None),
        ([9, 3, 5], 5),
        ([4, 7], 5.5),
        ([9, None, 5], 9),
        ([9, None, None], None),
        ([9, None], None),
    ],
)
def test_the_steps_to_target_are_the_median_over_the_seeds_and_a_miss_counts_as_endless(
    steps: list[int | None], median: float | None
) -> None:
    runs = [scored(seed, 1.0, **reaching(step)) for seed, step in enumerate(steps)]
    others = [scored(seed, 3.0, **reaching(2)) for seed in range(len(steps))]
    assert result(QUANTILE, [*others, *runs], reference=0.5).steps_to_target == median
    assert result(QUANTILE, [scored(seed) for seed in range(3)], reference=0.5).steps_to_target is None


def test_of_two_rates_as_near_to_the_configured_one_a_single_one_stands_for_it() -> None:
    runs = [scored(seed, rate, aulc=rate, failed=rate > 1) for seed in (0, 1) for rate in (0.5, 1.5)]
    one = result(QUANTILE, runs, reference=0.5)
    assert (one.convergence, one.convergence_spread, one.failures, one.seeds) == (0.5, 0.0, 0, 2)


def test_a_single_run_has_no_spread() -> None:
    one = result(NONE, [scored(seed=7)], reference=0.5)
    assert (one.convergence, one.convergence_spread, one.instability, one.instability_spread) == (1.0, 0.0, 0.0, 0.0)


def test_without_multiplier_one_the_nearest_stands_for_the_configured_rate() -> None:
    runs = [
        scored(seed, multiplier, aulc=multiplier, failed=multiplier > 3) for seed in (0, 1) for multiplier in (2, 9)
    ]
    one = result(QUANTILE, runs, reference=0.5)
    assert (one.convergence, one.failures, one.all_failures) == (2.0, 0, 2)


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 4), st.sampled_from([1.0, 3.0, 10.0])),
        st.tuples(st.floats(0, 2), st.floats(0, 2), st.booleans()),
        min_size=1,
    )
)
def test_what_comes_out_is_finite_and_a_failure_counts_one(
    runs: dict[tuple[int, float], tuple[float, float, bool]],
) -> None:
    scores = [
        scored(seed, multiplier, aulc=aulc, bounded_loss=loss, failed=failed)
        for (seed, multiplier), (aulc, loss, failed) in runs.items()
    ]
    one = result(QUANTILE, scores, reference=0.25)
    least = min(multiplier for _, multiplier in runs)
    areas = [aulc for (_, multiplier), (aulc, _, _) in runs.items() if multiplier == least]
    assert one.convergence == pytest.approx(fmean(areas))
    shares: dict[int, list[float]] = {}
    for (seed, _), (_, loss, failed) in runs.items():
        shares.setdefault(seed, []).append(1.0 if failed else (loss - 0.25) / 1.75)
    assert one.instability == pytest.approx(fmean(fmean(share) for share in shares.values()))
    assert one.instability <= 1
    assert one.failures <= one.all_failures == sum(failed for _, _, failed in runs.values())


points = st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3), st.booleans()), max_size=12)


@given(points)
def test_the_front_holds_exactly_the_feasible_that_nothing_dominates(given_points: list[tuple[int, int, bool]]) -> None:
    results = [found(convergence, instability, failed) for convergence, instability, failed in given_points]
    expected = []
    for x, y in sorted((x, y) for x, y, failed in given_points if not failed):
        faster = [v for u, v, failed in given_points if not failed and u < x]
        as_fast = [v for u, v, failed in given_points if not failed and u == x]
        if all(v > y for v in faster) and min(as_fast) == y:
            expected.append((x, y))
    front = pareto_front(results)
    assert [(one.convergence, one.instability) for one in front] == expected
    assert not any(one.failures for one in front)


@given(points)
def test_the_recommended_is_the_steadiest_of_the_fast_and_never_one_that_failed(
    given_points: list[tuple[int, int, bool]],
) -> None:
    results = [found(1 + x / 40, y, failed) for x, y, failed in given_points]
    chosen = recommend(results)
    feasible = [one for one in results if not one.failures]
    if not feasible:
        assert chosen is None
        return
    assert chosen is not None
    best = min(one.convergence for one in feasible)
    near = [one for one in feasible if one.convergence / best <= 1.05 + 1e-12]
    assert not chosen.chosen.failures
    assert chosen.chosen.convergence / best <= 1.05 + 1e-12
    assert chosen.chosen.instability == min(one.instability for one in near)
    if len(feasible) == 1:
        assert chosen.runner_up is None
    else:
        assert chosen.runner_up is not None
        assert chosen.runner_up is not chosen.chosen
        assert not chosen.runner_up.failures


def test_five_per_cent_slower_is_still_fast_enough() -> None:
    fastest, edge, beyond = found(2.0, 0.9), found(2.1, 0.5), found(2.1001, 0.1)
    choice = recommend([fastest, edge, beyond])
    assert choice is not None
    assert choice.chosen is edge
    assert choice.runner_up is fastest
    assert "lowest instability (0.500) among the 2 of 3 candidates" in choice.reason
    assert "(2.100) is within 5 % of the best (2.000)" in choice.reason


def test_where_only_one_is_fast_enough_the_next_fastest_follows() -> None:
    fastest, slow, slower = found(1.0, 0.9), found(1.5, 0.5), found(2.0, 0.1)
    choice = recommend([slower, slow, fastest])
    assert choice is not None
    assert (choice.chosen, choice.runner_up) == (fastest, slow)


def test_a_failed_candidate_does_not_set_the_best() -> None:
    dead, alive = found(0.1, 0.0, failed=True), found(1.0, 0.5)
    choice = recommend([dead, alive])
    assert choice is not None
    assert (choice.chosen, choice.runner_up) == (alive, None)
    assert recommend([dead, dead]) is None
    assert recommend([]) is None


def test_after_a_race_the_choice_is_among_those_with_the_most_seeds() -> None:
    lucky, beaten = found(0.5, 0.0), found(1.0, 0.1, seeds=2)
    steady, fast = found(1.03, 0.4, seeds=3), found(1.0, 0.6, seeds=3)
    choice = recommend([lucky, beaten, steady, fast])
    assert choice is not None
    assert (choice.chosen, choice.runner_up) == (steady, fast)
    assert choice.reason == (
        "lowest instability (0.400) among the 2 of 4 candidates whose mean training loss (1.030) is within 5 % of the "
        "best (1.000) (of the 2 that the race gave 3 seeds)"
    )
    last = recommend([lucky, beaten, steady])
    assert last is not None
    assert (last.chosen, last.runner_up) == (steady, None)


def test_finalists_that_failed_do_not_count_and_without_a_race_nothing_is_said_of_it() -> None:
    dead, second, first = found(0.5, 0.0, failed=True, seeds=3), found(1.0, 0.3, seeds=2), found(1.0, 0.1)
    choice = recommend([first, dead, second])
    assert choice is not None
    assert choice.chosen is second
    assert "the 1 that the race gave 2 seeds" in choice.reason
    plain = recommend([dead, second, found(1.0, 0.4, seeds=2)])
    assert plain is not None
    assert plain.chosen is second
    assert "race" not in plain.reason


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3), st.booleans(), st.integers(1, 3)), max_size=10))
def test_the_recommended_and_the_one_after_it_have_as_many_seeds_as_any_that_did_not_fail(
    rows: list[tuple[int, int, bool, int]],
) -> None:
    results = [found(1 + x / 40, y, failed, seeds=seeds) for x, y, failed, seeds in rows]
    choice = recommend(results)
    most = max((one.seeds for one in results if not one.failures), default=0)
    finalists = [one for one in results if not one.failures and one.seeds == most]
    alone = recommend(finalists)
    if choice is None or alone is None:
        assert choice is alone is None
        return
    assert (choice.chosen, choice.runner_up) == (alone.chosen, alone.runner_up)
    assert choice.chosen.seeds == most


@pytest.mark.parametrize("best", [0.0, -2.0])
def test_losses_at_or_below_zero_are_compared_too(best: float) -> None:
    fastest, near, far = found(best, 0.5), found(best + 0.05 * abs(best), 0.1), found(best + 1, 0.0)
    choice = recommend([fastest, near, far])
    assert choice is not None
    assert choice.chosen is near


def test_candidates_that_never_or_always_clip_are_noted() -> None:
    def clipping(candidate: Candidate, *rates: float | None) -> Result:
        return result(candidate, [scored(seed, clip_rate=rate) for seed, rate in enumerate(rates)], 0.5)

    assert degenerate([clipping(fixed(10.0), 0.0, 0.0)]) == ["fixed 10 never clipped: it is the same as no clipping"]
    assert degenerate([clipping(QUANTILE, 1.0, 1.0)]) == ["running_quantile p90 clipped every step after its warm-up"]
    assert degenerate([clipping(QUANTILE, 0.0, 0.0)]) == [
        "running_quantile p90 never clipped after its warm-up, or never left it"
    ]
    unknown = clipping(QUANTILE, None, None)
    assert isnan(unknown.clip_rate)
    assert degenerate([unknown]) == ["running_quantile p90 never clipped after its warm-up, or never left it"]
    assert "nan" not in as_csv([unknown])
    assert clipping(QUANTILE, None, 0.5).clip_rate == 0.5
    assert degenerate([clipping(fixed(1.0), 1.0, 1.0)]) == ["fixed 1 clipped every step"]
    assert degenerate([clipping(QUANTILE, 1.0, 0.9), clipping(NONE, 0.0, 0.0)]) == []


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ([1.0, 1.1, 1.2], [1.0, 1.1, 1.2], True),  # equal to the last bit
        ([1.0, 1.1, 1.2], [1.05, 1.0, 1.3], True),  # differences of either sign
        ([1.0, 1.1, 1.2], [1.5, 1.61, 1.7], False),  # always worse
        ([1.0, 1.1, 1.2], [1.5, 1.6, 1.7], False),  # worse by a constant
        ([1.0], [1.5], False),  # a single pair says nothing of the noise
        ([1.0, 1.1], [1.05, 1.0], False),  # nor do two
    ],
)
def test_thresholds_within_noise_are_noted(first: list[float], second: list[float], same: bool) -> None:
    results = [
        result(fixed(threshold), [scored(seed, aulc=area) for seed, area in enumerate(areas)], 0.5)
        for threshold, areas in ((1.0, first), (5.0, second))
    ]
    expected = ["fixed 1 and fixed 5 are the same within the noise of 3 seeds"] if same else []
    assert degenerate(results) == expected
    others = [replace(one, candidate=of_percentile("running_quantile", 10 * n)) for n, one in enumerate(results)]
    assert degenerate(others) == []


def test_thresholds_whose_validation_losses_differ_at_other_rates_are_not_the_same() -> None:
    results = []
    for threshold, loss in ((1.0, 0.1), (5.0, 1.8)):
        seeds = [scored(seed, aulc=1.0) for seed in range(3)]
        others = [scored(seed, 3, bounded_loss=loss + 0.01 * seed * threshold) for seed in range(3)]
        results.append(result(fixed(threshold), [*seeds, *others], 0.05))
    assert degenerate(results) == []


def test_the_csv_reads_back() -> None:
    slow = [
        scored(seed, multiplier, aulc=1.5, spikes=seed, **reaching(7)) for seed, multiplier in product((0, 1), (1, 3))
    ]
    fast = [scored(seed, multiplier, failed=multiplier == 3) for seed, multiplier in product((0, 1), (1, 3))]
    dead = [scored(failed=True, validation_loss=None, bounded_loss=2.0, aulc=2.0)]
    policy = Candidate('m:P(a=x, b="y")', {"kind": "m:P"})
    results = [result(NONE, slow, 0.25), result(policy, fast, 0.25), result(fixed(5.0), dead, 0.25)]
    rows = list(csv.DictReader(StringIO(as_csv(results))))
    assert [row["candidate"] for row in rows] == ["none", 'm:P(a=x, b="y")', "fixed 5"]
    for row, one in zip(rows, results, strict=True):
        assert float(row["convergence"]) == pytest.approx(one.convergence, rel=1e-5)
        assert float(row["convergence_sd"]) == pytest.approx(one.convergence_spread, rel=1e-5)
        assert float(row["instability"]) == pytest.approx(one.instability, rel=1e-5)
        assert float(row["instability_sd"]) == pytest.approx(one.instability_spread, rel=1e-5)
        assert float(row["validation_loss"]) == pytest.approx(one.validation_loss, rel=1e-5)
        assert float(row["clip_rate"]) == pytest.approx(one.clip_rate, abs=1e-4)
        assert float(row["seconds"]) == pytest.approx(one.seconds, abs=0.01)
        assert (int(row["failed"]), int(row["failed_at_any_rate"])) == (one.failures, one.all_failures)
        assert (int(row["runs"]), int(row["steps"])) == (len(one.scores), 10 * len(one.scores))
    assert [row["seeds"] for row in rows] == ["2", "2", "1"]
    assert [row["steps_to_target"] for row in rows] == ["7", "", ""]
    assert [row["spikes"] for row in rows] == ["1", "4", "2"]
    assert [row["pareto"] for row in rows] == ["True", "True", "False"]


def test_differences_of_rounding_decide_nothing() -> None:
    slow, quick = (
        result(candidate, [scored(0, aulc=area, bounded_loss=0.5 + noise)], reference=0.5)
        for candidate, area, noise in ((fixed(1.0), 1.02, -1e-14), (fixed(5.0), 1.0, 1e-14))
    )
    assert str(slow.instability) == str(quick.instability) == "0.0"
    recommendation = recommend([slow, quick])
    assert recommendation is not None
    assert recommendation.chosen is quick
    assert pareto_front([slow, quick]) == [quick]
