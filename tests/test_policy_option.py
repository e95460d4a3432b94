"""Policies as they are written on the command line."""

import pytest

from autoclip import Fixed, RunningQuantile
from autoclip.errors import UsageError
from autoclip.lab.policy_option import USUAL_POLICIES, policy_of
from autoclip.lab.yaml_source import read_document


def test_pairs_make_a_policy():
    policy = policy_of("kind=running_quantile, percentile=75,window=20")
    assert isinstance(policy, RunningQuantile)
    assert (policy.percentile, policy.window) == (75, 20)
    assert repr(policy_of("kind=fixed,threshold=.5")) == repr(Fixed(0.5))


@pytest.mark.parametrize(("written", "threshold"), [("1e-3", 0.001), ("2E1", 20), ("010", 10), ("0x10", 16)])
def test_values_are_those_of_a_configuration(tmp_path, written, threshold):
    path = tmp_path / "policy.yaml"
    path.write_text(f"threshold: {written}\n")
    assert policy_of(f"kind=fixed,threshold={written}").threshold() == threshold
    assert read_document(path).values == {"threshold": threshold}


def test_the_usual_ones_are_ten():
    assert len({repr(policy_of(text)) for text in USUAL_POLICIES}) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("running_quantile", r"expected KEY=VALUE, got 'running_quantile'"),
        ("kind=running_quantile,percentile", "expected KEY=VALUE, got 'percentile'"),
        ("kind=running_quantil", "kind must be one of none, fixed, .*got 'running_quantil'"),
        ("percentile=50", "kind must be one of none, .*got nothing"),
        ("kind=running_quantile,percentile=200", r"percentile: .*\[0, 100\]"),
        ("kind=running_quantile,percentil=50", "percentil"),
        ("kind=fixed", "threshold"),
        ("kind=fixed,threshold=[", "threshold: must be valid YAML"),
        ("kind=fixed,threshold=2020-13-45", "threshold: .*got '2020-13-45'"),
        ("kind=fixed,threshold=1:30", "threshold: .*got '1:30'"),
        ("kind=running_quantile,window=1_0", "window: .*got '1_0'"),
        ("kind=fixed,threshold=!!python/name:os.system x", "threshold: must be a plain value.* got the tag"),
        ("kind=fixed,threshold=*a", "aliases"),
        ("kind=fixed,threshold=" + "9" * 100, "threshold: must be a whole number of at most 64 bits"),
        ("kind=fixed,threshold=\x07", r"threshold: must be printable text, got the character U\+0007"),
        ("kind=[a]", "kind must be one of none, .*got a list"),
        ("kind={a: 1}", "kind must be one of none, .*got a mapping"),
        ("kind=1", "kind must be one of none, .*got 1"),
        ("kind=", "kind must be one of none, .*got null"),
        ("kind=nowhere_at_all:Policy", "nowhere_at_all"),
    ],
)
def test_faults_are_named(text, message):
    with pytest.raises(UsageError, match=message):
        policy_of(text)
