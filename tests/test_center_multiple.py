import pytest

from autoclip.policies import CenterMultiple
from tests.references import center_multiple_thresholds
from tests.streams import follow, norm_streams


@pytest.mark.parametrize("center", ["median", "mean"])
@pytest.mark.parametrize(("multiple", "window", "warmup_steps"), [(2.0, 100, 100), (1.0, 7, 30), (5.0, 200, 20)])
@pytest.mark.parametrize("stream", ["lognormal", "drift up", "spikes"])
def test_thresholds_equal_the_oracle(stream, multiple, window, warmup_steps, center):
    norms = norm_streams(1200, seed=5)[stream]
    policy = CenterMultiple(center, multiple, window, warmup_steps=warmup_steps)
    expected = center_multiple_thresholds(norms, center, multiple, window, warmup_steps)
    assert follow(policy, norms)[warmup_steps:] == pytest.approx(expected, rel=1e-9, abs=0)


def test_a_single_spike_moves_the_mean_and_not_the_median():
    norms = [1.0] * 9 + [1e6]
    assert follow(CenterMultiple("median", 2.0, 10, warmup_steps=10), [*norms, 1.0])[-1] == 2.0
    assert follow(CenterMultiple("mean", 2.0, 10, warmup_steps=10), [*norms, 1.0])[-1] == 2 * (9 + 1e6) / 10


@pytest.mark.parametrize("center", ["median", "mean"])
def test_the_largest_norms_there_are_give_a_threshold(center):
    policy = CenterMultiple(center, 1.0, warmup_steps=3)
    for _ in range(6):
        policy.observe(1.7e308)
    assert policy.threshold() == pytest.approx(1.7e308, rel=1e-12, abs=0)
