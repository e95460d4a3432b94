"""Steps without a host wait: the same thresholds, records and weights as with one, and no read of a tensor."""

import copy
import gc
import json
import warnings
import weakref
from contextlib import nullcontext
from math import inf, nan

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autoclip
from autoclip import (
    AdaGC,
    AutoClip,
    CenterMultiple,
    Clipper,
    Fixed,
    FixedPercentile,
    LossAwareQuantile,
    NoClip,
    RunningQuantile,
    SkipStep,
    ZClip,
)
from autoclip.clipper.deferred import Deferred
from autoclip.sinks import ConsoleSink, JSONLSink
from tests.grouped import LAYERS, backward, norm_of
from tests.host_reads import HostReads, Recording
from tests.small_network import Records, batch, equal, network, one_weight, steps, weights_of


def quantile():
    return RunningQuantile(warmup_steps=5)


POLICIES = {
    "running quantile": quantile,
    "loss-aware": LossAwareQuantile,
    "window": lambda: RunningQuantile(90, window=20, warmup_steps=5),
    "fixed percentile": lambda: FixedPercentile(50, warmup_steps=5),
    "center multiple": lambda: CenterMultiple(warmup_steps=5, window=10),
    "adagc": AdaGC,
    "zclip scale": lambda: ZClip(warmup_steps=5),
    "fixed": lambda: Fixed(1.0),
    "none": NoClip,
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}
BAD = {4: nan, 9: inf, 10: nan, 17: -inf}
STEPS = 30


def train(net, optimizer, clipper, steps=STEPS, bad=BAD, first=0):
    """Steps in which, besides, some gradients are not finite."""
    for step in range(first, steps):
        loss = backward(net, step)
        if step in bad:
            net[0].weight.grad[1, 1] = bad[step]
        clipper.report_loss(loss)
        optimizer.step()


def attached(kind="adamw", policy=None, *, host_wait=False, **options):
    net = network()
    optimizer = OPTIMIZERS[kind](net.parameters())
    return net, optimizer, autoclip.attach(optimizer, policy, host_wait=host_wait, **options)


def both(policy, scope="global", kind="adamw", bad=BAD, rule=lambda: None, **options):
    """Weights, optimizer, clipper and records of a run that waits, and of one that does not."""
    runs = []
    for wait in (True, False):
        net, records = network(), Records()
        groups = {"groups": {"weights": "weight", "biases": "bias"}} if scope == "group" else {}
        optimizer = OPTIMIZERS[kind](net.named_parameters() if groups else net.parameters())
        clipper = autoclip.attach(
            optimizer,
            policy(),
            scope=scope,
            response="scale",
            skip=rule(),
            sinks=[records],
            host_wait=wait,
            **groups,
            **options,
        )
        train(net, optimizer, clipper, bad=bad)
        clipper.settle()
        runs.append([weights_of(net), optimizer.state_dict(), clipper.state_dict(), [one.as_json() for one in records]])
    return runs


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
@pytest.mark.parametrize("scope", ["global", "group", "parameter"])
@pytest.mark.parametrize("kind", POLICIES)
def test_a_run_that_does_not_wait_is_the_same(kind, scope):
    waiting, late = both(POLICIES[kind], scope)
    assert len(late[3]) == STEPS
    assert late[2]["skipped_steps"] == len(BAD)
    assert equal(late, waiting)


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("order", [1.0, 3.0, inf])
def test_other_optimizers_and_norms(kind, order):
    waiting, late = both(quantile, kind=kind, norm_type=order)
    assert equal(late, waiting)


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
@pytest.mark.parametrize("on_nonfinite", ["skip", "zero"])
@pytest.mark.parametrize("scope", ["global", "parameter"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_rule_that_looks_at_norms_decides_on_the_device(kind, scope, on_nonfinite):
    options = {"rule": lambda: SkipStep(2, 10, warmup_steps=5), "on_nonfinite": on_nonfinite}
    waiting, late = both(quantile, scope, kind, **options)
    assert equal(late, waiting)
    assert sum(one["skipped_by"] == "norm" for one in late[3]) >= 2
    assert late[2]["skipped_steps"] == sum(one["skipped"] for one in late[3])


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
def test_a_first_step_of_momentum_is_never_left_out_on_the_device():
    runs = []
    for wait in (True, False):
        net, optimizer, clipper = attached("sgd", host_wait=wait)
        train(net, optimizer, clipper, steps=8, bad=dict.fromkeys(range(5), nan))
        assert clipper.skipped_steps == 5
        runs.append(weights_of(net))
    assert equal(*runs)


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
def test_what_is_not_finite_is_passed_on_as_torch_does():
    waiting, late = both(quantile, bad={9: inf}, on_nonfinite="propagate")
    assert str(late[2]) == str(waiting[2])
    assert [torch.isnan(one).tolist() for one in late[0]] == [torch.isnan(one).tolist() for one in waiting[0]]
    assert torch.isnan(late[0][0]).any()


def test_norms_in_a_row_that_are_not_finite_are_told_a_step_later():
    net, told = network(), []
    optimizer = OPTIMIZERS["plain sgd"](net.parameters())
    clipper = autoclip.attach(optimizer, quantile(), host_wait=False, max_nonfinite_in_a_row=12, sinks=[Records()])
    for step in range(17):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(net, optimizer, clipper, first=step, steps=step + 1, bad=dict.fromkeys(range(5, 20), nan))
        told += [(step, str(one.message).partition(":")[0]) for one in caught]
    assert told == [
        (6, "non-finite gradient norm at step 5, in group0.0"),
        (15, "non-finite gradient norms in 10 steps in a row, by step 14"),
    ]
    before = weights_of(net)
    with pytest.raises(RuntimeError, match=r"in 12 steps in a row, by step 16: .*max_nonfinite_in_a_row=12"):
        train(net, optimizer, clipper, first=17, steps=18)
    assert equal(weights_of(net), before)
    assert clipper.state_dict()["nonfinite_in_a_row"] == 12


def test_sinks_are_closed_where_the_latest_step_is_the_last_of_too_many_in_a_row():
    net, sink = network(), Records()
    optimizer = OPTIMIZERS["plain sgd"](net.parameters())
    clipper = autoclip.attach(optimizer, quantile(), host_wait=False, max_nonfinite_in_a_row=1, sinks=[sink])
    train(net, optimizer, clipper, steps=5, bad={4: nan})
    with (
        pytest.warns(UserWarning, match="at step 4"),
        pytest.raises(RuntimeError, match="in 1 steps in a row, by step 4"),
    ):
        clipper.close()
    assert sink == []


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
@pytest.mark.parametrize("options", [{}, {"skip": SkipStep(2, 10, warmup_steps=5), "on_nonfinite": "zero"}], ids=str)
@pytest.mark.parametrize("scope", ["global", "group", "parameter"])
def test_no_tensor_is_read_in_a_step_that_does_not_wait(scope, options):
    net = network()
    options = {**options, "skip": options["skip"].clone()} if options else {}
    optimizer = OPTIMIZERS["adamw"](net.named_parameters())
    groups = {"weights": "weight", "biases": "bias"} if scope == "group" else None
    clipper = autoclip.attach(optimizer, quantile(), scope=scope, groups=groups, host_wait=False, **options)
    train(net, optimizer, clipper, steps=3, bad={})
    with HostReads() as reads:
        for step in range(3, STEPS):
            train(net, optimizer, clipper, first=step, steps=step + 1, bad={4: nan})
            assert not clipper.is_settled
        assert reads.count == 0
    waiting = autoclip.attach(OPTIMIZERS["adamw"](net.parameters()), host_wait=True)
    net(batch(0)[0]).sum().backward()
    with HostReads() as reads:
        waiting.step()
    assert reads.count > 0  # the instrument does see reads


@pytest.mark.parametrize("on_nonfinite", ["propagate", "zero"])
def test_no_tensor_is_read_in_a_loop_of_ones_own(on_nonfinite):
    net = network()
    optimizer = torch.optim.AdamW(net.parameters())
    clipper = Clipper(net, on_nonfinite=on_nonfinite, host_wait=False)
    for step in range(10):
        loss = backward(net, step)
        with HostReads() as reads:
            norm = clipper.step(loss=loss)
        assert (reads.count == 0) == (step >= 3)
        optimizer.step()
    assert clipper.last.total_norm == norm.item()
    assert clipper.last.step == 9


def test_whatever_is_read_of_the_clipper_takes_the_latest_step_into_account():
    for read in ("last", "threshold", "clip_rate", "clip_rates", "mean_coefficient", "skipped_steps", "policies"):
        clipper, weight = late_clipper()
        expected, other = late_clipper(host_wait=True)
        for norm in (1.0, 2.0, 3.0, 9.0, 2.5, 4.0):
            weight.grad, other.grad = torch.tensor([norm]), torch.tensor([norm])
            clipper.step()
            expected.step()
        assert repr(getattr(clipper, read)) == repr(getattr(expected, read))
        assert clipper.layer_norms() == expected.layer_norms() == {"0": 4.0}
        assert clipper.state_dict() == expected.state_dict()


def late_clipper(policy=None, host_wait=False, **options):
    weight = one_weight()
    policy = policy or RunningQuantile(warmup_steps=2)
    return Clipper([weight], policy, on_nonfinite="propagate", host_wait=host_wait, **options), weight


def test_a_resumed_run_continues_exactly():
    def state(run):
        return copy.deepcopy([dict(part.state_dict()) for part in run])

    whole, resumed = attached("adamw", quantile()), attached("adamw", quantile())
    train(*whole, steps=12, bad={})
    for part, saved in zip(resumed, state(whole), strict=True):
        part.load_state_dict(saved)
    train(*whole, first=12, bad={})
    train(*resumed, first=12, bad={})
    assert equal(state(resumed), state(whole))


def test_states_and_copies_have_taken_in_the_latest_step():
    clipper, weight = late_clipper()
    fresh = clipper.state_dict()
    steps(clipper, weight, [1.0, 2.0, 3.0, 4.0, 5.0])
    twin = copy.deepcopy(clipper)
    assert twin.state_dict() == clipper.state_dict()
    assert twin.state_dict()["steps"] == 5
    steps(clipper, weight, [6.0])
    clipper.load_state_dict(fresh)
    assert clipper.state_dict() == fresh


def test_a_second_call_in_a_step_changes_nothing():
    clipper, weight = late_clipper()
    steps(clipper, weight, [1.0, 2.0, 3.0, 4.0])
    weight.grad = torch.tensor([50.0])
    clipper.step()
    left = weight.grad.clone()
    with pytest.warns(UserWarning, match="called again"):
        assert clipper.step().item() == 50.0
    assert torch.equal(weight.grad, left)
    assert clipper.state_dict()["steps"] == 5


def test_records_come_with_the_learning_rate_of_their_own_step(tmp_path):
    files = []
    for wait in (True, False):
        net, optimizer, clipper = attached("adamw", host_wait=wait)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        with JSONLSink(tmp_path / f"{wait}.jsonl", optimizer) as sink:
            clipper.sinks = [sink]
            for step in range(8):
                train(net, optimizer, clipper, steps=step + 1, first=step, bad={})
                schedule.step()
        files.append(sink.path.read_text())
    assert files[0] == files[1]
    assert [json.loads(line)["step"] for line in files[1].splitlines()] == list(range(8))


def test_closing_records_the_latest_step():
    said = []
    weight = one_weight()
    sink = ConsoleSink(every=100, say=said.append)
    clipper = Clipper([weight], NoClip(), sinks=[sink], on_nonfinite="propagate", host_wait=False)
    steps(clipper, weight, [1.0, 1.0, 1.0, 1.0, 11.0])
    sink.close()
    assert "max 11" in said[0]


def scaled_run(wait, unscale):
    records = Records()
    net, optimizer, clipper = attached("adamw", RunningQuantile(warmup_steps=3), host_wait=wait, sinks=[records])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=5)
    for step in range(25):
        optimizer.zero_grad()
        scaler.scale(F.mse_loss(net(batch(step)[0]), batch(step)[1])).backward()
        if step in (5, 12):
            net[0].weight.grad[0, 0] = inf
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    states = [part.state_dict() for part in (optimizer, clipper, scaler)]
    return [weights_of(net), *states, [one.as_json() for one in records]]


@pytest.mark.parametrize("unscale", [False, True])
def test_steps_that_a_scaler_leaves_out_are_none(unscale):
    waiting, late = scaled_run(True, unscale), scaled_run(False, unscale)
    assert late[2]["steps"] == 23
    assert equal(late, waiting)


def test_found_inf_is_left_behind_on_no_optimizer():
    net, optimizer, clipper = attached()
    train(net, optimizer, clipper, bad={})
    assert not hasattr(optimizer, "found_inf")


@pytest.mark.parametrize(
    ("policy", "options", "why"),
    [
        (AutoClip, {}, "AutoClip counts the norm"),
        (RunningQuantile, {"mode": "value"}, "mode='value'"),
        (RunningQuantile, {"mode": "agc"}, "mode='agc'"),
        (RunningQuantile, {"response": "reciprocal"}, "response='reciprocal'"),
        (SkipStep, {}, "response='skip'"),
        (RunningQuantile, {"skip": AutoClip()}, "AutoClip counts the norm"),
        (RunningQuantile, {"skip": SkipStep(on="loss or norm")}, "skip=SkipStep.* looks at the loss"),
        (RunningQuantile, {"on_nonfinite": "raise"}, "on_nonfinite='raise'"),
        (RunningQuantile, {"host_wait": "never"}, "True, False or 'auto'"),
        (RunningQuantile, {"host_wait": 0}, "host_wait must be True, False or 'auto', got 0"),
    ],
)
def test_what_needs_the_norm_of_the_step_itself_is_refused(policy, options, why):
    with pytest.raises(ValueError, match=why):
        Clipper([one_weight()], policy(), **{"host_wait": False, **options})


def test_a_step_cannot_be_left_out_of_an_optimizer_that_is_not_fused():
    net = network()
    optimizer = torch.optim.AdamW(net.parameters())
    with pytest.raises(ValueError, match="fused=True"):
        autoclip.attach(optimizer, host_wait=False)
    assert not optimizer._optimizer_step_pre_hooks
    weight = one_weight()
    weight.grad = torch.ones(1)
    for options in ({}, {"skip": Fixed(1.0), "on_nonfinite": "propagate"}):
        with pytest.raises(ValueError, match="on_nonfinite='zero' without a rule"):
            Clipper([weight], host_wait=False, **options).step()


def test_parameters_on_the_host_wait_of_themselves():
    net, optimizer, clipper = attached("adamw", host_wait="auto")
    train(net, optimizer, clipper, bad={})
    assert clipper._step.deferred.pending is None


class Captured:
    """A training step of fixed tensors, recorded as a CUDA graph would, and a clipper that takes part in it."""

    def __init__(self, monkeypatch, scope="global", policy=None, **options):
        self.net = network()
        self.x, self.y = (one.clone() for one in batch(0))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=torch.tensor(0.01), fused=True)
        self.records = Records()
        self.clipper = autoclip.attach(
            self.optimizer, policy or quantile(), scope=scope, sinks=[self.records], host_wait=False, **options
        )
        self.monkeypatch = monkeypatch

    def step(self):
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.net(self.x), self.y)
        loss.backward()
        self.clipper.report_loss(loss)
        self.optimizer.step()

    def run(self, at, graph=None):
        """Steps on these batches, uncompiled or by replaying a graph."""
        for step in at:
            self.x.copy_(batch(step)[0])
            self.y.copy_(batch(step)[1])
            self.step() if graph is None else self.clipper.replay(graph)

    def capture(self):
        with self.monkeypatch.context() as patched, Recording() as graph:
            patched.setattr(Deferred, "is_captured", lambda *_: True)
            state = copy.deepcopy((self.net.state_dict(), self.optimizer.state_dict()))
            self.step()
        # A CUDA graph does nothing while it is captured; this recording has done it once.
        with torch.no_grad():
            for parameter, saved in zip(self.net.parameters(), state[0].values(), strict=True):
                parameter.copy_(saved)
            for now, saved in zip(self.optimizer.state.values(), state[1]["state"].values(), strict=True):
                for name, value in saved.items():
                    now[name].copy_(value)
        return graph


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("scope", ["global", "parameter"])
def test_a_replayed_graph_learns_and_clips_as_steps_do(monkeypatch, scope, skips):
    eager, captured = (
        Captured(monkeypatch, scope, skip=SkipStep(2, 10, warmup_steps=4) if skips else None) for _ in range(2)
    )
    eager.run(range(20))
    captured.run(range(4))
    captured.run(range(4, 20), captured.capture())
    assert captured.clipper.state_dict() == eager.clipper.state_dict()
    assert captured.clipper.threshold == eager.clipper.threshold
    assert [one.as_json() for one in captured.records] == [one.as_json() for one in eager.records]
    assert any(one.clipped for one in captured.records[5:])
    assert any(one.skipped_by == "norm" for one in captured.records[5:]) == skips
    assert equal(weights_of(captured.net), weights_of(eager.net))


def test_a_graph_needs_a_few_steps_before_and_a_step_within(monkeypatch):
    captured = Captured(monkeypatch)
    with pytest.raises(RuntimeError, match="no step was captured"):
        captured.clipper.replay(Recording())
    captured.step()
    with pytest.raises(RuntimeError, match="take three steps before"):
        captured.capture()


def test_groups_of_scattered_parameters_are_scaled_each_by_its_own_factor():
    net = network()
    clipper = Clipper(net, Fixed(1.0), scope="group", groups=LAYERS, on_nonfinite="propagate", host_wait=False)
    for _ in range(5):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
        clipper.step()
    assert [norm_of(layer.parameters()) for layer in (net[0], net[2])] == pytest.approx([1.0, 1.0], rel=1e-5)


@pytest.mark.filterwarnings("ignore:non-finite gradient norm")
def test_a_step_that_raised_leaves_nothing_on_the_optimizer():
    net, optimizer, clipper = attached("adamw", quantile(), host_wait=False)
    train(net, optimizer, clipper, steps=5, bad={})

    def broken(*_):
        raise RuntimeError("broken")

    handle = optimizer.register_step_pre_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        train(net, optimizer, clipper, first=5, steps=6, bad={5: nan})
    handle.remove()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer.zero_grad()
    scaler.scale(F.mse_loss(net(batch(6)[0]), batch(6)[1])).backward()
    scaler.step(optimizer)  # sets `found_inf`, and takes it away
    scaler.update()
    clipper.detach()
    assert not hasattr(optimizer, "found_inf")
    before = weights_of(net)
    net(batch(7)[0]).sum().backward()
    optimizer.step()
    assert not equal(weights_of(net), before)


@pytest.mark.filterwarnings("ignore:non-finite gradient norm", "ignore:step.. was called again")
@pytest.mark.parametrize("bad", [{7: nan}, {7: 1e6}])
def test_the_gradients_of_a_step_that_was_left_out_do_no_harm_in_another(bad):
    net, optimizer, clipper = attached("adamw", quantile(), skip=Fixed(1e5), host_wait=False)
    train(net, optimizer, clipper, steps=8, bad=bad)
    before = weights_of(net)
    optimizer.step()  # again, without zero_grad() and backward()
    assert equal(weights_of(net), before)
    assert clipper.skipped_steps == 1


def test_a_group_that_is_taken_away_still_learns_from_the_step_before():
    counts = []
    for wait in (True, False):
        net = network()
        groups = [{"params": list(layer.parameters())} for layer in (net[0], net[2])]
        optimizer = OPTIMIZERS["adamw"](groups)
        clipper = autoclip.attach(optimizer, quantile(), scope="group", host_wait=wait)
        train(net, optimizer, clipper, steps=6, bad={})
        optimizer.param_groups.pop()
        train(net, optimizer, clipper, first=6, steps=10, bad={})
        counts.append([clipper.state_dict(), weights_of(net)])
    assert equal(*counts)


def test_frozen_groups_need_no_momentum():
    net = network()
    for parameter in net[0].parameters():
        parameter.requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"]([{"params": list(layer.parameters())} for layer in (net[0], net[2])])
    clipper = autoclip.attach(optimizer, quantile(), host_wait=False)
    for step in range(6):
        backward(net, step)
        optimizer.step()
        assert clipper.is_settled == (step < 3)


@pytest.mark.parametrize("limit", [0.1, 0.3, 1 / 3, 1e-3, 123.456])
def test_a_norm_that_is_the_threshold_but_for_rounding_is_judged_alike(limit):
    found = []
    for wait in (True, False):
        clipper, weight = late_clipper(Fixed(limit), host_wait=wait, sinks=[records := Records()])
        for norm in [limit, limit * (1 + 1e-7), limit * (1 - 1e-7), 2 * limit] * 2:
            weight.grad = torch.tensor([norm])
            clipper.step()
        clipper.settle()
        found.append([one.as_json() for one in records])
    assert equal(*found)


def test_factors_stay_factors_for_the_smallest_thresholds():
    clipper, weight = late_clipper(Fixed(1e-40), norm_type=inf)
    for left in steps(clipper, weight, [2e-40] * 5):
        assert 0 <= left <= 2.00001e-40


@pytest.mark.parametrize("scale", [0.0, -1.0, inf, nan])
def test_a_scale_that_is_none_is_refused(scale):
    clipper, weight = late_clipper()
    steps(clipper, weight, [3.0] * 4)
    weight.grad = torch.tensor([3.0])
    with pytest.raises(ValueError, match="loss_scale"):
        clipper.step(loss_scale=scale)
    assert weight.grad.item() == 3.0


def test_an_overflow_of_scaled_gradients_is_left_to_the_scaler():
    clipper, weight = late_clipper()
    steps(clipper, weight, [3.0] * 4)
    weight.grad = torch.tensor([3.0, inf])[1:]
    clipper.step(loss_scale=2.0)
    assert weight.grad.item() == inf
    assert clipper.state_dict()["steps"] == 4


def test_a_learning_rate_that_is_a_tensor_is_not_read(tmp_path):
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=torch.tensor(0.01), fused=True)
    sink = JSONLSink(tmp_path, optimizer)
    clipper = autoclip.attach(optimizer, quantile(), sinks=[sink], host_wait=False)
    train(net, optimizer, clipper, steps=4, bad={})
    with HostReads() as reads:
        train(net, optimizer, clipper, first=4, steps=12, bad={})
    assert reads.count == 0
    clipper.close()
    lines = [json.loads(line) for line in sink.path.read_text().splitlines()]
    assert [line["lr"] for line in lines] == [pytest.approx(0.01)] * 12


def test_each_graph_has_a_step_of_its_own(monkeypatch):
    captured = Captured(monkeypatch)
    captured.run(range(4))
    first = captured.capture()
    with pytest.raises(RuntimeError, match="replay each graph once"):
        captured.capture()
    captured.clipper.replay(first)
    second = captured.capture()
    captured.clipper.replay(second)
    for step, graph in enumerate([first, second, first, second, first], start=5):
        captured.run([step], graph)
    assert captured.clipper.last.step == 10
    norms = [one.total_norm for one in captured.records[4:]]
    assert len(set(norms)) == len(norms)
    with pytest.raises(RuntimeError, match="no step was captured in this graph"):
        captured.clipper.replay(Recording())


def test_a_loss_outside_the_captured_step_is_told(monkeypatch):
    captured = Captured(monkeypatch)
    captured.run(range(4))
    graph = captured.capture()
    captured.clipper.report_loss(1.0)
    with pytest.warns(UserWarning, match="outside the captured step"):
        captured.clipper.replay(graph)
    assert not captured.clipper.has_reported_loss


def test_sinks_can_be_exchanged_and_the_old_ones_get_their_last_record():
    clipper, weight = late_clipper(sinks=[old := Records()])
    new = Records()
    for step in range(6):
        if step == 5:
            clipper.sinks = [new]
        weight.grad = torch.tensor([1.0])
        clipper.step()
    clipper.settle()
    assert [[one.step for one in records] for records in (old, new)] == [[0, 1, 2, 3, 4], [5]]


@pytest.mark.parametrize("host_wait", [True, False])
def test_a_group_without_a_limit_is_left_alone_beside_one_that_is_not_finite(host_wait):
    """In the first step of a warm-up a policy has no limit."""
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    clipper = Clipper(
        weights, RunningQuantile(warmup_steps=9), scope="parameter", on_nonfinite="propagate", host_wait=host_wait
    )
    for _ in range(4):
        weights[1].grad = torch.ones(2)
        clipper.step()
    weights[0].grad, weights[1].grad = torch.tensor([nan, 1.0]), torch.ones(2)
    with warnings.catch_warnings(action="ignore"):
        clipper.step()
    with pytest.warns(UserWarning, match="passed on as it is") if not host_wait else nullcontext():
        clipper.settle()
    assert weights[0].grad[0].isnan()
    assert weights[0].grad[1] == 1.0


def test_a_dropped_graph_is_forgotten_and_its_memory_with_it(monkeypatch):
    captured = Captured(monkeypatch)
    captured.run(range(4))
    graph = captured.capture()
    captured.clipper.replay(graph)
    captured.clipper.settle()
    kept = weakref.ref(graph)
    del graph
    gc.collect()
    assert kept() is None
    captured.clipper.replay(captured.capture())
    assert captured.clipper.last.finite
