"""Clipping by somebody else's function, and gradients that still carry a loss scale."""

import math

import pytest
import torch
from torch import nn

from autoclip import AutoClip, Clipper, Fixed, LossAwareQuantile, NoClip, RunningQuantile, SkipStep, ZClip
from tests.small_network import POLICIES, Records, equal, network, one_weight
from tests.streams import norm_streams

STEPS = 60


class TorchClip:
    """torch's own clipping of a network's gradients, which counts how often it is asked."""

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.asked = []

    def __call__(self, max_norm):
        self.asked.append(max_norm)
        return nn.utils.clip_grad_norm_(self.parameters, max_norm)


def run(policy, norms, *, by_function, **options):
    """Clip a direction of length 2 scaled to the norms; return the gradients, the records and the calls."""
    weight = nn.Parameter(torch.zeros(2))
    records = Records()
    clip_fn = TorchClip([weight])
    clipper = Clipper([weight], policy, sinks=[records], relearn_after=None, **options)
    left = []
    for step, norm in enumerate(norms):
        weight.grad = torch.tensor([0.6, 0.8]) * norm
        clipper.step(loss=1.0 / (step + 1), clip_fn=clip_fn if by_function else None)
        left.append(None if weight.grad is None else weight.grad.norm().item())
    return left, records, clip_fn.asked, clipper


@pytest.mark.parametrize("response", ["scale", "reciprocal", "skip"])
@pytest.mark.parametrize("name", [*POLICIES, "zclip", "skip step"])
def test_a_function_leaves_what_our_own_clipping_leaves(name, response):
    policy = {**POLICIES, "zclip": lambda: ZClip(warmup_steps=5), "skip step": lambda: SkipStep(warmup_steps=5)}[name]
    norms = [1.0 + 0.3 * math.sin(step) + (20.0 if step % 9 == 7 else 0.0) for step in range(STEPS)]
    own, own_records, _, own_clipper = run(policy(), norms, by_function=False, response=response)
    left, records, _, clipper = run(policy(), norms, by_function=True, response=response)
    for found, wanted in zip(left, own, strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or found == pytest.approx(wanted, rel=1e-5)
    for found, wanted in zip(records, own_records, strict=True):
        assert (found.phase, found.clipped, found.skipped) == (wanted.phase, wanted.clipped, wanted.skipped)
        assert (found.threshold, found.loss) == (pytest.approx(wanted.threshold, rel=1e-6), wanted.loss)
        assert found.total_norm == pytest.approx(wanted.total_norm, rel=1e-6)
        assert found.coefficient == pytest.approx(wanted.coefficient, rel=1e-5)
    assert clipper.clip_rate == own_clipper.clip_rate
    assert clipper.skipped_steps == own_clipper.skipped_steps


def test_a_function_is_asked_once_a_step_at_the_threshold_of_before():
    norms = norm_streams(STEPS)["lognormal"]
    _, records, asked, _ = run(RunningQuantile(50, warmup_steps=10), norms, by_function=True)
    assert asked == [record.threshold for record in records]
    assert asked[0] == math.inf


@pytest.mark.parametrize("norms", [[1.0] * 5 + [10.0]])
def test_a_function_is_asked_once_for_an_inclusive_threshold(norms):
    left, _, asked, _ = run(AutoClip(50), norms, by_function=True)
    assert asked == [math.inf] * 6
    assert left == pytest.approx([1.0] * 6)
    left, _, asked, _ = run(Fixed(2.0), norms, by_function=True, response="reciprocal")
    assert asked == [2.0] * 6
    assert left == pytest.approx([1.0] * 5 + [0.4])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_a_function_made_of_a_step_that_is_not_finite_is_skipped(bad):
    weight = one_weight()
    clipper = Clipper([weight], RunningQuantile(warmup_steps=2))
    for norm in (1.0, 1.0, 1.0):
        weight.grad = torch.tensor([norm])
        clipper.step(clip_fn=TorchClip([weight]))
    before = clipper.threshold
    weight.grad = torch.tensor([bad])
    with pytest.warns(UserWarning, match="the norm that clip_fn returned: the step has no effect"):
        clipper.step(clip_fn=TorchClip([weight]))
    assert weight.grad is None
    assert (clipper.skipped_steps, clipper.threshold, clipper.last.finite) == (1, before, False)


@pytest.mark.parametrize("on_nonfinite", ["propagate", "raise"])
def test_a_step_that_is_not_finite_may_be_passed_on_or_raise(on_nonfinite):
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0), on_nonfinite=on_nonfinite)
    weight.grad = torch.tensor([float("nan")])
    if on_nonfinite == "raise":
        with pytest.raises(RuntimeError, match="the norm that clip_fn returned"):
            clipper.step(clip_fn=TorchClip([weight]))
        assert (clipper.policy.nonfinite_norms, clipper.last) == (0, None)
    else:
        with pytest.warns(UserWarning, match="passed on as it is"):
            clipper.step(clip_fn=TorchClip([weight]))
        assert weight.grad.isnan()
        assert clipper.skipped_steps == 0


def test_gradients_that_are_rewritten_without_a_trace_are_clipped_each_time():
    weight = one_weight()
    clip_fn = TorchClip([weight])
    clipper = Clipper([weight], Fixed(1.0))
    weight.grad = torch.tensor([0.0])
    for norm in (5.0, 50.0, 500.0):
        weight.grad.data.copy_(torch.tensor([norm]))
        assert clipper.step(clip_fn=clip_fn) == norm
        assert weight.grad.item() == pytest.approx(1.0)
    assert clipper.last.step == 2


def test_a_norm_that_is_a_number_keeps_its_digits_whatever_the_default_dtype():
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1000.0))
    weight.grad = torch.tensor([545.84])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        clipper.step(clip_fn=lambda max_norm: 545.84)
    finally:
        torch.set_default_dtype(before)
    assert clipper.last.total_norm == 545.84


def test_a_second_call_of_the_same_step_asks_nobody():
    weight = one_weight()
    clip_fn = TorchClip([weight])
    clipper = Clipper([weight], Fixed(1.0))
    weight.grad = torch.tensor([5.0])
    assert clipper.step(clip_fn=clip_fn) == 5.0
    with pytest.warns(UserWarning, match="called again"):
        assert clipper.step(clip_fn=clip_fn) == 5.0
    assert clip_fn.asked == [1.0]
    weight.grad = torch.tensor([4.0])
    assert clipper.step(clip_fn=clip_fn) == 4.0


@pytest.mark.parametrize("returned", [None, "5", True, torch.zeros(2), [5.0]])
def test_what_is_no_norm_is_refused(returned):
    weight = one_weight()
    weight.grad = torch.tensor([5.0])
    with pytest.raises(TypeError, match="must return the total norm before clipping"):
        Clipper([weight], Fixed(1.0)).step(clip_fn=lambda max_norm: returned)


@pytest.mark.parametrize("returned", [5, 5.0, torch.tensor([5.0]), torch.tensor(5.0, dtype=torch.float64)])
def test_a_norm_may_be_a_number_or_a_tensor(returned):
    weight = one_weight()
    clipper = Clipper([weight], NoClip())
    weight.grad = torch.tensor([5.0])
    norm = clipper.step(clip_fn=lambda max_norm: returned)
    assert (norm.shape, float(norm)) == ((), 5.0)
    assert clipper.last.total_norm == 5.0
    assert clipper.layer_norms() == {}


@pytest.mark.parametrize("options", [{"mode": "value"}, {"mode": "agc"}, {"mode": "param_rms"}, {"scope": "parameter"}])
def test_a_function_clips_by_the_one_norm_of_all(options):
    weight = one_weight()
    weight.grad = torch.tensor([5.0])
    with pytest.raises(ValueError, match="it needs mode='norm' and scope='global'"):
        Clipper([weight], Fixed(1.0), **options).step(clip_fn=TorchClip([weight]))
    with pytest.raises(ValueError, match="without a loss scale"):
        Clipper([weight], Fixed(1.0)).step(clip_fn=TorchClip([weight]), loss_scale=2.0)


@pytest.mark.parametrize("scale", [2.0**16, 3.0, 1e-3, torch.tensor(2.0**16)])
@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
@pytest.mark.parametrize("scope", ["global", "parameter"])
@pytest.mark.parametrize("response", ["scale", "reciprocal"])
def test_norms_are_those_without_the_loss_scale(scale, mode, scope, response):
    left = []
    for factor in (1.0, scale):
        net, records = network(), Records()
        clipper = Clipper(
            net, LossAwareQuantile(), scope=scope, mode=mode, response=response, sinks=[records], relearn_after=None
        )
        gradients = []
        for step in range(8):
            for number, parameter in enumerate(net.parameters()):
                random = torch.Generator().manual_seed(10 * step + number)
                parameter.grad = torch.randn(parameter.shape, generator=random) * float(factor)
            clipper.step(loss=1.0 + step % 3, loss_scale=None if factor is None or factor == 1.0 else factor)
            gradients.append([None if p.grad is None else p.grad / float(factor) for p in net.parameters()])
        left.append((gradients, list(records)))
    (plain, plain_records), (scaled, scaled_records) = left
    for wanted, found in zip(plain, scaled, strict=True):
        for one, other in zip(wanted, found, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)
    for wanted, found in zip(plain_records, scaled_records, strict=True):
        assert found.total_norm == pytest.approx(wanted.total_norm, rel=1e-6)
        assert (found.clipped, found.skipped) == (wanted.clipped, wanted.skipped)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_under_a_loss_scale_is_the_scalers_to_handle(bad):
    weight = one_weight()
    clipper = Clipper([weight], RunningQuantile(warmup_steps=1))
    weight.grad = torch.tensor([1.0])
    clipper.step(loss_scale=2.0)
    before = clipper.state_dict()
    weight.grad = torch.tensor([bad])
    norm = clipper.step(loss=1.0, loss_scale=2.0)
    assert not norm.isfinite()
    assert weight.grad is not None
    assert equal(clipper.state_dict(), before)
    assert clipper.last.step == 0


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_loss_scale_is_above_zero(scale):
    weight = one_weight()
    weight.grad = torch.tensor([1.0])
    with pytest.raises(ValueError, match="loss_scale must be finite and > 0"):
        Clipper([weight], Fixed(1.0)).step(loss_scale=scale)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by_function", [False, True])
@pytest.mark.parametrize(("norm", "response"), [(math.nan, "scale"), (9.0, "skip")])
def test_a_second_call_after_a_skipped_step_is_no_step(by_function, norm, response):
    weight, records = one_weight(), Records()
    clip_fn = TorchClip([weight]) if by_function else None
    clipper = Clipper([weight], Fixed(1.0), response=response, sinks=[records])
    for _ in range(3):
        weight.grad = torch.tensor([norm])
        first, second = (clipper.step(clip_fn=clip_fn).item() for _ in range(2))
        assert str(first) == str(second) == str(norm)
    assert [record.skipped for record in records] == [True] * 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", [math.nan, math.inf])
@pytest.mark.parametrize("policy", [Fixed, NoClip])
def test_a_non_finite_norm_that_is_passed_on_leaves_the_share_that_the_clipper_leaves(policy, norm):
    both = [
        run(policy(1.0) if policy is Fixed else policy(), [norm], by_function=given, on_nonfinite="propagate")[1]
        for given in (False, True)
    ]
    assert str(both[0][0].coefficient) == str(both[1][0].coefficient)
