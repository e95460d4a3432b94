import csv
from dataclasses import replace
from io import StringIO
from itertools import product
from math import isnan
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.sweeps.candidates import Candidate, fixed, of_percentile
from autoclip.sweeps.outcome import Result, as_csv, degenerate, pareto_front
from tests.scores import score_with

NONE = Candidate("none", {"kind": "none"})
QUANTILE = of_percentile("running_quantile", 90)


def scored(seed=0, multiplier=1.0, **changes):
    return score_with(seed=seed, multiplier=multiplier, **changes)


def reaching(step):
    """What makes a run reach any of the tests' targets at the step, or never."""
    return {"trivial_loss": 2.2, "lows": ((1, 2.0),) if step is None else ((1, 2.0), (step, 0.0))}


def result(candidate, scores, reference):
    return Result(candidate, tuple(scores), reference)


def found(convergence, instability, failed=False):
    score = scored(0, aulc=convergence, bounded_loss=instability, initial_loss=1.0, failed=False)
    other = scored(0, multiplier=3.0, bounded_loss=instability, initial_loss=1.0)
    return result(QUANTILE, [replace(score, failed=failed), other], 0.0)


def test_figures_are_means_over_seeds_at_the_configured_rate_and_over_all_runs_for_the_instability():
    runs = [
        scored(0, 1, aulc=1.0, bounded_loss=0.5, clip_rate=0.2, mean_coefficient=0.9),
        scored(0, 3, aulc=9.0, bounded_loss=1.25, clip_rate=0.9),
        scored(1, 1, aulc=1.6, bounded_loss=0.8, clip_rate=0.4, mean_coefficient=0.6),
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
    assert one.mean_coefficient == pytest.approx(0.75)
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
def test_the_steps_to_target_are_the_median_over_the_seeds_and_a_miss_counts_as_endless(steps, median):
    runs = [scored(seed, 1.0, **reaching(step)) for seed, step in enumerate(steps)]
    others = [scored(seed, 3.0, **reaching(2)) for seed in range(len(steps))]
    assert result(QUANTILE, [*others, *runs], reference=0.5).steps_to_target == median
    assert result(QUANTILE, [scored(seed) for seed in range(3)], reference=0.5).steps_to_target is None


def test_of_two_rates_as_near_to_the_configured_one_a_single_one_stands_for_it():
    runs = [scored(seed, rate, aulc=rate, failed=rate > 1) for seed in (0, 1) for rate in (0.5, 1.5)]
    one = result(QUANTILE, runs, reference=0.5)
    assert (one.convergence, one.convergence_spread, one.failures, one.seeds) == (0.5, 0.0, 0, 2)


def test_a_single_run_has_no_spread():
    one = result(NONE, [scored(seed=7)], reference=0.5)
    assert (one.convergence, one.convergence_spread, one.instability, one.instability_spread) == (1.0, 0.0, 0.0, 0.0)


def test_without_multiplier_one_the_nearest_stands_for_the_configured_rate():
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
def test_what_comes_out_is_finite_and_a_failure_counts_one(runs):
    scores = [
        scored(seed, multiplier, aulc=aulc, bounded_loss=loss, failed=failed)
        for (seed, multiplier), (aulc, loss, failed) in runs.items()
    ]
    one = result(QUANTILE, scores, reference=0.25)
    least = min(multiplier for _, multiplier in runs)
    areas = [aulc for (_, multiplier), (aulc, _, _) in runs.items() if multiplier == least]
    assert one.convergence == pytest.approx(fmean(areas))
    shares = {}
    for (seed, _), (_, loss, failed) in runs.items():
        shares.setdefault(seed, []).append(1.0 if failed else (loss - 0.25) / 1.75)
    assert one.instability == pytest.approx(fmean(fmean(share) for share in shares.values()))
    assert one.instability <= 1
    assert one.failures <= one.all_failures == sum(failed for _, _, failed in runs.values())


points = st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3), st.booleans()), max_size=12)


@given(points)
def test_the_front_holds_exactly_the_feasible_that_nothing_dominates(given_points):
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


def test_candidates_that_never_or_always_clip_are_noted():
    def clipping(candidate, *rates):
        return result(candidate, [scored(seed, clip_rate=rate) for seed, rate in enumerate(rates)], 0.5)

    assert degenerate([clipping(fixed(10.0), 0.0, 0.0)]) == ["fixed 10 never clipped: it is the same as no clipping"]
    assert degenerate([clipping(QUANTILE, 1.0, 1.0)]) == ["running_quantile p90 clipped every step after its warm-up"]
    assert degenerate([clipping(QUANTILE, 0.0, 0.0)]) == ["running_quantile p90 never clipped after its warm-up"]
    unknown = clipping(QUANTILE, None, None)
    assert isnan(unknown.clip_rate)
    assert degenerate([unknown]) == ["running_quantile p90 never left its warm-up"]
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
        ([1.0, 1.1], [1.05, 1.0], True),
    ],
)
def test_thresholds_within_noise_are_noted(first, second, same):
    results = [
        result(fixed(threshold), [scored(seed, aulc=area) for seed, area in enumerate(areas)], 0.5)
        for threshold, areas in ((1.0, first), (5.0, second))
    ]
    expected = [f"fixed 1 and fixed 5 cannot be told apart with {len(first)} seeds"] if same else []
    assert degenerate(results) == expected
    others = [replace(one, candidate=of_percentile("running_quantile", 10 * n)) for n, one in enumerate(results)]
    assert degenerate(others) == []


def test_thresholds_whose_instability_differs_are_not_the_same():
    results = []
    for threshold, loss in ((1.0, 0.1), (5.0, 1.8)):
        seeds = [scored(seed, aulc=1.0) for seed in range(3)]
        others = [scored(seed, 3, bounded_loss=loss + 0.01 * seed * threshold) for seed in range(3)]
        results.append(result(fixed(threshold), [*seeds, *others], 0.05))
    assert degenerate(results) == []


def test_the_csv_reads_back():
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
        found = {name: "" if value is None else str(value) for name, value in one.figures.items()}
        assert row == found | {"pareto": str(one is not results[2])}
    assert [(row["seeds"], row["runs"], row["steps"]) for row in rows] == [("2", "4", "40")] * 2 + [("1", "1", "10")]
    assert [(row["failed"], row["failed_at_any_rate"]) for row in rows] == [("0", "0"), ("0", "2"), ("1", "1")]
    assert [row["steps_to_target"] for row in rows] == ["7.0", "", ""]
    assert [row["spikes"] for row in rows] == ["1", "4", "2"]


def test_differences_of_rounding_decide_nothing():
    slow, quick = (
        result(candidate, [scored(0, aulc=area, bounded_loss=0.5 + noise)], reference=0.5)
        for candidate, area, noise in ((fixed(1.0), 1.02, -1e-14), (fixed(5.0), 1.0, 1e-14))
    )
    assert str(slow.instability) == str(quick.instability) == "0.0"
    assert pareto_front([slow, quick]) == [quick]
