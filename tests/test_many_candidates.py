"""What is quick for thousands of candidates gives what the plain definitions give."""

import random
import time

import pytest

from autoclip.sweeps.candidates import Candidate, fixed
from autoclip.sweeps.outcome import Result, as_csv, degenerate, pareto_front
from autoclip.sweeps.pareto_plot import pareto_picture
from autoclip.sweeps.picks import pick
from autoclip.sweeps.racing import survivors
from tests.scores import score_with


def found(candidate, area, loss, *, seeds=2, failed=False):
    scores = [
        score_with(seed=seed, aulc=area + 0.01 * seed, validation_loss=loss, bounded_loss=loss, failed=failed)
        for seed in range(seeds)
    ]
    return Result(candidate, tuple(scores), 0.1)


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_who_is_beaten_by_nobody(seed):
    generator = random.Random(seed)
    coarse = [generator.randrange(1, 6) / 5 for _ in range(80)]
    results = [
        found(fixed(place + 1.0), coarse[2 * place], coarse[2 * place + 1] / 2, failed=generator.random() < 0.2)
        for place in range(40)
    ]
    able = [one for one in results if not one.failures]

    def beats(other, one):
        pairs = (other.convergence, other.instability), (one.convergence, one.instability)
        return pairs[0] != pairs[1] and all(a <= b for a, b in zip(*pairs, strict=True))

    expected = sorted(
        (one for one in able if not any(beats(other, one) for other in able)), key=lambda one: one.convergence
    )
    assert [one.candidate.name for one in pareto_front(results)] == [one.candidate.name for one in expected]


@pytest.mark.parametrize("seed", range(20))
def test_the_survivors_of_the_first_seed_are_who_is_clearly_beaten_by_nobody(seed):
    generator = random.Random(seed)
    figures = {f"c{n}": (generator.randrange(10, 20) / 10, generator.randrange(1, 9) / 10) for n in range(30)}
    results = [
        Result(
            Candidate(name, {"kind": name}),
            (score_with(seed=0, aulc=area, validation_loss=loss, bounded_loss=loss),),
            0.1,
        )
        for name, (area, loss) in figures.items()
    ]
    best = min(area for area, _ in figures.values())
    beaten = {
        one.candidate.name
        for one in results
        if any(
            one.convergence - other.convergence > 0.05 * (2.0 - best) and one.instability - other.instability > 0.1
            for other in results
        )
    }
    fast = {one.candidate.name for one in results if one.convergence - best <= 0.05 * (2.0 - best)}
    assert set(survivors(results, most=30)) == (figures.keys() - beaten) | fast


def test_thousands_of_candidates_take_seconds():
    began = time.monotonic()
    candidates = [Candidate("none", {"kind": "none"}), *(fixed(n / 100) for n in range(1, 3001))]
    results = [found(one, 1 + n * 7919 % 1000 / 1000, n * 31 % 97 / 100) for n, one in enumerate(candidates)]
    assert as_csv(results).count("\n") == 3002
    assert len(degenerate(results)) < 2 * 3001
    assert pareto_picture(results, pick(results)).png
    assert survivors(results, most=10)
    assert time.monotonic() - began < 30


def test_few_thresholds_are_compared_with_each_other_and_many_with_the_next():
    few = [found(fixed(n + 1.0), 1.0, 0.5, seeds=3) for n in range(5)]
    assert len(degenerate(few)) == 5 * 4 / 2 + sum("clipped" in line for line in degenerate(few))
    many = [found(fixed(n + 1.0), 1.0, 0.5, seeds=3) for n in reversed(range(30))]
    same = [line for line in degenerate(many) if "cannot be told apart" in line]
    assert len(same) == 29
    assert same[0].startswith("fixed 1 and fixed 2 cannot")
