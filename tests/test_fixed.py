from math import inf, nan

import pytest

from autoclip.policies import Fixed, NoClip
from tests.streams import norm_streams


@pytest.mark.parametrize("threshold", [1e-30, 1.0, 5, 1e30, inf])
def test_the_constant_holds_whatever_is_observed(threshold):
    policy = Fixed(threshold)
    for norm in [*norm_streams(200)["spikes"], nan, inf, 0.0]:
        assert policy.threshold() == threshold
        policy.observe(norm)
    assert type(policy.threshold()) is float


def test_none_never_clips_and_counts_what_it_saw():
    policy = NoClip()
    for norm in [1.0, nan, 1e30, 0.0]:
        assert policy.threshold() == inf
        policy.observe(norm)
    assert (policy.learned_norms, policy.nonfinite_norms, policy.zero_norms) == (2, 1, 1)


def test_bounds_hold_for_the_constant_too():
    assert Fixed(5.0, max_threshold=2.0).threshold() == 2.0
    assert Fixed(5.0, min_threshold=7.0).threshold() == 7.0
    assert NoClip(max_threshold=2.0).threshold() == 2.0
