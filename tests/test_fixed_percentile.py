import pytest

from autoclip.policies import FixedPercentile
from tests.references import fixed_percentile_thresholds
from tests.streams import norm_streams

STEPS, WARMUP = 1000, 100


@pytest.mark.parametrize(("percentile", "scale"), [(0, 1.0), (10, 2.5), (50, 1.0), (90, 0.5), (100, 1.0)])
@pytest.mark.parametrize("stream", ["lognormal", "drift up", "drift down", "spikes"])
def test_thresholds_equal_the_oracle(stream, percentile, scale):
    norms = norm_streams(STEPS, seed=5)[stream]
    policy = FixedPercentile(percentile, scale, warmup_steps=WARMUP)
    thresholds = []
    for norm in norms:
        thresholds.append(policy.threshold())
        policy.observe(norm)
    expected = fixed_percentile_thresholds(norms, percentile, scale, WARMUP)
    assert thresholds[WARMUP:] == pytest.approx(expected, rel=1e-9, abs=0)


def test_without_warmup_the_first_norm_is_frozen():
    policy = FixedPercentile(90, warmup_steps=0)
    for norm in (3.0, 100.0, 200.0):
        policy.observe(norm)
        assert policy.threshold() == 3.0
