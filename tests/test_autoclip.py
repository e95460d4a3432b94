import pytest

from autoclip.policies import AutoClip
from tests.references import autoclip_thresholds
from tests.streams import norm_streams

STEPS = 1200
STREAMS = ["lognormal", "drift up", "spikes"]


def inclusive(policy, norms):
    thresholds = []
    for norm in norms:
        policy.observe(norm)
        thresholds.append(policy.threshold())
    return thresholds


def test_published_vector():
    assert inclusive(AutoClip(10), [3.0, 1.0, 2.0, 10.0]) == pytest.approx([3.0, 1.2, 1.2, 1.3], rel=1e-12, abs=0)


def test_the_oracle_reproduces_the_published_vector():
    assert autoclip_thresholds([3, 1, 2, 10], 10) == pytest.approx([3.0, 1.2, 1.2, 1.3], rel=1e-12, abs=0)


@pytest.mark.parametrize("percentile", [10, 90])
@pytest.mark.parametrize("stream", STREAMS)
def test_inclusive_thresholds_equal_the_oracle(stream, percentile):
    norms = norm_streams(STEPS, seed=5)[stream]
    assert inclusive(AutoClip(percentile), norms) == pytest.approx(
        autoclip_thresholds(norms, percentile), rel=1e-9, abs=0
    )


def test_history_bounds_what_is_remembered():
    policy = AutoClip(50, history=3)
    assert inclusive(policy, [100.0, 1.0, 2.0, 3.0]) == [100.0, 50.5, 2.0, 2.0]
    assert len(policy.state_dict()["norms"]["values"]) == 3
