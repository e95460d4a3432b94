from dataclasses import replace
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoclip.sweeps.candidates import Candidate, fixed
from autoclip.sweeps.outcome import Result, pareto_front
from autoclip.sweeps.picks import PREFERENCES, by_distance, eligible, pick
from tests.references import distances_from_the_ideal
from tests.scores import score_with

NONE = Candidate("none", {"kind": "none"})
RATES = (1.0, 3.0)


def run(seed, rate, area, loss, failed=False):
    return score_with(seed=seed, multiplier=rate, aulc=area, bounded_loss=loss, initial_loss=8.0, failed=failed)


def of(name, *seeds, fails=()):
    """A candidate: for each seed its mean training loss, its validation loss and its loss at three times the rate."""
    scores = [
        run(seed, rate, area, loss, (seed, rate) in fails)
        for seed, (area, base, other) in enumerate(seeds)
        for rate, loss in zip(RATES, (base, other), strict=True)
    ]
    return Result(Candidate(name, {"kind": name}), tuple(scores), 0.0)


def names(picks):
    return None if picks is None else {name: one.candidate.name for name, one in picks.named.items()}


FAST = of("fast", (1.0, 1.0, 4.0), (1.1, 1.0, 4.5))
MIDDLE = of("middle", (1.25, 0.9, 1.0), (1.35, 1.0, 1.0))
STEADY = of("steady", (3.0, 0.9, 0.7), (3.5, 0.9, 0.9))


def test_three_picks_and_the_one_that_is_preferred():
    for prefer, expected in zip(PREFERENCES, ("fast", "middle", "steady"), strict=True):
        picks = pick([STEADY, MIDDLE, FAST], prefer)
        assert names(picks) == {"fastest": "fast", "steadiest": "steady", "balanced": "middle"}
        assert picks.recommended.candidate.name == expected


def test_a_single_candidate_is_every_pick():
    picks = pick([FAST])
    assert names(picks) == dict.fromkeys(("fastest", "steadiest", "balanced"), "fast")
    assert picks.without == {name: ["fast", "fast"] for name in ("fastest", "steadiest", "balanced")}


def test_who_failed_at_another_rate_may_be_the_fastest_only():
    failing = of("failing", (0.5, 0.1, 0.1), (0.5, 0.1, 0.1), fails=[(1, 3.0)])
    assert names(pick([failing, MIDDLE, STEADY])) == {
        "fastest": "failing",
        "steadiest": "steady",
        "balanced": "middle",
    }
    worst = of("worst", (7.0, 7.0, 7.9), (7.0, 7.0, 7.9))
    assert names(pick([failing, worst])) == {"fastest": "failing", "steadiest": "worst", "balanced": "worst"}


def test_where_all_failed_somewhere_those_with_the_fewest_failures_are_left():
    once = of("once", (2.0, 1.0, 8.0), (2.0, 1.0, 1.0), fails=[(0, 3.0)])
    twice = of("twice", (1.0, 0.5, 8.0), (1.0, 0.5, 8.0), fails=[(0, 3.0), (1, 3.0)])
    dead = of("dead", (0.1, 0.1, 0.1), (0.1, 0.1, 0.1), fails=[(0, 1.0)])
    assert names(pick([once, twice, dead])) == {"fastest": "twice", "steadiest": "once", "balanced": "once"}
    assert eligible([once, twice, dead]) == [once]
    assert pick([dead]) is None
    assert pick([]) is None


def test_after_a_race_those_with_the_most_seeds_are_compared():
    lucky = of("lucky", (0.1, 0.1, 0.1))
    assert names(pick([lucky, FAST, MIDDLE, STEADY])) == names(pick([FAST, MIDDLE, STEADY]))


def test_a_finalist_that_failed_gives_way_to_one_with_fewer_seeds_that_did_not():
    finalist = of("finalist", (1.0, 0.5, 8.0), (1.0, 0.5, 0.5), fails=[(0, 3.0)])
    early = of("early", (2.0, 1.0, 1.0))
    assert names(pick([finalist, early])) == {"fastest": "finalist", "steadiest": "early", "balanced": "early"}


def test_how_often_a_pick_stays_when_a_seed_is_left_out():
    steady = [of("a", (1.0, 1.0, 1.0), (1.1, 1.0, 1.1), (1.0, 1.1, 1.0)), of("b", *[(2.0, 2.0, 2.0)] * 3)]
    picks = pick(steady)
    assert [picks.seeds, *map(picks.stays, picks.named)] == [3, 3, 3, 3]
    torn = [of("a", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (4.0, 1.0, 1.0)), of("b", *[(1.9, 2.0, 2.0)] * 3)]
    picks = pick(torn)
    assert picks.fastest.candidate.name == "b"
    assert {name: picks.stays(name) for name in picks.named} == {"fastest": 2, "steadiest": 3, "balanced": 3}
    assert picks.without["fastest"] == ["b", "b", "a"]
    alone = pick([of("a", (1.0, 1.0, 1.0))])
    assert (alone.seeds, alone.without, alone.stays("fastest")) == (1, {}, 0)


def test_the_validation_loss_weighs_in():
    seeds = [(0.0, 0.0), (0.02, 0.01), (-0.01, 0.02)]
    first = of("first", *[(1.0 + a, 1.0 + b, 1.5) for a, b in seeds])
    second = of("second", *[(1.06 - a, 0.5 + b, 2.01) for a, b in seeds])
    assert first.instability < second.instability  # so that both are on the front
    third = of("third", *[(1.10 + b, 1.8 + a, 0.69) for a, b in seeds])
    assert third.instability < first.instability
    picks = pick([first, third])
    assert names(picks) == {"fastest": "first", "steadiest": "third", "balanced": "first"}


def test_a_margin_makes_a_slower_candidate_fast_enough():
    noise_of_seeds = (0.0, 0.01, -0.01)
    fast = of("fast", *[(1.0 + e, 1.0 + e, 1.1) for e in noise_of_seeds])
    slow = of("slow", *[(1.5 - e, 1.0 - e, 1.0) for e in noise_of_seeds])
    assert names(pick([fast, slow])) == {"fastest": "fast", "steadiest": "slow", "balanced": "fast"}
    assert names(pick([fast, slow], margin=0.6)) == {"fastest": "fast", "steadiest": "slow", "balanced": "slow"}
    assert names(pick([fast, slow], margin=0.4)) == {"fastest": "fast", "steadiest": "slow", "balanced": "fast"}


def test_of_equals_no_clipping_comes_first():
    scores = FAST.scores
    equals = [Result(fixed(10.0), scores, 0.0), Result(NONE, scores, 0.0), Result(fixed(5.0), scores, 0.0)]
    assert names(pick(equals)) == dict.fromkeys(("fastest", "steadiest", "balanced"), "none")
    assert names(pick(equals[::2])) == dict.fromkeys(("fastest", "steadiest", "balanced"), "fixed 10")


# --- the promises, on tables at random ---

eighths = st.integers(1, 60).map(lambda number: number / 8)
tables = st.tuples(st.integers(1, 7), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(
            st.tuples(eighths, eighths, eighths, st.sampled_from([0, 0, 0, 0, 0, 1, 2])),
            min_size=shape[1],
            max_size=shape[1],
        ),
        min_size=shape[0],
        max_size=shape[0],
    )
)
Table = list[list[tuple[float, float, float, int]]]


def results_of(table, *, scale=1.0, shift=0.0):
    """A candidate for each row; the last figure of a seed says whether it failed at the configured rate or at another.

    The losses are scaled and moved as a whole, the initial one and the reference too.
    """

    def moved(loss):
        return scale * loss + shift

    results = []
    for number, row in enumerate(table):
        scores = [
            replace(
                run(seed, rate, moved(area), moved(loss), fails == place + 1),
                initial_loss=moved(8.0),
            )
            for seed, (area, base, other, fails) in enumerate(row)
            for place, (rate, loss) in enumerate(zip(RATES, (base, other), strict=True))
        ]
        results.append(Result(fixed(number + 1.0), tuple(scores), moved(0.0)))
    return results


def beats(other, one):
    pairs = (other.convergence, other.instability), (one.convergence, one.instability)
    return pairs[0] != pairs[1] and all(a <= b for a, b in zip(*pairs, strict=True))


@settings(deadline=None)
@given(tables)
def test_never_one_that_failed_and_never_one_that_another_beats(table):
    results = results_of(table)
    picks = pick(results)
    able = [one for one in results if not one.failures]
    if picks is None:
        assert not able
        return
    clean = [one for one in able if not one.all_failures]
    for chosen in (picks.steadiest, picks.balanced):
        assert not chosen.failures
        assert not clean or not chosen.all_failures
        assert not any(beats(one, chosen) for one in clean)
        assert chosen.all_failures == min(one.all_failures for one in able)
    assert not any(beats(one, picks.fastest) for one in able)
    assert picks.fastest.convergence == min(one.convergence for one in able)
    assert picks.steadiest.instability == min(one.instability for one in eligible(results))
    assert all(len(names) == picks.seeds for names in picks.without.values())


@settings(deadline=None)
@given(tables, st.integers(0, 10**6))
def test_the_order_of_candidates_and_seeds_does_not_matter(table, number):
    random = Random(number)
    results = results_of(table)
    others = [Result(one.candidate, tuple(random.sample(one.scores, len(one.scores))), 0.0) for one in results]
    random.shuffle(others)
    assert names(pick(results)) == names(pick(others))


@settings(deadline=None)
@given(tables, st.sampled_from([0.25, 1.0, 64.0]), st.sampled_from([-8.0, 0.0, 0.5, 1024.0]))
def test_the_unit_of_the_loss_and_a_constant_added_do_not_matter(table, scale, shift):
    results, others = results_of(table), results_of(table, scale=scale, shift=shift)
    assert names(pick(results)) == names(pick(others))
    assert names(pick(results, margin=0.5)) == names(pick(others, margin=0.5 * scale))


@settings(deadline=None)
@given(tables)
def test_the_balanced_pick_is_the_nearest_to_the_ideal_corner_by_the_definition(table):
    results = [one for one in results_of(table) if not one.all_failures]
    assume(results)
    front = pareto_front(results)
    figures = [
        [list(getattr(one, name).values()) for one in front]
        for name in ("speed_by_seed", "instability_by_seed", "loss_by_seed")
    ]
    expected = dict(zip(front, distances_from_the_ideal(figures), strict=True))
    order = [expected[one] for one in by_distance(front)]
    assert order == pytest.approx(sorted(order), abs=1e-7)
    picks = pick(results)
    assert expected[picks.balanced] == pytest.approx(min(expected.values()), abs=1e-7)


@settings(deadline=None)
@given(tables)
def test_candidates_that_are_beaten_do_not_matter(table):
    results = results_of(table)
    pool = eligible(results)
    assume(pool)
    front = set(pareto_front(pool))
    with_all, without = pick(results), pick([one for one in results if one not in pool or one in front])
    assert with_all.balanced is without.balanced
