"""Policies as they are written on the command line."""

import pytest

from autoclip import Fixed, RunningQuantile
from autoclip.errors import UsageError
from autoclip.lab.policy_option import USUAL_POLICIES, policy_of


def test_pairs_make_a_policy():
    policy = policy_of("kind=running_quantile, percentile=75,window=20")
    assert isinstance(policy, RunningQuantile)
    assert (policy.percentile, policy.window) == (75, 20)
    assert repr(policy_of("kind=fixed,threshold=.5")) == repr(Fixed(0.5))


def test_the_usual_ones_are_ten():
    assert len({repr(policy_of(text)) for text in USUAL_POLICIES}) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("running_quantile", r"expected KEY=VALUE, got 'running_quantile'"),
        ("kind=running_quantile,percentile", "expected KEY=VALUE, got 'percentile'"),
        ("kind=running_quantil", "kind must be one of none, fixed, .*got 'running_quantil'"),
        ("percentile=50", "kind"),
        ("kind=running_quantile,percentile=200", r"percentile: .*\[0, 100\]"),
        ("kind=running_quantile,percentil=50", "percentil"),
        ("kind=fixed", "threshold"),
        ("kind=fixed,threshold=[", "is no value"),
        ("kind=nowhere_at_all:Policy", "nowhere_at_all"),
    ],
)
def test_faults_are_named(text, message):
    with pytest.raises(UsageError, match=message):
        policy_of(text)
