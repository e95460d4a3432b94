"""What the clipper does with gradients that are not finite."""

import copy
import warnings
from math import inf, nan

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoclip import Clipper, Fixed, RunningQuantile, attach
from tests.host_reads import HostReads
from tests.small_network import Records, batch, equal, network, one_weight, steps, train, weights_of

torch.set_num_threads(1)


@pytest.mark.parametrize("implementation", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params, **kw: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1, **kw),
        lambda params, **kw: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1, **kw),
        lambda params, **kw: torch.optim.Adagrad(params, lr=0.1, weight_decay=0.1, **kw),
    ],
    ids=["sgd", "adamw", "adagrad"],
)
@pytest.mark.parametrize("bad", [nan, inf])
def test_a_skipped_step_leaves_parameters_and_optimizer_state_as_they_are(optimizer, implementation, bad):
    net = network()
    optimizer = optimizer(net.parameters(), **implementation)
    clipper = Clipper(net, RunningQuantile(warmup_steps=2))
    train(net, optimizer, clipper, range(4))
    before, state = weights_of(net), copy.deepcopy(optimizer.state_dict())
    learned = clipper.policy.learned_norms, clipper.threshold
    net.zero_grad()
    F.mse_loss(net(batch(4)[0]), batch(4)[1]).backward()
    net[2].weight.grad[0, 3] = bad
    with pytest.warns(UserWarning, match=r"non-finite gradient norm at step 4, in 2\.weight: the step has no effect"):
        norm = clipper.step()
    optimizer.step()
    assert not norm.isfinite()
    assert equal(weights_of(net), before)
    assert equal(optimizer.state_dict(), state)
    assert (clipper.policy.learned_norms, clipper.threshold) == learned
    assert (clipper.last.skipped, clipper.last.finite, clipper.skipped_steps) == (True, False, 1)
    train(net, optimizer, clipper, [5])
    assert not equal(weights_of(net), before)


OPTIMIZERS = sorted(
    name for name, cls in vars(torch.optim).items() if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
)


def states(value):
    """Every tensor and number in a state, however nested."""
    if isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from states(one)
    elif isinstance(value, torch.Tensor | float):
        yield torch.as_tensor(value.coalesce().values() if getattr(value, "is_sparse", False) else value)


@pytest.mark.filterwarnings("ignore:non-finite gradient norm", "ignore:LBFGS measures")
@pytest.mark.parametrize("host_wait", [True, False])
@pytest.mark.parametrize("bad", [nan, inf])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Optimizer"])
def test_zero_poisons_no_optimizer_of_torch(name, bad, host_wait):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = getattr(torch.optim, name)([weight], lr=0.01)
    clipper = attach(optimizer, Fixed(1.0), on_nonfinite="zero", host_wait=host_wait)

    def closure(step):
        gradient = torch.full((4, 3), 0.5)
        gradient[1, 2] = bad if step in (4, 6) else -0.5
        weight.grad = gradient.to_sparse(1) if name == "SparseAdam" else gradient
        return torch.tensor(1.0)

    for step in range(8):
        if name == "LBFGS":
            optimizer.step(lambda step=step: closure(step))
            continue
        closure(step)
        optimizer.step()
        if step in (4, 6):
            assert not weight.grad.to_dense().any()
    assert weight.isfinite().all()
    assert all(one.isfinite().all() for one in states(optimizer.state_dict()["state"]))
    assert (clipper.skipped_steps, clipper.policy.nonfinite_norms) == (0, 2)


def reads_of(name, bad):
    """Host reads of each step of an optimizer under a clipper; without one, and with zeros, if `bad` is 0."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3))
    optimizer = getattr(torch.optim, name)([weight], lr=0.01)
    if bad:
        attach(optimizer, Fixed(1.0), on_nonfinite="zero", host_wait=False)
    counts = []
    for step in range(8):
        gradient = torch.full((4, 3), bad if step in (4, 6) else 0.5)
        weight.grad = gradient.to_sparse(1) if name == "SparseAdam" else gradient
        with HostReads() as reads:
            optimizer.step()
        counts.append(reads.count)
    return counts


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("Optimizer", "LBFGS")])
def test_zero_adds_no_host_read_to_those_of_any_optimizer_of_torch(name):
    """Not LBFGS: it looks at the gradients itself, and the clipper measures them in its closure."""
    own, clipped = reads_of(name, 0.0), reads_of(name, nan)
    assert clipped[3:] == own[3:]
    assert all(some > none for some, none in zip(clipped[:3], own[:3], strict=True))  # these wait


@pytest.mark.parametrize("mode", ["norm", "value", "agc", "param_rms"])
@pytest.mark.parametrize("scope", ["global", "parameter"])
def test_zero_lets_momentum_decay_by_one_step(scope, mode):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)
    clipper = Clipper(net, RunningQuantile(warmup_steps=2), scope=scope, mode=mode, on_nonfinite="zero")
    train(net, optimizer, clipper, range(4))
    before = weights_of(net)
    momentum = [optimizer.state[one]["momentum_buffer"].clone() for one in net.parameters()]
    net.zero_grad()
    F.mse_loss(net(batch(4)[0]), batch(4)[1]).backward()
    net[2].weight.grad[0, 3] = nan
    with pytest.warns(UserWarning, match=r"at step 4, in 2\.weight: the gradients become zeros"):
        clipper.step()
    optimizer.step()
    for was, now, moved in zip(before, weights_of(net), momentum, strict=True):
        torch.testing.assert_close(now, was - 0.1 * 0.5 * moved)
    assert (clipper.last.skipped, clipper.last.skipped_by, clipper.last.coefficient) == (False, None, 0.0)
    assert not any(one.grad.any() for one in net.parameters())


def test_zero_holds_for_a_clip_function_and_for_gradients_computed_again():
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0), on_nonfinite="zero")
    weight.grad = torch.tensor([nan])
    with pytest.warns(UserWarning, match="become zeros"):
        clipper.step(clip_fn=lambda most: torch.nn.utils.clip_grad_norm_([weight], most))
    assert weight.grad.tolist() == [0.0]
    weight.grad = torch.tensor([inf])
    clipper.reclip()
    assert weight.grad.tolist() == [0.0]


@pytest.mark.parametrize("bad", [nan, inf])
def test_propagate_does_as_torch_and_learns_nothing(bad):
    ours, theirs = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    clipper = Clipper([ours], Fixed(1.0), on_nonfinite="propagate")
    ours.grad, theirs.grad = torch.tensor([1.0, bad, 2.0]), torch.tensor([1.0, bad, 2.0])
    with pytest.warns(UserWarning, match="in 0: passed on as it is"):
        clipper.step()
    torch.nn.utils.clip_grad_norm_([theirs], 1.0)
    assert ours.grad.nan_to_num(7).tolist() == theirs.grad.nan_to_num(7).tolist()
    assert (clipper.last.skipped, clipper.skipped_steps, clipper.policy.learned_norms) == (False, 0, 0)


@pytest.mark.parametrize("bad", [nan, inf])
def test_raise_names_the_parameter_and_changes_nothing(bad):
    net = network()
    clipper = Clipper(net, RunningQuantile(warmup_steps=1), on_nonfinite="raise")
    F.mse_loss(net(batch(0)[0]), batch(0)[1]).backward()
    net[0].bias.grad[2] = bad
    gradients, state = [p.grad.clone() for p in net.parameters()], clipper.state_dict()
    with pytest.raises(RuntimeError, match=r"non-finite gradient norm at step 0, in 0\.bias;"):
        clipper.step()
    assert all(a.nan_to_num(7).equal(p.grad.nan_to_num(7)) for a, p in zip(gradients, net.parameters(), strict=True))
    assert clipper.state_dict() == state
    assert clipper.last is None


def test_several_bad_parameters_are_counted_and_overflowing_squares_are_not_blamed():
    weights = {"a": torch.full((4,), 1e30), "b": torch.tensor([nan]), "c": torch.tensor([inf]), "d": torch.ones(2)}
    parameters = {name: nn.Parameter(torch.zeros_like(gradient)) for name, gradient in weights.items()}
    for name, gradient in weights.items():
        parameters[name].grad = gradient
    with pytest.warns(UserWarning, match="in b and 1 more"):
        Clipper(parameters.items(), Fixed(1.0)).step()


def test_with_a_grad_scaler_the_norms_are_unscaled_and_an_overflow_step_leaves_no_trace():
    plain, scaled = network(), network()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (plain, scaled)]
    clippers = [Clipper(net, RunningQuantile(warmup_steps=2)) for net in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for step in range(8):
        overflow = 1e37 if step == 4 else 1.0
        if step != 4:
            train(plain, optimizers[0], clippers[0], [step])
        optimizers[1].zero_grad()
        loss = F.mse_loss(scaled(batch(step)[0]), batch(step)[1]) * overflow
        scaler.scale(loss).backward()
        scaler.unscale_(optimizers[1])
        with pytest.warns(UserWarning, match="non-finite") if step == 4 else warnings.catch_warnings():
            clippers[1].step(loss=loss)
        scaler.step(optimizers[1])
        scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert equal(weights_of(scaled), weights_of(plain))
    assert clippers[1].policy.state_dict() | {"nonfinite_norms": 0} == clippers[0].policy.state_dict()
    assert clippers[1].skipped_steps == 1


@pytest.mark.parametrize("on_nonfinite", ["skip", "propagate"])
def test_many_norms_in_a_row_that_are_not_finite_are_told_again_after_10_100_and_1000(on_nonfinite):
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0), on_nonfinite=on_nonfinite)
    few = [nan] * 9 + [1.0] + [inf] * 9 + [1.0]  # as while a GradScaler looks for its scale
    with pytest.warns(UserWarning, match="non-finite gradient norm at step 0") as caught:
        steps(clipper, weight, few)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="non-finite gradient norms") as caught:
        steps(clipper, weight, [nan, inf] * 1500)
    told = [str(one.message) for one in caught]
    assert [text.partition(":")[0] for text in told] == [
        f"non-finite gradient norms in {count} steps in a row, by step {19 + count}" for count in (10, 100, 1000)
    ]
    assert all("lower the learning rate" in text and "a lower loss scale" in text for text in told)


@pytest.mark.parametrize("on_nonfinite", ["skip", "propagate"])
def test_so_many_norms_in_a_row_that_are_not_finite_end_the_training(on_nonfinite):
    weight, sink = one_weight(), Records()
    clipper = Clipper([weight], Fixed(1.0), on_nonfinite=on_nonfinite, max_nonfinite_in_a_row=3, sinks=[sink])
    with pytest.warns(UserWarning, match="at step 0"):
        steps(clipper, weight, [nan, nan, 1.0, inf, nan])
    for count in (3, 4):  # whoever goes on is told again
        weight.grad = torch.tensor([nan])
        found = rf"in {count} steps in a row, by step {2 + count}: .* \(max_nonfinite_in_a_row=3\)"
        with pytest.raises(RuntimeError, match=found):
            clipper.step()
        assert (weight.grad is None) == (on_nonfinite == "skip")
        assert len(sink) == clipper.state_dict()["steps"] == 3 + count
    steps(clipper, weight, [1.0])


def test_a_resumed_run_counts_the_norms_in_a_row_on():
    weight = one_weight()
    first = Clipper([weight], Fixed(1.0), max_nonfinite_in_a_row=4)
    with pytest.warns(UserWarning, match="at step 0"):
        steps(first, weight, [nan, nan, nan])
    resumed = Clipper([weight], Fixed(1.0), max_nonfinite_in_a_row=4)
    resumed.load_state_dict(first.state_dict())
    weight.grad = torch.tensor([nan])
    with (
        pytest.warns(UserWarning, match="at step 3"),
        pytest.raises(RuntimeError, match="in 4 steps in a row, by step 3"),
    ):
        resumed.step()


def test_an_overflow_of_scaled_gradients_is_none_of_the_norms_in_a_row():
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0), max_nonfinite_in_a_row=1)
    for _ in range(12):
        weight.grad = torch.tensor([inf])
        clipper.step(loss_scale=2.0**16)
    assert clipper.state_dict()["nonfinite_in_a_row"] == 0


def test_an_attached_clipper_ends_the_training_before_the_optimizer_steps():
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    attach(optimizer, Fixed(1.0), on_nonfinite="propagate", max_nonfinite_in_a_row=1)
    weight.grad = torch.tensor([nan])
    with pytest.warns(UserWarning, match="non-finite"), pytest.raises(RuntimeError, match="in 1 steps in a row"):
        optimizer.step()
    assert weight.isfinite()


@pytest.mark.parametrize("most", [0, -1, 2.5, True, "ten"])
def test_a_wrong_number_of_norms_in_a_row_is_refused(most):
    with pytest.raises(ValueError, match="max_nonfinite_in_a_row must be a whole number >= 1 or None, got"):
        Clipper([one_weight()], max_nonfinite_in_a_row=most)


def test_a_second_call_after_a_skipped_step_is_recognised():
    weight = torch.nn.Parameter(torch.zeros(2))
    clipper = Clipper([weight], Fixed(1.0))
    weight.grad = torch.tensor([1.0, float("nan")])
    with pytest.warns(UserWarning, match="has no effect"):
        clipper.step()
    with pytest.warns(UserWarning, match="called again"):
        assert clipper.step().isnan()
    assert clipper.skipped_steps == 1
    assert clipper.last.step == 0


def test_steps_without_anything_to_clip_do_not_count_towards_the_clip_rate():
    weight = torch.nn.Parameter(torch.zeros(2))
    clipper = Clipper([weight], Fixed(1.0))
    for gradient in ([3.0, 4.0], [0.0, 0.0]):
        weight.grad = torch.tensor(gradient)
        clipper.step()
    weight.grad = None
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        clipper.step()
    assert clipper.clip_rate == 1.0
