"""`attach`: the clipper as a hook of an optimizer."""

import copy
import gc
import sys
import weakref
from collections import OrderedDict
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

import autoclip
from autoclip import AdaGC, Clipper, Fixed, LossAwareQuantile, NoClip, ProbingQuantile, RunningQuantile, ZClip, attach
from autoclip.clipper.attach import innermost
from tests.grouped import backward
from tests.small_network import Records, batch, equal, network, one_weight, train, weights_of

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}
STEPS = 12
every_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def loss_of(net, step):
    return F.mse_loss(net(batch(step)[0]), batch(step)[1])


def norm_of(net):
    return torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()


def attached(kind="sgd", policy=None, **options):
    net = network()
    optimizer = OPTIMIZERS[kind](net.parameters())
    return net, optimizer, attach(optimizer, policy, **options)


def closure_of(net, step):
    """What an optimizer calls; gradients and loss are those of `backward`."""
    return lambda: backward(net, step)


def loop(net, optimizer, steps, before_step=lambda: None):
    for step in range(steps):
        backward(net, step)
        before_step()
        optimizer.step()


class Norms:
    """The norm of the gradients as the optimizer gets them, step by step: a hook behind the clipper's."""

    def __init__(self, net, optimizer):
        self.net = net
        self.found = []
        optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer, args, kwargs):
        scale = getattr(optimizer, "grad_scale", None)
        self.found.append(norm_of(self.net) / (1.0 if scale is None else scale.item()))


def by_hand(kind, policy):
    """The loop with `Clipper.step()` in it: its weights, records and clipper."""
    net, records = network(), Records()
    optimizer = OPTIMIZERS[kind](net.parameters())
    clipper = Clipper(optimizer, policy, sinks=[records])
    train(net, optimizer, clipper, range(STEPS))
    return net, records, clipper


@every_optimizer
@pytest.mark.parametrize("policy", [lambda: Fixed(1.0), lambda: RunningQuantile(warmup_steps=4), LossAwareQuantile])
def test_an_attached_clipper_does_what_a_call_in_the_loop_does(kind, policy):
    expected, records, by_call = by_hand(kind, policy())
    net, optimizer, clipper = attached(kind, policy(), sinks=[attached_records := Records()])
    seen = Norms(net, optimizer)
    for step in range(STEPS):
        clipper.report_loss(backward(net, step))
        optimizer.step()
    assert equal(weights_of(net), weights_of(expected))
    assert attached_records == records
    assert clipper.state_dict() == by_call.state_dict()
    assert all(norm <= record.threshold * (1 + 1e-6) for norm, record in zip(seen.found, records, strict=True))


@every_optimizer
@pytest.mark.parametrize("by_keyword", [False, True])
def test_gradients_of_a_closure_are_clipped_and_its_loss_is_learned(kind, by_keyword):
    expected, records, _ = by_hand(kind, LossAwareQuantile())
    net, optimizer, _ = attached(kind, LossAwareQuantile(), sinks=[attached_records := Records()])
    for step in range(STEPS):
        closure = closure_of(net, step)
        loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
        assert loss.item() == pytest.approx(attached_records[-1].loss)
    assert equal(weights_of(net), weights_of(expected))
    assert attached_records == records


def test_a_closure_of_none_is_no_closure():
    net, optimizer, clipper = attached("sgd", Fixed(1.0))
    backward(net, 5)
    optimizer.step(None)
    assert clipper.last.clipped
    assert norm_of(net) == pytest.approx(1.0)


def test_a_reported_loss_comes_before_what_a_closure_returns():
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    clipper = attach(optimizer)

    def step(returned):
        def closure():
            optimizer.zero_grad()
            (3 * weight).sum().backward()
            return returned

        assert optimizer.step(closure) is returned
        return clipper.last.loss

    clipper.report_loss(2.0)
    assert [step(torch.tensor(5.0)), step(torch.tensor(5.0))] == [2.0, 5.0]
    assert [step(None), step("text"), step(torch.zeros(3))] == [None] * 3
    assert clipper.state_dict()["steps"] == 5


def test_lbfgs_is_warned_of_unless_nothing_is_clipped():
    with pytest.warns(UserWarning, match="LBFGS measures curvature .* line_search_fn='strong_wolfe'"):
        attach(torch.optim.LBFGS([one_weight()]))
    attach(torch.optim.LBFGS([one_weight()]), NoClip())


@pytest.mark.filterwarnings("ignore:LBFGS measures curvature")
def test_a_line_search_is_clipped_at_one_threshold_and_observed_once():
    net, records, norms = network(), Records(), []
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=6)
    clipper = attach(optimizer, RunningQuantile(50, warmup_steps=2), sinks=[records])
    thresholds = []
    for step in range(8):
        allowed = clipper.threshold

        def closure(step=step):
            if norms and norms[-1][0] == step:  # the gradients that the optimizer got from the evaluation before
                norms[-1].append(norm_of(net))
            norms.append([step])
            return backward(net, step)

        optimizer.step(closure)
        thresholds.append(allowed)
    assert len(records) == 8
    evaluations = [sum(1 for found in norms if found[0] == step) for step in range(8)]
    assert max(evaluations) > 2
    left = [(found[0], found[1]) for found in norms if len(found) == 2]
    assert len(left) > 8
    assert all(norm <= thresholds[step] * (1 + 1e-5) for step, norm in left)
    assert any(norm >= thresholds[step] * (1 - 1e-5) for step, norm in left)


@every_optimizer
@pytest.mark.parametrize("unscale", [False, True])
def test_under_a_grad_scaler_norms_are_true_and_weights_are_as_without(kind, unscale):
    """The scale of 1024 is a power of two: nothing is rounded by it."""
    expected, records, _ = by_hand(kind, RunningQuantile(warmup_steps=3))
    net, optimizer, _ = attached(kind, RunningQuantile(warmup_steps=3), sinks=[attached_records := Records()])
    seen = Norms(net, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    for found, wanted in zip(attached_records, records, strict=True):
        assert found.total_norm == pytest.approx(wanted.total_norm, rel=1e-5)
        assert found.threshold == pytest.approx(wanted.threshold, rel=1e-5)
        assert found.clipped == wanted.clipped
    assert all(norm <= record.threshold * (1 + 1e-6) for norm, record in zip(seen.found, attached_records, strict=True))
    for parameter, other in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (lambda: RunningQuantile(90, rate=1.0, warmup_steps=2), {"response": "reciprocal"}),
        (lambda: RunningQuantile(50, warmup_steps=2), {"response": "skip"}),
        (lambda: ZClip(warmup_steps=2), {}),
        (lambda: AdaGC(warmup_steps=3), {}),
        (lambda: AdaGC(warmup_steps=3, max_threshold=0.2), {}),
        (LossAwareQuantile, {"scope": "parameter"}),
    ],
)
def test_gradients_computed_anew_keep_to_the_thresholds_of_the_step(policy, options):
    """A step by hand, and further gradients in the same step: none is left with more than the record allows."""
    net = network()
    clipper = Clipper(net, policy(), relearn_after=None, **options)
    random = torch.Generator().manual_seed(0)

    def fill(factor):
        for parameter in net.parameters():
            parameter.grad = factor * torch.randn(parameter.shape, generator=random)

    reclipped = 0
    for step in range(30):
        fill(2.0 if step % 7 else 0.1)
        clipper.step()
        for factor in (0.01, 1.0, 5.0):
            fill(factor)
            norm = clipper.reclip().item()
            left = [p.grad for p in net.parameters() if p.grad is not None]
            total = torch.stack([one.norm() for one in left]).norm().item() if left else 0.0
            assert total <= min(norm, clipper.last.threshold) * (1 + 1e-5)
            reclipped += total < norm * (1 - 1e-5)
    assert reclipped > 20
    assert clipper.last.step == 29


@every_optimizer
@pytest.mark.parametrize("unscale", [False, True])
def test_an_overflow_step_is_none(kind, unscale):
    """The scaler leaves the step out; nothing is observed, and the gradients are not taken from it."""
    net, optimizer, clipper = attached(kind, RunningQuantile(warmup_steps=3))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    sizes = []
    for step in range(6):
        before = weights_of(net)
        optimizer.zero_grad()
        loss = loss_of(net, step) * (float("inf") if step == 3 else 1.0)
        scaler.scale(loss).backward()
        clipper.report_loss(loss)
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        sizes.append(scaler.get_scale())
        assert equal(weights_of(net), before) == (step == 3)
    assert sizes == [2.0**10] * 3 + [2.0**9] * 3
    assert clipper.state_dict()["steps"] == 5
    assert clipper.policy.nonfinite_norms == 0
    assert isinstance(clipper.last.loss, float)


def test_an_optimizer_that_is_given_the_scaler_is_looked_through():
    class TakesScaler(torch.optim.SGD):
        _step_supports_amp_scaling = True

        def step(self, closure=None, grad_scaler=None):
            if grad_scaler is not None:
                for group in self.param_groups:
                    for p in group["params"]:
                        p.grad /= grad_scaler.get_scale()
            return super().step(closure)

    net = network()
    optimizer = TakesScaler(net.parameters(), lr=0.01)
    clipper = attach(optimizer, Fixed(1.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = network()
    backward(expected, 5)
    scaler.scale(loss_of(net, 5)).backward()
    with pytest.warns(FutureWarning, match="passing itself"):
        scaler.step(optimizer)
    assert clipper.last.total_norm == pytest.approx(norm_of(expected), rel=1e-6)
    assert norm_of(net) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("with_closure", [False, True])
def test_a_subclass_that_calls_the_step_of_its_base_takes_one_step(with_closure):
    class Counting(torch.optim.SGD):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            if self.calls == 4:
                raise RuntimeError("out of memory")
            return super().step(closure)

    net = network()
    optimizer = Counting(net.parameters(), lr=0.01)
    clipper = attach(optimizer, Fixed(1.0))
    for step in range(8):
        if not with_closure:
            backward(net, step)
        with pytest.raises(RuntimeError) if step == 3 else nullcontext():
            optimizer.step(closure_of(net, step) if with_closure else None)
    assert clipper.state_dict()["steps"] == 8 - with_closure
    assert norm_of(net) <= 1.0


def test_under_accumulation_the_loss_is_the_mean_and_the_step_one():
    net, optimizer, clipper = attached("sgd", LossAwareQuantile(), sinks=[records := Records()])
    means = []
    for step in range(3):
        optimizer.zero_grad()
        losses = [loss_of(net, 4 * step + part) for part in range(4)]
        for part, loss in enumerate(losses):
            (loss / 4).backward()
            clipper.report_loss(loss if part % 2 else loss.item())
        optimizer.step()
        means.append(sum(loss.item() for loss in losses) / 4)
    assert [record.loss for record in records] == pytest.approx(means)


def test_a_reported_loss_is_kept_as_it_was():
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    clipper = attach(optimizer)
    loss = torch.tensor(2.0)
    clipper.report_loss(loss)
    loss += 5
    weight.grad = torch.ones(1)
    optimizer.step()
    assert clipper.last.loss == 2.0


@pytest.mark.parametrize("scope", ["global", "group"])
def test_parameter_groups_are_clipped_together_or_each_by_itself(scope):
    net = network()
    groups = [{"params": list(net[0].parameters()), "name": "first"}, {"params": list(net[2].parameters())}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    clipper = attach(optimizer, Fixed(0.5), scope=scope)
    backward(net, 5)
    optimizer.step()
    together = [0.5] if scope == "global" else [0.5, 0.5]
    measured = [norm_of(net)] if scope == "global" else [norm_of(net[0]), norm_of(net[2])]
    assert measured == pytest.approx(together, rel=1e-5)
    assert list(clipper.policies) == (["all"] if scope == "global" else ["first", "group1"])


@pytest.mark.filterwarnings("ignore")  # of the compiler, about the profiler
def test_a_compiled_step_has_no_more_graphs_than_without_a_clipper():
    def graphs(is_attached):
        compiled = []

        def backend(module, inputs):
            compiled.append(module)
            return module.forward

        torch._dynamo.reset()
        net = network()
        optimizer = OPTIMIZERS["adamw fused"](net.parameters())
        clipper = attach(optimizer, RunningQuantile(warmup_steps=3)) if is_attached else None
        step = torch.compile(optimizer.step, backend=backend)
        for at in range(4):
            backward(net, at)
            limit = clipper.threshold if clipper else float("inf")
            step()
            assert norm_of(net) <= limit * (1 + 1e-5)
        assert clipper is None or clipper.state_dict()["steps"] == 4
        return len(compiled)

    assert graphs(is_attached=True) == graphs(is_attached=False)


def test_detach_takes_it_off():
    net, optimizer, clipper = attached("sgd", Fixed(0.1))
    clipper.detach()
    backward(net, 5)
    before = norm_of(net)
    optimizer.step()
    assert norm_of(net) == before
    assert clipper.last is None
    clipper.detach()
    attach(optimizer, Fixed(0.1))
    optimizer.step()
    assert norm_of(net) == pytest.approx(0.1, rel=1e-5)


def test_a_second_clipper_on_the_same_optimizer_is_refused():
    optimizer = torch.optim.SGD([one_weight()], lr=1.0)
    attach(optimizer)
    with pytest.raises(ValueError, match=r"already; call its detach\(\) first"):
        attach(optimizer)


def test_a_clipper_in_the_loop_beside_an_attached_one_is_told():
    net, optimizer, clipper = attached("sgd", Fixed(0.5))
    with pytest.warns(UserWarning, match="another clipper has clipped these gradients already"):
        loop(net, optimizer, 3, before_step=Clipper(net, Fixed(1.0)).step)
    net, optimizer, clipper = attached("sgd", Fixed(0.5))
    with pytest.warns(UserWarning, match="called again on the same gradients"):
        loop(net, optimizer, 3, before_step=clipper.step)
    assert clipper.state_dict()["steps"] == 3


def test_stale_and_missing_gradients_are_told():
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        attached()[1].step()
    net, optimizer, clipper = attached("sgd", Fixed(0.5))
    backward(net, 5)
    optimizer.step()
    with pytest.warns(UserWarning, match=r"for a new step call zero_grad\(\) and backward\(\) first"):
        optimizer.step()
    optimizer.step()
    assert clipper.state_dict()["steps"] == 1


@pytest.mark.parametrize("norm", [5.0, 0.5])
def test_somebody_elses_function_clips_at_the_threshold(norm):
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=1.0)
    asked = []

    def clip_fn(max_norm):
        asked.append(max_norm)
        return nn.utils.clip_grad_norm_([weight], max_norm)

    clipper = attach(optimizer, Fixed(1.0), clip_fn=clip_fn)
    weight.grad = torch.tensor([norm])
    optimizer.step()
    assert asked == [1.0]
    assert -weight.item() == pytest.approx(min(norm, 1.0), rel=1e-5)
    assert clipper.last.total_norm == norm


@pytest.mark.filterwarnings("ignore:LBFGS measures curvature")
def test_somebody_elses_function_under_a_line_search():
    net, asked = network(), []
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=4)

    def clip_fn(max_norm):
        asked.append(max_norm)
        return nn.utils.clip_grad_norm_(net.parameters(), max_norm)

    attach(optimizer, Fixed(0.5), clip_fn=clip_fn, sinks=[records := Records()])
    optimizer.step(closure_of(net, 5))
    assert len(records) == 1
    assert len(asked) > 2
    assert set(asked) == {0.5}


class Wrapper:
    """As trainers wrap optimizers: `step` and the groups are passed on, hooks are not."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


def wrappers_that_hold_each_other():
    first, second = Wrapper(None), Wrapper(None)
    first.optimizer, second.optimizer = second, first
    return first


def some_optimizer():
    return torch.optim.SGD([one_weight()], lr=1.0)


class Lookahead(torch.optim.Optimizer):
    """As some packages wrap: the constructor of `Optimizer` is not called, so that nobody calls these hooks."""

    def __init__(self, inner, name="_base_optimizer"):
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
        setattr(self, name, inner)
        self._inner = name
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        return getattr(self, self._inner).step(closure)


class SharpnessAware(torch.optim.Optimizer):
    """Two gradients for each step, by hand: `first_step`, then `second_step`."""

    def __init__(self, parameters, base, **options):
        super().__init__(parameters, options)
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(0.01)

    @torch.no_grad()
    def second_step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(0.01)
        self.base_optimizer.step()


@pytest.mark.parametrize(
    ("name", "set_to_none"), [("_base_optimizer", True), ("optim", False), ("original_optimizer", True), ("any", False)]
)
def test_a_wrapper_whose_hooks_nobody_calls_clips_inside(name, set_to_none):
    weight = one_weight()
    optimizer = Lookahead(torch.optim.SGD([weight], lr=1.0), name)
    clipper = attach(optimizer, Fixed(1.0))
    for _ in range(5):
        (50 * weight).sum().backward()
        optimizer.step()
        getattr(optimizer, name).zero_grad(set_to_none)
    assert weight.item() == pytest.approx(-5.0, rel=1e-5)
    assert clipper.state_dict()["steps"] == 5


def test_two_gradients_for_a_step_are_one_observation():
    weight = one_weight()
    optimizer = SharpnessAware([weight], torch.optim.SGD, lr=1.0)
    clipper = attach(optimizer, Fixed(1.0))
    for _ in range(3):
        (50 * weight).sum().backward()
        optimizer.first_step()
        optimizer.zero_grad()
        (50 * weight).sum().backward()
        optimizer.second_step()
        optimizer.zero_grad()
    assert weight.item() == pytest.approx(-3.0, rel=1e-5)
    assert clipper.state_dict()["steps"] == 3


def test_an_optimizer_whose_hooks_nobody_calls_is_refused_with_the_cure():
    class Bare(torch.optim.Optimizer):
        def __init__(self, parameters):
            self.param_groups = [{"params": list(parameters)}]

        def step(self, closure=None):
            return None

    with pytest.raises(TypeError, match=r"Bare calls no hooks, .*call clipper.step\(\) before optimizer.step\(\)"):
        attach(Bare([one_weight()]))
    two = Lookahead(torch.optim.SGD([one_weight()], lr=1.0))
    two.other = torch.optim.SGD([one_weight()], lr=1.0)
    with pytest.raises(TypeError, match="Lookahead holds 2 optimizers: attach to each of them"):
        attach(two)


def test_wrappers_are_looked_through():
    weight = one_weight()
    optimizer = Wrapper(Wrapper(torch.optim.SGD([weight], lr=1.0)))
    clipper = attach(optimizer, Fixed(1.0))
    weight.grad = torch.tensor([5.0])
    optimizer.step()
    assert weight.item() == pytest.approx(-1.0, rel=1e-5)
    assert clipper.last.clipped
    assert innermost(optimizer) is optimizer.optimizer.optimizer


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "needs an optimizer of torch or a wrapper around one"),
        ([torch.zeros(2)], "needs an optimizer of torch or a wrapper around one"),
        (nn.Linear(2, 2), r"a model is clipped by autoclip\.Clipper\(model\)"),
        (StepLR(some_optimizer(), 1), r"got its scheduler, a StepLR: write autoclip\.attach\(optimizer\)"),
        (ReduceLROnPlateau(some_optimizer()), r"got its scheduler, a Red\w+: write autoclip\.attach\(optimizer\)"),
        (wrappers_that_hold_each_other(), "needs an optimizer of torch"),
    ],
)
def test_what_is_no_optimizer_is_refused(given, message):
    with pytest.raises(TypeError, match=message):
        attach(given)


def test_an_engine_that_clips_by_itself_is_refused():
    engine = type("DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})()
    with pytest.raises(ValueError, match=r"autoclip\.integrations\.deepspeed\.attach\(engine\)"):
        attach(engine)


def test_wrong_options_are_those_of_the_clipper():
    with pytest.raises(TypeError, match="policy must be a Policy"):
        attach(some_optimizer(), 1.0)
    with pytest.raises(TypeError, match="scop"):
        attach(some_optimizer(), scop="global")
    for options in ({"mode": "value"}, {"scope": "parameter"}):
        with pytest.raises(ValueError, match="clip_fn scales all gradients by their one norm"):
            attach(some_optimizer(), Fixed(1.0), clip_fn=lambda max_norm: 1.0, **options)


def test_a_copied_optimizer_has_no_clipper_and_a_copied_clipper_no_optimizer():
    net, optimizer, clipper = attached("sgd", RunningQuantile(warmup_steps=1))
    backward(net, 0)
    optimizer.step()
    assert not copy.deepcopy(optimizer)._optimizer_step_pre_hooks
    copied = copy.deepcopy(clipper)
    assert copied.state_dict() == clipper.state_dict()
    copied.detach()
    assert optimizer._optimizer_step_pre_hooks


def test_resume_through_state_dicts_is_exact(tmp_path):
    def start():
        return attached("adamw", RunningQuantile(warmup_steps=4))

    def advance(parts, steps):
        net, optimizer, clipper = parts
        for step in steps:
            clipper.report_loss(backward(net, step))
            optimizer.step()

    whole, first, second = start(), start(), start()
    advance(whole, range(20))
    advance(first, range(9))
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    for part, state in zip(second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    advance(second, range(9, 20))
    assert equal(weights_of(second[0]), weights_of(whole[0]))
    assert second[2].state_dict() == whole[2].state_dict()


def test_nothing_keeps_a_dropped_optimizer_alive():
    net, optimizer, clipper = attached("sgd")
    backward(net, 0)
    optimizer.step()
    kept = weakref.ref(optimizer)
    del optimizer, net, clipper
    gc.collect()
    assert kept() is None


def test_it_is_a_public_name():
    assert autoclip.attach is attach
    assert "attach" in dir(autoclip)
    assert isinstance(attach(some_optimizer()).policy, ProbingQuantile)


def test_steps_that_only_make_the_state_of_an_optimizer_are_none():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net, optimizer, clipper = attached("adamw")
    assert get_optimizer_state_dict(net, optimizer)["state"]
    assert clipper.last is None
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # as a schedule may begin
    backward(net, 0)
    optimizer.step()
    assert clipper.last.step == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_optimizer_without_state_may_have_any_rate_and_default_device(device):
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    clipper = attach(optimizer, Fixed(1.0))
    with torch.device(device):
        for norm in (0.0, 5.0):
            weight.grad = torch.tensor([norm], device="cpu")
            optimizer.step()
    assert clipper.last.step == 1
    optimizer.param_groups[0]["lr"] = 0.0
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert clipper.last.step == 1


def test_two_optimizers_that_take_turns_on_the_same_parameters_are_no_conflict():
    net = network()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01) for _ in range(2)]
    clippers = [attach(optimizer, Fixed(0.5)) for optimizer in optimizers]
    for step in range(6):
        optimizers[step % 2].zero_grad()
        backward(net, step)
        optimizers[step % 2].step()
    assert [clipper.state_dict()["steps"] for clipper in clippers] == [3, 3]


def test_parameters_that_are_exchanged_are_clipped_and_what_is_gone_is_forgotten():
    net, head = network(), nn.Linear(8, 1)
    optimizer = torch.optim.SGD([{"params": net[0].parameters()}, {"params": net[2].parameters()}], lr=0.01)
    clipper = attach(optimizer, Fixed(0.5), scope="group")
    backward(net, 5)
    optimizer.step()
    net[2] = head
    optimizer.param_groups[1]["params"] = list(head.parameters())
    backward(net, 5)
    optimizer.step()
    assert norm_of(head) == pytest.approx(0.5, rel=1e-5)
    del optimizer.param_groups[0]
    assert list(clipper.state_dict()["groups"]) == ["group0"]


def test_groups_may_share_names():
    first, second = nn.Linear(2, 1), nn.Linear(2, 1)
    groups = [{"params": list(net.named_parameters())} for net in (first, second)]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    clipper = attach(optimizer, Fixed(0.5))
    (first(torch.ones(1, 2)) + second(torch.ones(1, 2))).sum().backward()
    optimizer.step()
    assert list(clipper.layer_norms()) == ["group0.weight", "group0.bias", "group1.weight", "group1.bias"]


@pytest.mark.parametrize("rate", [None, torch.tensor([0.1, 0.2]), 0.1])
def test_a_rate_may_be_no_number(rate):
    class Odd(torch.optim.Optimizer):
        def step(self, closure=None):
            return None

    weight = one_weight()
    optimizer = Odd([weight], {"lr": rate})
    clipper = attach(optimizer, Fixed(1.0))
    weight.grad = torch.tensor([5.0])
    optimizer.step()
    assert clipper.last.clipped


class TakesLoss(torch.optim.SGD):
    """Its `step` takes a number."""

    def step(self, loss=None, n=1):
        self.heard = loss
        return super().step()


def test_an_argument_that_is_no_closure_is_passed_on_and_gradients_are_clipped():
    net = network()
    optimizer = TakesLoss(net.parameters(), lr=0.01)
    clipper = attach(optimizer, Fixed(0.5))
    loss = loss_of(net, 5)
    loss.backward()
    optimizer.step(loss)
    assert optimizer.heard is loss
    assert norm_of(net) == pytest.approx(0.5, rel=1e-5)
    assert clipper.last.step == 0


def test_a_closure_that_is_never_called_is_told():
    class Deaf(torch.optim.Optimizer):
        def step(self, closure=None):
            return None

    weight = one_weight()
    optimizer = Deaf([weight], {"lr": 0.1})
    attach(optimizer, Fixed(1.0))
    weight.grad = torch.tensor([5.0])
    with pytest.warns(UserWarning, match="Deaf was given a closure and did not call it"):
        optimizer.step(lambda: None)


@pytest.mark.filterwarnings("ignore:LBFGS measures curvature")
def test_losses_that_a_line_search_reports_are_those_of_its_first_evaluation():
    net, firsts = network(), []
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=6)
    clipper = attach(optimizer, Fixed(0.5), sinks=[records := Records()])
    for step in range(3):
        heard = []

        def closure(step=step, heard=heard):
            loss = backward(net, step)
            clipper.report_loss(loss)
            heard.append(loss.item())
            return loss

        optimizer.step(closure)
        firsts.append(heard[0])
    assert [record.loss for record in records] == pytest.approx(firsts)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_no_graph_is_kept_where_gradients_have_one():
    net, optimizer, clipper = attached("sgd", Fixed(0.5))
    for step in range(3):
        optimizer.zero_grad()
        loss_of(net, step).backward(create_graph=True)
        assert not clipper.step().requires_grad
    copy.deepcopy(clipper)


@pytest.mark.parametrize("factor", [3.0, 1.0, 0.5])
def test_a_later_hook_that_makes_gradients_larger_is_told(factor):
    net, optimizer, _ = attached("adamw", Fixed(0.5))
    optimizer.register_step_pre_hook(lambda *_: [one.grad.mul_(factor) for one in net.parameters()] and None)
    loop(net, optimizer, 1)  # the hook is seen
    backward(net, 5)
    told = pytest.warns(UserWarning, match=r"norm of 1.5 after they were clipped at 0.5: a hook")
    with told if factor > 1 else nullcontext():
        optimizer.step()
    assert norm_of(net) == pytest.approx(0.5 * factor, rel=1e-5)


def test_a_hook_that_comes_before_is_not_looked_at():
    net = network()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    optimizer.register_step_pre_hook(lambda *_: [parameter.grad.mul_(10) for parameter in net.parameters()] and None)
    attach(optimizer, Fixed(0.5))
    backward(net, 5)
    optimizer.step()
    assert norm_of(net) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("kind", [torch.nn.Parameter, torch.Tensor.requires_grad_])
def test_only_plain_tensors_in_place_of_all_parameters_are_taken_for_parts_of_them(monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "deepspeed", sys)  # as if imported
    optimizer = torch.optim.SGD([one_weight()], lr=1.0)
    clipper = attach(optimizer, Fixed(1.0))
    exchanged = optimizer.param_groups[0]["params"][0] = kind(torch.zeros(1))
    exchanged.grad = torch.tensor([4.0])
    if isinstance(exchanged, torch.nn.Parameter):  # as FSDP does
        optimizer.step()
        assert clipper.last.total_norm == 4.0
    else:
        with pytest.raises(RuntimeError, match="DeepSpeed has exchanged the parameters"):
            optimizer.step()
