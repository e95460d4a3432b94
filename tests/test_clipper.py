import gc
import inspect
from math import inf, isnan, nan
from typing import get_type_hints

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoclip import Clipper, Fixed, LossAwareQuantile, RunningQuantile, Tuner
from autoclip.clipper.options import ClipperOptions
from autoclip.records import ClipRecord
from tests.references import clip_coefficient
from tests.small_network import POLICIES, Records, batch, equal, network, one_weight, steps, train, weights_of
from tests.streams import loss_stream, norm_streams

torch.set_num_threads(1)

every_policy = pytest.mark.parametrize("policy", POLICIES)


@every_policy
def test_step_predicts_clips_and_observes_as_a_plain_loop_over_the_policy(policy):
    norms = [torch.tensor(norm).item() for norm in norm_streams(200)["spikes"]]
    losses, sink, weight = loss_stream(200), Records(), one_weight()
    left = steps(Clipper([weight], POLICIES[policy](), sinks=[sink]), weight, norms, losses)
    plain = POLICIES[policy]()
    for step, (norm, loss, record) in enumerate(zip(norms, losses, sink, strict=True)):
        if plain.inclusive:
            plain.observe(norm, loss)
            threshold, phase = plain.threshold(), plain.phase
        else:
            threshold, phase = plain.threshold(), plain.phase
            plain.observe(norm, loss)
        assert (record.step, record.phase, record.total_norm, record.threshold) == (step, phase, norm, threshold)
        assert record.coefficient == pytest.approx(clip_coefficient(norm, threshold), rel=1e-6)
        assert (record.clipped, record.skipped, record.finite) == (norm > threshold, False, True)
        assert left[step] == (norm if norm <= threshold else pytest.approx(norm * record.coefficient, rel=1e-6))
        assert left[step] <= threshold * (1 + 1e-6)


def test_step_returns_the_norm_before_clipping_and_properties_tell_the_rest():
    weight = nn.Parameter(torch.zeros(2))
    clipper = Clipper([weight], Fixed(1.0))
    assert clipper.last is None
    assert isnan(clipper.clip_rate)
    assert isnan(clipper.mean_coefficient)
    weight.grad = torch.tensor([3.0, 4.0])
    norm = clipper.step()
    assert norm.shape == ()
    assert norm.item() == 5.0
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-6)
    expected = ClipRecord(0, "active", 5.0, 1.0, pytest.approx(0.2, rel=1e-6), clipped=True, skipped=False, finite=True)
    assert clipper.last == expected
    assert clipper.threshold == 1.0
    assert repr(clipper) == "Clipper(1 parameters, Fixed(threshold=1.0), mode='norm')"


@pytest.mark.parametrize(("loss", "noted"), [(None, None), (2.5, 2.5), (torch.tensor([[1.5]]), 1.5), (-inf, -inf)])
def test_the_record_holds_the_loss_as_it_was_given(loss, noted):
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0))
    weight.grad = torch.ones(1)
    clipper.step(loss=loss)
    assert clipper.last.loss == noted


@pytest.mark.parametrize("order", [1.0, 2.0, inf])
def test_the_norm_type_decides_which_norm_is_clipped_and_learned(order):
    net, policy = network(), RunningQuantile(warmup_steps=1)
    clipper = Clipper(net, policy, norm_type=order)
    F.mse_loss(net(batch(0)[0]), batch(0)[1]).backward()
    expected = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in net.parameters()]), order).item()
    assert clipper.step().item() == pytest.approx(expected, rel=1e-6)
    assert policy.threshold() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("threshold", [1e-3, 0.05, 100.0])
def test_mode_value_clamps_as_torch_and_observes_the_largest_element(threshold):
    ours, theirs = network(), network()
    for net in (ours, theirs):
        F.mse_loss(net(batch(0)[0]), batch(0)[1]).backward()
    clipper = Clipper(ours, Fixed(threshold), mode="value")
    largest = max(p.grad.abs().max().item() for p in theirs.parameters())
    assert clipper.step().item() == largest
    torch.nn.utils.clip_grad_value_(theirs.parameters(), threshold)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert clipper.last.clipped == (largest > threshold)


def test_mode_value_learns_largest_elements():
    weight = nn.Parameter(torch.zeros(3))
    clipper = Clipper([weight], RunningQuantile(100, window=2, warmup_steps=2), mode="value")
    for gradient in ([1.0, -4.0, 0.0], [2.0, 2.0, 3.0], [-9.0, 4.5, 9.0]):
        weight.grad = torch.tensor(gradient)
        clipper.step()
    assert weight.grad.tolist() == [-4.0, 4.0, 4.0]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_equal_gradients_in_successive_steps_are_successive_observations(set_to_none):
    net = nn.Linear(2, 1)
    clipper = Clipper(net, RunningQuantile(warmup_steps=3))
    for _ in range(6):
        net.zero_grad(set_to_none)
        net(torch.ones(1, 2)).sum().backward()
        clipper.step()
    assert clipper.policy.learned_norms == 6


def test_a_call_without_gradients_learns_nothing_and_warns_once():
    net = network()
    clipper = Clipper(net, RunningQuantile(warmup_steps=1))
    with pytest.warns(UserWarning, match="no parameter has a gradient") as caught:
        norms = [clipper.step().item() for _ in range(3)]
    assert norms == [0.0] * 3
    assert len(caught) == 1
    assert clipper.policy.learned_norms == 0
    assert all(p.grad is None for p in net.parameters())


def test_accumulated_gradients_are_one_observation_equal_to_that_of_the_whole_batch():
    whole, pieces = network(), network()
    clippers = [Clipper(net, RunningQuantile(warmup_steps=2)) for net in (whole, pieces)]
    for step in range(5):
        x, y = batch(step)
        for net in (whole, pieces):
            net.zero_grad()
        F.mse_loss(whole(x), y).backward()
        for part in range(4):
            (F.mse_loss(pieces(x[part * 4 : part * 4 + 4]), y[part * 4 : part * 4 + 4]) / 4).backward()
        assert clippers[1].step().item() == pytest.approx(clippers[0].step().item(), rel=1e-5)
    assert clippers[1].policy.learned_norms == 5


def test_a_closure_may_call_step():
    inside, outside = network(), network()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (inside, outside)]
    clippers = [Clipper(net, LossAwareQuantile()) for net in (inside, outside)]
    for step in range(6):

        def closure(step=step):
            optimizers[0].zero_grad()
            loss = F.mse_loss(inside(batch(step)[0]), batch(step)[1])
            loss.backward()
            clippers[0].step(loss=loss)
            return loss

        optimizers[0].step(closure)
        train(outside, optimizers[1], clippers[1], [step])
    assert equal(weights_of(inside), weights_of(outside))
    assert clippers[0].state_dict() == clippers[1].state_dict()


def run_loss_aware(norms, losses):
    """The gradients left, and what the clipper learned."""
    weight = one_weight()
    clipper = Clipper([weight], LossAwareQuantile())
    return steps(clipper, weight, norms, losses), clipper.state_dict()


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor,
        lambda loss: torch.tensor([loss]),
        lambda loss: torch.tensor(loss, dtype=torch.float64, requires_grad=True) * 1,
        lambda loss: nn.Parameter(torch.tensor(loss)),
    ],
    ids=["tensor", "one element", "of a graph", "leaf"],
)
def test_a_loss_may_be_a_tensor_and_means_the_same_as_a_float(given):
    norms, losses = norm_streams(50)["lognormal"], [torch.tensor(loss).item() for loss in loss_stream(50)]
    floats, tensors = run_loss_aware(norms, losses), run_loss_aware(norms, [given(loss) for loss in losses])
    assert tensors == floats
    assert floats != run_loss_aware(norms, None)


def test_a_loss_of_many_numbers_is_an_error_and_nothing_is_clipped_or_learned():
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0))
    weight.grad = torch.tensor([5.0])
    before = clipper.state_dict()
    with pytest.raises(ValueError, match=r"loss must be one number, .* got shape \(2,\)"):
        clipper.step(loss=torch.ones(2))
    assert weight.grad.item() == 5.0
    assert clipper.state_dict() == before


def test_layer_norms_are_those_before_clipping_by_name():
    net = network()
    clipper = Clipper(net, Fixed(1e-3))
    assert clipper.layer_norms() == {}
    F.mse_loss(net(batch(0)[0]), batch(0)[1]).backward()
    expected = {name: p.grad.norm().item() for name, p in net.named_parameters()}
    clipper.step()
    assert clipper.layer_norms() == pytest.approx(expected, rel=1e-6)
    assert list(clipper.layer_norms()) == list(expected)


def test_every_sink_gets_every_record_in_order():
    sinks, weight = [Records(), Records()], one_weight()
    clipper = Clipper([weight], RunningQuantile(warmup_steps=3), sinks=iter(sinks))
    steps(clipper, weight, norm_streams(20)["lognormal"])
    assert [record.step for record in sinks[0]] == list(range(20))
    assert sinks[0] == sinks[1]
    assert sinks[0][-1] is clipper.last
    assert [record.phase for record in sinks[0]] == ["warmup"] * 3 + ["active"] * 17


def test_clip_rate_is_the_share_of_active_finite_steps_that_were_clipped():
    weight = one_weight()
    clipper = Clipper([weight], Fixed(2.0, warmup_steps=2, warmup_threshold=1.0))
    with pytest.warns(UserWarning, match="non-finite"):
        steps(clipper, weight, [5.0, 5.0, 1.0, 5.0, nan, 2.0, 3.0])
    assert clipper.clip_rate == 2 / 4
    assert clipper.mean_coefficient == pytest.approx((1 + 2 / 5 + 1 + 2 / 3) / 4, rel=1e-6)
    assert (clipper.skipped_steps, clipper.last.step) == (1, 6)


def test_the_options_that_others_hand_on_are_all_there_are():
    arguments = inspect.signature(Clipper).parameters
    assert list(ClipperOptions.__annotations__) == [name for name in arguments if name not in ("source", "policy")]
    assert get_type_hints(ClipperOptions).items() <= get_type_hints(Clipper.__init__).items()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"policy": 1.0}, TypeError, r"policy must be .*, got 1\.0: a constant threshold is Fixed\(1\.0\)"),
        ({"policy": "fixed"}, TypeError, r"such as RunningQuantile\(percentile=50\), got 'fixed'$"),
        ({"policy": RunningQuantile}, TypeError, r"that is the class, write RunningQuantile\(\.\.\.\)"),
        ({"mode": "values"}, ValueError, "mode must be one of norm, value, agc, param_rms, got 'values'"),
        ({"scope": "layer"}, ValueError, "scope must be one of global.*, got 'layer'"),
        ({"response": "explode"}, ValueError, "response must be one of scale.*, got 'explode'"),
        (
            {"on_nonfinite": "ignore"},
            ValueError,
            "must be one of skip, zero, propagate, raise, got 'ignore'",
        ),
        ({"norm_type": 0}, ValueError, "norm_type must be > 0 or inf, got 0"),
        ({"source": []}, ValueError, "the source holds no parameters"),
        ({"source": 3}, TypeError, "expected a module, parameters"),
    ],
)
def test_a_wrong_argument_is_refused_with_name_and_value(arguments, error, message):
    with pytest.raises(error, match=message):
        Clipper(**{"source": [one_weight()], **arguments})


class Printer:
    log = print


@pytest.mark.parametrize("sinks", [Printer(), [Printer()], [print], None])
def test_what_is_no_sink_is_refused(sinks):
    with pytest.raises(TypeError, match=r"sinks must be a list of autoclip.sinks.Sink objects"):
        Clipper([one_weight()], sinks=sinks)
    clipper = Clipper([one_weight()])
    with pytest.raises(TypeError, match="sinks must be a list"):
        clipper.sinks = sinks


@pytest.mark.parametrize("loss", ["much", [1.0, 2.0], None])
def test_what_is_no_loss_is_refused(loss):
    clipper = Clipper([one_weight()])
    with pytest.raises(TypeError, match="loss must be a number or a tensor of one, got"):
        clipper.report_loss(loss)
    assert not clipper.has_reported_loss


def test_a_policy_belongs_to_one_clipper_while_that_lives():
    policy = RunningQuantile(percentile=50)
    first = Clipper([one_weight()], policy)
    for other in (lambda: Clipper([one_weight()], policy), lambda: Tuner(policy)):
        with pytest.raises(ValueError, match=r"belongs to another clipper already, .* such as policy.clone\(\)"):
            other()
    Clipper([one_weight()], policy.clone())
    del first
    gc.collect()
    Clipper([one_weight()], policy)


@pytest.mark.filterwarnings("ignore")
def test_a_second_call_leaves_a_loss_that_was_reported_since_to_the_next_step():
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0))
    weight.grad = torch.tensor([2.0])
    clipper.step(loss=3.0)
    clipper.report_loss(7.0)
    clipper.step()
    assert clipper.has_reported_loss
    weight.grad = torch.tensor([3.0])
    clipper.step()
    assert clipper.last.loss == 7.0
