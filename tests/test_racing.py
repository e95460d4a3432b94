from dataclasses import replace
from math import inf
from random import Random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from autoclip.sweeps.candidates import Candidate
from autoclip.sweeps.outcome import Result
from autoclip.sweeps.picks import pick
from autoclip.sweeps.racing import Plan, full_grid, most_runs, survivors, uncertainty
from autoclip.sweeps.racing import race as race_of
from tests.references import paired_uncertainty
from tests.scores import score_with

SCORE = score_with(initial_loss=4.0)


def one(aulc, instability=0.5, *, failed=False, elsewhere=None):
    """The runs of a seed, with V* = 0; `elsewhere` adds one at three times the rate, failed or not."""
    base = replace(SCORE, aulc=aulc, bounded_loss=4 * instability, failed=failed)
    return [base] if elsewhere is None else [base, replace(base, multiplier=3.0, failed=elsewhere)]


def seeds_of(**figures):
    return {name: [one(*pair) for pair in pairs] for name, pairs in figures.items()}


def one_seed(**scores):
    return seeds_of(**{name: [figures] for name, figures in scores.items()})


def left_of(scores, most=9):
    """The survivors, from the scores of each seed."""
    results = [
        Result(
            Candidate(name, {"kind": name}),
            tuple(replace(score, seed=seed) for seed, found in enumerate(seeds) for score in found),
            0.0,
        )
        for name, seeds in scores.items()
    ]
    return survivors(results, most)


def race(names, references, seeds, scores, reference):
    signed = {run: [replace(score, seed=run[1]) for score in found] for run, found in scores.items()}
    return race_of(names, references, seeds, signed, reference)


# --- the full grid ---


def test_the_full_grid_is_every_candidate_with_every_seed_the_references_first():
    plan = full_grid(["none", "fixed 5", "p50", "fixed 1"], ["fixed 1", "fixed 5"], [3, 1])
    assert plan.runs == (
        ("fixed 1", 3),
        ("fixed 1", 1),
        ("fixed 5", 3),
        ("fixed 5", 1),
        ("none", 3),
        ("none", 1),
        ("p50", 3),
        ("p50", 1),
    )
    assert plan.undecided == frozenset()


def test_the_full_grid_trains_references_that_are_no_candidates_with_every_seed():
    assert full_grid(["p50"], ["fixed 1"], [0, 1]).runs == (("fixed 1", 0), ("fixed 1", 1), ("p50", 0), ("p50", 1))


# --- the stages of a race ---

NAMES = ["fixed 1", "fixed 5", *(f"p{number}" for number in range(12))]
"""14 candidates with 3 seeds: the first seed takes 14 runs, and 4 candidates may go on."""
FIRST = tuple((name, 7) for name in NAMES)


def run_scores(seed, *, best):
    """All are fast, the first of the best a little more; the best are the steadiest, in their order."""
    return {
        (name, seed): one(0.99 if name == best[0] else 1.0, 0.01 * best.index(name) if name in best else 0.9)
        for name in NAMES
    }


def test_a_race_begins_with_the_first_seed_of_all_and_everything_undecided():
    plan = race(NAMES, ["fixed 1", "fixed 5"], [7, 8, 9], {}, None)
    assert plan == Plan(FIRST, frozenset(NAMES))
    assert race(["p50", "fixed 5"], ["fixed 5"], [7, 8, 9], {}, None).runs == (("fixed 5", 7), ("p50", 7))


def test_the_next_seed_waits_for_the_one_before():
    first = run_scores(7, best=["p3", "fixed 5", "p7", "p8"])
    begun = Plan(FIRST, frozenset(NAMES))
    for run in FIRST:
        assert race(NAMES, [], [7, 8, 9], {other: first[other] for other in first if other != run}, 0.0) == begun
    assert race(NAMES, [], [7, 8, 9], first, None) == begun
    best = ["p3", "fixed 5", "p7", "p8"]
    assert race(NAMES, [], [7, 8, 9], first, 0.0) == Plan((*FIRST, *((name, 8) for name in best)), frozenset(best))


def test_each_seed_is_given_to_the_survivors_of_all_seeds_before():
    scores = run_scores(7, best=["p3", "fixed 5", "p7", "p8"])
    best = ["p3", "fixed 5", "p7", "p8"]
    second = (*FIRST, *((name, 8) for name in best))
    scores |= {("p3", 8): one(1.0, 0.3), ("fixed 5", 8): one(1.0, 0.1), ("p8", 8): one(1.0, failed=True)}
    assert race(NAMES, [], [7, 8, 9], scores, 0.0) == Plan(second, frozenset(best))
    scores[("p7", 8)] = one(1.0, failed=True)
    decided = Plan((*second, ("p3", 9), ("fixed 5", 9)), frozenset())
    assert race(NAMES, [], [7, 8, 9], scores, 0.0) == decided
    scores |= {("fixed 5", 9): one(1.0, failed=True), ("p3", 9): one(5.0)}
    assert race(NAMES, [], [7, 8, 9], scores, 0.0) == decided


def test_the_third_seed_looks_at_the_first_again():
    first = run_scores(7, best=["p3", "p4", "p5", "p6"])
    second = {("p3", 8): one(1.0, 0.3), ("p4", 8): one(1.0, 0.2), ("p5", 8): one(1.0, 0.1)}
    second["p6", 8] = one(1.0, failed=True)
    even = race(NAMES, [], [7, 8, 9], first | second, 0.0)
    assert [name for name, seed in even.runs if seed == 9] == ["p3", "p5", "p4"]
    uneven = race(NAMES, [], [7, 8, 9], first | second | {("p5", 7): one(1.0, 0.35)}, 0.0)
    assert [name for name, seed in uneven.runs if seed == 9] == ["p3", "p4", "p5"]


def test_with_a_single_seed_all_is_decided_at_once():
    assert race(["p50", "fixed 1"], ["fixed 1"], [4], {}, None) == Plan((("fixed 1", 4), ("p50", 4)), frozenset())


def test_where_all_failed_the_first_seed_is_the_last():
    dead = {run: one(1.0, failed=True) for run in FIRST}
    assert race(NAMES, [], [7, 8, 9], dead, 0.0) == Plan(FIRST, frozenset())
    later = run_scores(7, best=["p3", "p4"]) | {(name, 8): one(1.0, failed=True) for name in NAMES}
    plan = race(NAMES, [], [7, 8, 9], later, 0.0)
    assert (len(plan.runs), plan.undecided) == (len(NAMES) + 4, frozenset())


def test_references_that_are_no_candidates_are_trained_with_the_first_seed_only():
    names, references = [f"p{number}" for number in range(12)], ["fixed 1", "fixed 5"]
    scores = {(name, seed): one(1.0, 0.1) for name in [*names, *references] for seed in (7, 8, 9)}
    del scores["fixed 5", 7]
    waiting = race(names, references, [7, 8, 9], scores, 0.0)
    assert waiting.runs == tuple((name, 7) for name in [*references, *names])
    assert waiting.undecided == frozenset(names)
    plan = race(names, references, [7, 8, 9], scores | {("fixed 5", 7): one(0.1, 0.0)}, 0.0)
    assert [run for run in plan.runs if run[0] in references] == [("fixed 1", 7), ("fixed 5", 7)]
    assert len(plan.runs) == 14 + 2 * 4


@st.composite
def races(draw):
    """Candidates, references, seeds, and what every run would give, in the order in which it becomes known."""
    names = [f"c{number}" for number in range(draw(st.integers(1, 14)))]
    references = draw(st.lists(st.sampled_from([*names, "fixed 1", "fixed 5"]), unique=True, max_size=3))
    seeds = draw(st.lists(st.integers(0, 9), unique=True, min_size=1, max_size=5))
    runs = [(name, seed) for name in dict.fromkeys([*references, *names]) for seed in seeds]
    random = Random(draw(st.integers(0, 10**6)))
    share = draw(st.sampled_from([0.0, 0.1, 0.6]))
    noise = draw(st.sampled_from([0.0, 0.001, 0.5]))
    level = {name: (random.uniform(0.5, 1.5), random.uniform(0.1, 0.9)) for name, _ in runs}
    random.shuffle(runs)
    return (
        names,
        references,
        seeds,
        {
            run: one(
                level[run[0]][0] + random.gauss(0, noise),
                level[run[0]][1] + random.gauss(0, noise),
                failed=random.random() < share,
            )
            for run in runs
        },
    )


@settings(max_examples=60, deadline=None)
@given(races())
def test_decisions_never_change_and_the_budget_is_kept(given_race):
    names, references, seeds, outcomes = given_race
    everybody = dict.fromkeys([*references, *names])
    budget = max(len(everybody) + min(4, len(names)) * (len(seeds) - 1), len(names) * len(seeds) // 2)
    before, known = race(names, references, seeds, {}, None), {}
    assert before.runs == tuple((name, seeds[0]) for name in everybody)
    for run, scores in outcomes.items():
        known[run] = scores
        reference = 0.0 if all((name, seeds[0]) in known for name in references) else None
        plan = race(names, references, seeds, known, reference)
        assert plan.runs[: len(before.runs)] == before.runs
        assert plan.undecided <= before.undecided
        assert all(name in before.undecided for name, _ in plan.runs[len(before.runs) :])
        assert len(plan.runs) <= budget
        before = plan
    assert not before.undecided
    assert len(set(before.runs)) == len(before.runs)
    for name in everybody:
        of_name = [seed for other, seed in before.runs if other == name]
        assert of_name == seeds[: len(of_name)]
        assert len(of_name) == 1 or name in names
        assert not any(outcomes[name, seed][0].failed for seed in of_name[:-1])


@settings(max_examples=30, deadline=None)
@given(races())
def test_the_plan_depends_on_the_runs_that_it_asked_for_alone(given_race):
    names, references, seeds, outcomes = given_race
    known = {}
    while wanted := [run for run in race(names, references, seeds, known, 0.0).runs if run not in known]:
        known |= {run: outcomes[run] for run in wanted}
    assert race(names, references, seeds, known, 0.0) == race(names, references, seeds, outcomes, 0.0)


# --- who goes on ---


def test_who_failed_at_the_configured_rate_is_out_and_the_failed_beat_nobody():
    scores = {"fails": [one(0.1, 0.0), one(0.1, 0.0, failed=True)], "slow": [one(3.0, 0.9), one(3.0, 0.9)]}
    assert left_of(scores) == ["slow"]


def test_who_failed_at_another_rate_may_go_on():
    scores = {
        "fast": [one(1.0, 0.1, elsewhere=True)],
        "as fast": [one(1.1, 0.1, elsewhere=True)],
        "slow": [one(2.0, 0.1, elsewhere=True)],
        "never failed": [one(3.0, 0.9, elsewhere=False)],
    }
    assert left_of(scores) == ["never failed", "fast", "as fast"]


def test_nobody_goes_on_where_all_failed_or_nothing_may_be_spent():
    assert left_of({"a": [one(1.0, failed=True)]}) == []
    assert left_of({"a": [one(1.0)]}, 0) == []
    assert left_of({"a": [one(1.0)]}, -3) == []
    assert left_of({}) == []


@pytest.mark.parametrize(
    ("aulc", "instability", "out"),
    [
        (2.11, 0.31, True),  # beaten beyond 5 % of what the fastest learned and beyond .1 in instability
        (2.09, 0.31, False),
        (2.11, 0.29, False),
        (4.0, 0.2, False),
        (2.0, 1.0, False),
        (4.0, 0.9, True),
    ],
)
def test_after_the_first_seed_who_is_beaten_in_both_beyond_the_margins_is_out(aulc, instability, out):
    left = left_of(one_seed(best=(2.0, 0.2), other=(aulc, instability)))
    assert left == (["best"] if out else ["best", "other"])


def test_two_that_beat_in_one_objective_each_do_not_put_out_a_third():
    scores = one_seed(fast=(1.0, 0.8), steady=(2.0, 0.1), between=(1.5, 0.4))
    assert sorted(left_of(scores)) == ["between", "fast", "steady"]
    assert "between" not in left_of(scores | one_seed(better=(1.3, 0.2)))


def test_instability_is_of_all_rates_and_speed_of_the_configured_one():
    def both(base, high):
        return [[replace(SCORE, bounded_loss=2.0, aulc=base), replace(SCORE, multiplier=3.0, bounded_loss=4 * high)]]

    assert left_of({"a": both(1.0, 0.1), "b": both(1.2, 0.4)}) == ["a"]
    assert left_of({"a": both(1.0, 0.1), "b": both(1.2, 0.25)}) == ["a", "b"]


def test_what_a_seed_does_to_all_hides_no_difference():
    hard = [0.0, 3.0, -0.4]  # a seed is hard for all of them alike
    noise = [0.02, -0.02, 0.01]
    better = [(1.0 + shift, 0.2 + 0.05 * shift) for shift in hard]
    worse = [(1.2 + shift + each, 0.3 + 0.05 * shift + each) for shift, each in zip(hard, noise, strict=True)]
    assert left_of(seeds_of(better=better, worse=worse)) == ["better"]
    noise = [0.5, -0.5, 0.1]
    noisy = [(1.2 + shift + each, 0.3 + 0.05 * shift + each) for shift, each in zip(hard, noise, strict=True)]
    assert "noisy" in left_of(seeds_of(better=better, noisy=noisy))


def test_a_constant_difference_over_two_seeds_is_certain_and_equals_stay_both():
    better, worse = [(1.0, 0.25), (1.5, 0.5)], [(1.25, 0.5), (1.75, 0.75)]
    assert left_of(seeds_of(better=better, worse=worse, twin=better)) == ["better", "twin"]


def test_the_picks_come_first_then_the_others_by_distance():
    scores = one_seed(slow=(2.0, 0.25), fastest=(1.0, 0.9), steadiest=(3.0, 0.1), balanced=(1.3, 0.3), far=(2.5, 0.2))
    assert left_of(scores) == ["balanced", "fastest", "steadiest", "slow", "far"]
    assert left_of(scores, 2) == ["balanced", "fastest"]
    assert left_of(scores, 1) == ["balanced"]


@pytest.mark.parametrize("best", [0.0, -2.0])
def test_losses_at_or_below_zero_race_too(best):
    assert left_of(one_seed(best=(best, 0.2), near=(best + 0.04, 0.1), far=(best + 1, 0.9))) == ["near", "best"]


figures = st.tuples(st.floats(0.5, 2.0), st.floats(0.0, 1.0), st.sampled_from([False, False, False, True]))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda seeds: st.lists(st.lists(figures, min_size=seeds, max_size=seeds), min_size=1, max_size=7)
    ),
    st.integers(1, 8),
)
def test_survivors_are_the_undominated(table, most):
    scores = {
        f"c{number}": [one(aulc, instability, failed=failed) for aulc, instability, failed in row]
        for number, row in enumerate(table)
    }
    kept = left_of(scores, most)
    able = {name: row for name, row in zip(scores, table, strict=True) if not any(failed for _, _, failed in row)}
    if not able:
        assert kept == []
        return
    speed, steadiness = ([[pair[which] for pair in row] for row in able.values()] for which in (0, 1))
    means = {name: (fmean(speed[place]), fmean(steadiness[place])) for place, name in enumerate(able)}
    best = min(mean for mean, _ in means.values())
    one_seeded = len(table[0]) == 1
    margins = (0.05 * (4.0 - best), 0.1) if one_seeded else (paired_uncertainty(speed), paired_uncertainty(steadiness))

    def dominated(name, tolerance):
        return any(
            all(means[name][which] - means[other][which] > margins[which] + tolerance for which in (0, 1))
            for other in able
        )

    certain = {name for name in able if not dominated(name, -1e-7)}
    possible = {name for name in able if not dominated(name, 1e-7)}
    assert len(set(kept)) == len(kept) <= most
    assert set(kept) <= possible
    if len(kept) < most:
        assert certain <= set(kept)
    assert len(kept) >= min(most, len(certain))
    if most > 1:
        assert any(means[name][0] == best for name in kept)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.5, 2.0), st.floats(0.0, 1.0), st.booleans(), st.booleans()), min_size=1, max_size=7)
)
def test_the_race_keeps_every_pick_as_it_stands(row):
    scores = {
        f"c{number}": one(aulc, instability, failed=failed, elsewhere=elsewhere)
        for number, (aulc, instability, failed, elsewhere) in enumerate(row)
    }
    results = [Result(Candidate(name, {"kind": name}), tuple(found), 0.0) for name, found in scores.items()]
    picks = pick(results)
    kept = survivors(results, 3)
    assert {one.candidate.name for one in picks.named.values()} <= set(kept) if picks else kept == []


@settings(max_examples=50, deadline=None)
@given(st.lists(figures, min_size=1, max_size=6, unique=True), st.integers(1, 6), st.randoms(use_true_random=False))
def test_who_goes_on_does_not_depend_on_the_order_of_the_candidates(row, most, random):
    names = [f"c{number}" for number in range(len(row))]
    scores = {
        name: [one(aulc, instability, failed=failed)]
        for name, (aulc, instability, failed) in zip(names, row, strict=True)
    }
    random.shuffle(names)
    assert left_of({name: scores[name] for name in names}, most) == left_of(scores, most)


def test_the_most_runs_are_known_from_the_start():
    assert most_runs(["a", "fixed 1"], ["fixed 1", "fixed 5"], [0, 1, 2], race=False) == 9
    assert most_runs([f"c{n}" for n in range(17)], [], [0, 1, 2], race=True) == 25  # half of 51
    assert most_runs([f"c{n}" for n in range(10)], [], [0, 1, 2], race=True) == 18  # all once, and four twice more
    assert most_runs(["a", "b"], [], [0, 1, 2], race=True) == 6
    assert most_runs(["a", "b", "c"], ["fixed 1"], [0], race=True) == 4


def test_a_candidate_that_stays_alone_stays():
    assert left_of(seeds_of(alone=[(1.0, 0.1), (2.0, 0.2)])) == ["alone"]


# --- the uncertainty of a difference ---

numbers = st.tuples(st.integers(2, 6), st.integers(2, 5)).flatmap(
    lambda shape: st.lists(
        st.lists(st.floats(-10, 10), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@settings(deadline=None)
@given(numbers)
def test_the_uncertainty_is_that_of_a_two_way_analysis_of_variance(table):
    assert uncertainty(table) == pytest.approx(paired_uncertainty(table), rel=1e-9, abs=1e-11)


def test_of_two_candidates_the_uncertainty_is_that_of_the_paired_t_test():
    first, second = [1.0, 1.3, 0.7, 2.1], [1.4, 1.2, 0.9, 2.9]
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert uncertainty([first, second]) == pytest.approx((interval.high - interval.low) / 2)


def test_the_uncertainty_of_a_worked_example():
    # residuals +-.25, variance 4 x .0625 / 1, t(.975, 1) = 12.7062
    assert uncertainty([[0.0, 1.0], [0.0, 2.0]]) == pytest.approx(12.7062 * 0.25**0.5, rel=1e-5)


@settings(deadline=None)
@given(numbers, st.floats(-5, 5))
def test_what_a_seed_or_a_candidate_adds_to_all_its_values_does_not_matter(table, shift):
    moved = [[value + shift * (column == 0) - shift * (row == 0) for column, value in enumerate(of_row)]
             for row, of_row in enumerate(table)]  # fmt: skip
    assert uncertainty(moved) == pytest.approx(uncertainty(table), rel=1e-6, abs=1e-10)


def test_a_single_candidate_or_a_single_seed_leaves_everything_open():
    assert uncertainty([[1.0, 2.0, 3.0]]) == uncertainty([[1.0], [2.0]]) == inf
