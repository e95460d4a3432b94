from itertools import pairwise
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.studies.net.rules import Net

positive = st.floats(1e-3, 1e3)
steps = st.lists(st.tuples(positive, st.floats(-10, 10)), min_size=2, max_size=150)


def thresholds_of(rule: Net, norms: list[float], losses: list[float | None]) -> list[float]:
    """The threshold in force at each step; the first one is read after its norm."""
    found = []
    for place, (norm, loss) in enumerate(zip(norms, losses, strict=True)):
        if place == 0:
            rule.observe(norm, loss)
            found.append(rule.threshold())
        else:
            found.append(rule.threshold())
            rule.observe(norm, loss)
    return found


@settings(deadline=None, max_examples=50)
@given(st.lists(positive, min_size=2, max_size=150))
def test_without_a_loss_it_is_a_percentile_that_rises_by_at_most_one_per_cent(norms: list[float]) -> None:
    found = thresholds_of(Net(window=20), norms, [None] * len(norms))
    expected = [0.3 * norms[0], 0.3 * norms[0]]
    for seen in range(2, len(norms)):
        expected.append(min(float(np.percentile(norms[max(0, seen - 20) : seen], 90)), 1.01 * expected[-1]))
    assert found == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(steps)
def test_no_step_raises_it_by_more_than_the_lift_and_the_scale_of_norms_and_losses_does_not_matter(
    history: list[tuple[float, float]],
) -> None:
    norms, losses = [norm for norm, _ in history], [loss for _, loss in history]
    found = thresholds_of(Net(lift=0.05), norms, list(losses))
    for before, after in pairwise(found):
        assert 0 < after <= 1.05 * before * (1 + 1e-12)
    scaled = thresholds_of(Net(lift=0.05), [8 * norm for norm in norms], [4 * loss for loss in losses])
    assert scaled == pytest.approx([8 * one for one in found], rel=1e-6)


def test_a_loss_that_keeps_rising_cuts_the_threshold_down_to_the_floor_and_one_wild_batch_does_not() -> None:
    norms = [1.0] * 400
    falling = [5.0 - 0.01 * step for step in range(200)]
    rising = [3.0 + 0.05 * step for step in range(200)]
    calm = Net()
    wild = thresholds_of(calm, norms, [*falling[:150], 500.0, *falling[151:], *falling[::-1]][:400])
    assert wild[160] == 1.0  # the norms' percentile
    braked = Net()
    cut = thresholds_of(braked, norms, [*falling, *rising])
    assert cut[199] == 1.0
    assert min(cut[200:]) < 0.5
    assert min(cut) >= 0.1 * 0.999
    assert braked.troubles > 0
    assert max(thresholds_of(Net(brake=False), norms, [*falling, *rising])[200:]) == 1.0


def test_it_resumes_exactly() -> None:
    generator = np.random.default_rng(0)
    norms, losses = generator.lognormal(0, 1, 300).tolist(), generator.normal(0, 1, 300).tolist()
    whole, begun, resumed = Net(lift=0.05), Net(lift=0.05), Net(lift=0.05)
    expected = thresholds_of(whole, norms, losses)
    thresholds_of(begun, norms[:150], losses[:150])
    resumed.load_state_dict(begun.state_dict())
    found = []
    for norm, loss in zip(norms[150:], losses[150:], strict=True):
        found.append(resumed.threshold())
        resumed.observe(norm, loss)
    assert found == expected[150:]
    assert 0 < max(found) < inf
