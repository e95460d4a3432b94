import json
from math import inf, isnan, nan

import numpy as np
import pytest
import torch

import autoclip
from autoclip import Clipper, Fixed, RunningQuantile, Tuner
from autoclip.tuning.replay import replay
from tests.small_network import Records
from tests.streams import loss_stream, norm_streams

STREAMS = norm_streams(300)
LOSSES = loss_stream(300)
POLICIES = [kind for kind, cls in autoclip.POLICIES.items() if cls.scope == "global"]


def policy(kind):
    return autoclip.POLICIES[kind](**({"threshold": 1.5} if kind == "fixed" else {}))


@pytest.mark.parametrize("kind", [kind for kind in POLICIES if kind != "autoclip"])
@pytest.mark.parametrize("stream", ["lognormal", "shift up", "zeros"])
def test_it_sets_the_thresholds_of_a_replay(kind, stream):
    tuner = Tuner(policy(kind))
    asked, records = [], []
    for norm, loss in zip(STREAMS[stream], LOSSES, strict=True):
        asked.append(tuner.threshold)
        records.append(tuner.observe(norm, loss))
    replayed = replay(STREAMS[stream], policy(kind), losses=LOSSES, response="scale")
    slow_start = kind in (
        "probing_quantile",
        "loss_aware_quantile",
    )  # it looks at the very first norm before it decides
    assert asked[slow_start:] == replayed.thresholds.tolist()[slow_start:]
    assert [record.threshold for record in records] == asked
    after = np.array([record.total_norm * record.coefficient for record in records])
    assert after[slow_start:] == pytest.approx(replayed.left[slow_start:])
    assert (after <= np.array(asked) * (1 + 1e-12)).all()


def test_where_the_first_norm_counts_for_itself_the_first_step_is_not_clipped():
    for tuner in (Tuner(), Tuner(autoclip.AutoClip())):
        assert tuner.threshold == inf
        assert tuner.observe(3.0).coefficient == 1.0
        assert tuner.threshold < inf


def test_a_policy_that_counts_the_norm_of_the_step_counts_it_afterwards():
    late, early = Tuner(autoclip.AutoClip(50)), Tuner(autoclip.AutoClip(50, inclusive=False))
    for norm in STREAMS["lognormal"]:
        assert late.threshold == early.threshold
        assert late.observe(norm) == early.observe(norm)


def test_an_engine_that_clips_trains_as_a_clipper_does():
    def trained(step):
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for at in range(60):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(at)) * (30 if at % 9 == 5 else 1)
            optimizer.zero_grad()
            loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            step(net, loss)
            optimizer.step()
        return net.weight.detach()

    tuner = Tuner(RunningQuantile(percentile=50, warmup_steps=10))

    def engine(net, loss):
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), tuner.threshold)
        tuner.observe(norm, loss.detach())

    clippers = []

    def clipper(net, loss):
        clippers[:] = clippers or [Clipper(net, RunningQuantile(percentile=50, warmup_steps=10))]
        clippers[0].step(loss=loss)

    assert trained(engine) == pytest.approx(trained(clipper), rel=1e-4)
    assert tuner.clip_rate == clippers[0].clip_rate > 0
    assert tuner.mean_coefficient == pytest.approx(clippers[0].mean_coefficient, rel=1e-5)


def test_a_state_continues_exactly_also_that_of_a_clipper():
    norms = STREAMS["drift down"]
    whole = Tuner()
    thresholds = [(whole.observe(norm, loss), whole.threshold)[1] for norm, loss in zip(norms, LOSSES, strict=True)]
    first, second = Tuner(), Tuner()
    for norm, loss in zip(norms[:150], LOSSES, strict=False):
        first.observe(norm, loss)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert [(second.observe(n, x), second.threshold)[1] for n, x in zip(norms[150:], LOSSES[150:], strict=True)] == (
        thresholds[150:]
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    clipper = Clipper([weight])
    clipper.load_state_dict(first.state_dict())
    assert clipper.threshold == first.threshold
    second.load_state_dict(clipper.state_dict())
    assert second.threshold == first.threshold


def test_a_state_that_does_not_fit_changes_nothing():
    tuner = Tuner(RunningQuantile(percentile=50, warmup_steps=2))
    for norm in (1.0, 2.0, 3.0):
        tuner.observe(norm)
    before = tuner.state_dict()
    others = [{}, Tuner(Fixed(1.0)).state_dict(), {**before, "groups": {"body": before["groups"]["all"]}}]
    for state in [*others, {**before, "steps": -1}]:
        with pytest.raises(ValueError, match="state"):
            tuner.load_state_dict(state)
        assert tuner.state_dict() == before


def test_norms_that_are_no_numbers_are_counted_and_not_learned_from():
    tuner = Tuner(RunningQuantile(percentile=50, warmup_steps=1))
    tuner.observe(2.0)
    with pytest.warns(UserWarning, match="no gradient norm for step 1"):
        record = tuner.observe(None)
    assert isnan(record.total_norm)
    for norm in (inf, nan, torch.tensor(nan), np.float32(inf)):
        record = tuner.observe(norm)
        assert not record.finite
        assert not record.clipped
        assert isnan(record.coefficient)
        assert tuner.threshold == 2.0
    with pytest.raises(ValueError, match="cannot be negative"):
        tuner.observe(-1.0)
    assert tuner.last == record
    assert tuner.observe(1.0).step == 6


def test_a_step_that_the_engine_left_out_is_recorded_as_skipped():
    tuner = Tuner(Fixed(1.0))
    tuner.observe(2.0)
    left_out = tuner.observe(inf, skipped=True)
    assert (left_out.skipped, left_out.finite, left_out.clipped, left_out.coefficient) == (True, False, False, 0.0)
    assert (tuner.skipped_steps, tuner.clip_rate) == (1, 1.0)
    assert tuner.is_settled


def test_many_in_a_row_end_the_training_where_that_is_wanted():
    tuner = Tuner(Fixed(1.0), max_nonfinite_in_a_row=3)
    tuner.observe(nan)
    tuner.observe(nan)
    with pytest.raises(RuntimeError, match="3 steps in a row"):
        tuner.observe(nan)
    assert tuner.last.step == 2


def test_sinks_are_told_of_every_step():
    records = Records()
    tuner = Tuner(Fixed(1.0), sinks=[records])
    told = [tuner.observe(norm, 0.5) for norm in (0.5, 2.0)]
    assert records == told
    assert [record.coefficient for record in records] == [1.0, 0.5]
    assert [record.loss for record in records] == [0.5, 0.5]
    tuner.close()
    assert records == []


def test_without_a_loss_the_default_says_what_it_lacks():
    tuner = Tuner()
    for norm in STREAMS["lognormal"][:99]:
        tuner.observe(norm)
    with pytest.warns(UserWarning, match=r"without its brake: call tuner\.observe\(norm, loss\); or take"):
        tuner.observe(1.0)


def test_a_policy_for_each_parameter_and_what_is_no_policy_are_refused():
    with pytest.raises(ValueError, match="threshold for each parameter"):
        Tuner(autoclip.AdaGC())
    with pytest.raises(TypeError, match="policy must be a Policy"):
        Tuner(1.0)
    assert repr(Tuner(Fixed(1.0))) == "Tuner(Fixed(threshold=1.0))"
