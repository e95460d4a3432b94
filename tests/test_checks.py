"""Second calls, second clippers, and gradients that are not as the clipper left them are noticed."""

import gc
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from math import inf

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook

import autoclip
from autoclip import Clipper, Fixed, NoClip, attach
from autoclip.clipper import checks
from autoclip.clipper.checks import CHECKED_STEPS, Checks, Mark
from autoclip.warn_once import WarnOnce
from tests.small_network import one_weight


def train(weight, optimizer, clipper, norms, *, scaler=None, between=lambda: None):
    for norm in norms:
        weight.grad = torch.tensor([norm * (1.0 if scaler is None else scaler.get_scale())])
        clipper.step()
        between()
        if scaler is None:
            optimizer.step()
        else:
            scaler.scale(torch.zeros(1))  # a scaler has no scale before it has scaled something
            scaler.step(optimizer)
            scaler.update()


def setting(fused=False, limit=1.0, scale=None):
    weight = one_weight()
    scaler = None
    if scale is not None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.zeros(1))
    return weight, torch.optim.SGD([weight], lr=0.1, fused=fused), Clipper([weight], Fixed(limit)), scaler


@pytest.mark.parametrize(("fused", "scale", "norm"), [(False, 2.0, 0.3), (True, 1024.0, 3.0), (False, 65536.0, 3.0)])
def test_clipping_before_the_scaler_unscales_is_told(fused, scale, norm):
    weight, optimizer, clipper, scaler = setting(fused, scale=scale)
    with pytest.warns(UserWarning, match=rf"divided by {scale:.0f}, .* call scaler.unscale_\(optimizer\)"):
        train(weight, optimizer, clipper, [norm], scaler=scaler)


@pytest.mark.parametrize("fused", [False, True])
def test_clipping_after_unscale_is_right(fused):
    weight, optimizer, clipper, scaler = setting(fused, scale=65536.0)
    for norm in (0.3, 3.0, 0.7, 5.0):
        weight.grad = torch.tensor([norm * 65536.0])
        scaler.unscale_(optimizer)
        clipper.step()
        scaler.step(optimizer)
        scaler.update()
    assert clipper.last.total_norm == pytest.approx(5.0)


def test_a_scale_given_to_the_step_is_right():
    weight, optimizer, clipper, scaler = setting(scale=65536.0)
    for norm in (0.3, 3.0):
        weight.grad = torch.tensor([norm * 65536.0])
        clipper.step(loss_scale=scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        assert clipper.last.total_norm == pytest.approx(norm)
        assert weight.grad.item() == pytest.approx(min(norm, 1.0), rel=1e-5)


def test_gradients_that_grow_after_they_were_clipped_are_told():
    weight, optimizer, clipper, _ = setting()
    with pytest.warns(UserWarning, match=r"norm of 3 in optimizer.step\(\), after they were clipped at 1"):
        train(weight, optimizer, clipper, [5.0], between=lambda: weight.grad.mul_(3))


@pytest.mark.parametrize("factor", [0.7, 1.0, 1 / 3])
def test_gradients_that_shrink_by_no_power_of_two_are_nobodys_business(factor):
    weight, optimizer, clipper, _ = setting()
    train(weight, optimizer, clipper, [5.0, 0.5, 3.0], between=lambda: weight.grad.mul_(factor))
    assert clipper.state_dict()["steps"] == 3


def test_other_optimizers_are_not_looked_at():
    weight, optimizer, clipper, _ = setting()
    other = one_weight()
    other_optimizer = torch.optim.SGD([other], lr=0.1)

    def step_other():
        other.grad = torch.tensor([1e6])
        other_optimizer.step()

    train(weight, optimizer, clipper, [5.0, 2.0], between=step_other)
    assert clipper.last.clipped


def test_only_the_first_steps_are_looked_at():
    gc.collect()  # clippers of other tests
    weight, optimizer, clipper, _ = setting()
    train(weight, optimizer, clipper, [5.0] * CHECKED_STEPS)
    assert not checks._WAITING
    train(weight, optimizer, clipper, [5.0], between=lambda: weight.grad.mul_(3))
    assert not checks._WAITING


def test_a_monitor_is_told_too():
    weight, optimizer, _, scaler = setting(scale=1024.0)
    with pytest.warns(UserWarning, match="divided by 1024"):
        train(weight, optimizer, Clipper([weight], NoClip()), [0.3], scaler=scaler)


def test_a_dropped_clipper_is_not_kept_alive_and_looks_no_more():
    weight, optimizer, clipper, _ = setting()
    weight.grad = torch.tensor([5.0])
    clipper.step()
    kept = weakref.ref(clipper)
    del clipper
    gc.collect()
    assert kept() is None
    weight.grad.mul_(3)
    optimizer.step()
    Clipper([weight], Fixed(1.0))  # hooks that were left behind do nothing


@pytest.mark.parametrize("returned", [lambda norm: norm, lambda norm: norm.item()])
def test_a_function_that_does_not_clip_is_told(returned):
    weight, _, clipper, _ = setting()
    for norm in (5.0, 0.5, 7.0):
        weight.grad = torch.tensor([norm])
        assert clipper.step(clip_fn=lambda max_norm: nn.utils.clip_grad_norm_([weight], max_norm)) == norm
    weight, _, clipper, _ = setting()
    weight.grad = torch.tensor([5.0])
    with pytest.warns(UserWarning, match=r"clip_fn was to leave a norm of 1, but the gradients have 5"):
        clipper.step(clip_fn=lambda max_norm: returned(weight.grad.norm()))


def test_all_clippers_share_one_hook_and_dropped_ones_are_forgotten():
    Clipper([one_weight()])
    hooks = list(_global_optimizer_pre_hooks)
    for _ in range(4):
        weight, optimizer, clipper, _ = setting()
        weight.grad = torch.tensor([5.0])
        clipper.step()
        del clipper
        gc.collect()
    assert list(_global_optimizer_pre_hooks) == hooks
    assert len(checks._WAITING) == 1
    optimizer.step()
    assert not checks._WAITING
    attach(optimizer, Fixed(1.0))
    weight.grad = torch.tensor([5.0])
    optimizer.step()
    assert not checks._WAITING, "an attached clipper needs no look"


def test_a_hook_of_all_optimizers_may_call_step():
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    clipper = Clipper([weight], Fixed(1.0))
    handle = register_optimizer_step_pre_hook(lambda *_: clipper.step() and None)
    try:
        for _ in range(CHECKED_STEPS + 2):
            weight.grad = torch.tensor([5.0])
            optimizer.step()
    finally:
        handle.remove()
    assert clipper.last.step == CHECKED_STEPS + 1
    assert weight.grad.item() == pytest.approx(1.0)


def test_threads_train_beside_each_other():
    def fresh_clippers(_):
        for _ in range(30):
            weight, optimizer, clipper, _ = setting()
            train(weight, optimizer, clipper, [5.0] * (CHECKED_STEPS + 1))
        return clipper.last.step

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(fresh_clippers, range(4))) == [CHECKED_STEPS] * 4
    finally:
        sys.setswitchinterval(interval)


def fresh_checks():
    return Checks("norm", 2.0, WarnOnce())


def is_contested(one, gradients):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        one.before(gradients, 1.0)
    return any("another clipper" in str(warning.message) for warning in told)


def test_a_clipper_that_comes_after_another_is_contested():
    shared, first, second = torch.ones(2), fresh_checks(), fresh_checks()
    for _ in range(CHECKED_STEPS + 2):
        assert not is_contested(first, [torch.ones(1), shared])
        first.mark([torch.ones(1), shared])
    assert not is_contested(second, [torch.ones(2)])  # equal, but another
    assert is_contested(second, [shared])
    shared.zero_()
    assert not is_contested(fresh_checks(), [shared]), "whoever has written to it since"


def test_marks_keep_no_gradient_alive():
    fresh_checks().mark([torch.ones(2), torch.ones(3)])
    fresh_checks().mark([])  # drops those that are gone
    assert all(not memory.expired() for memory, _, _ in checks._CLIPPED.values())


@pytest.mark.parametrize("make", [lambda: torch.ones(3), lambda: torch.eye(3).to_sparse().coalesce()])
def test_a_mark_knows_its_gradient_until_somebody_writes_to_it(make):
    gradient = make()
    mark = Mark([gradient], gradient.sum(), None)
    assert mark.is_on(gradient)
    assert not mark.is_on(make())
    gradient.mul_(2)
    assert not mark.is_on(gradient)


def test_a_mark_is_not_taken_in_by_memory_that_is_used_again():
    for _ in range(50):
        gradient = torch.ones(64)
        mark = Mark([gradient], gradient.sum(), None)
        del gradient
        assert not mark.is_on(torch.ones(64))


@pytest.mark.parametrize("swap", [False, True])
def test_a_model_can_be_converted_after_a_clipped_step(swap):
    net = nn.Linear(2, 2)
    clipper = Clipper(net, Fixed(0.1))
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for _ in range(CHECKED_STEPS + 2):
            net(torch.ones(1, 2)).sum().backward()
            clipper.step()
            net.to(torch.bfloat16)
            net.double()
            net.float()
            net.zero_grad()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert clipper.clip_rate == 1.0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_optimizer_that_writes_to_gradients_in_its_step_is_not_blamed(order):
    class WritesToGradients(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad.add_(100 * torch.ones_like(parameter))
            return super().step(closure)

    weights = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    optimizers = [WritesToGradients(weights[:1], lr=0.1), torch.optim.SGD(weights[1:], lr=0.1)]
    clipper = Clipper(weights, Fixed(1.0))
    for _ in range(CHECKED_STEPS):
        for weight in weights:
            weight.grad = torch.tensor([5.0])
        clipper.step()
        for place in order:
            optimizers[place].step()
    assert clipper.clip_rate == 1.0


def test_the_second_of_two_optimizers_is_looked_at_too():
    weights = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in weights]
    clipper = Clipper(weights, Fixed(1.0))
    for weight in weights:
        weight.grad = torch.tensor([5.0])
    clipper.step()
    optimizers[0].step()
    weights[1].grad.mul_(10)
    with pytest.warns(UserWarning, match=r"norm of 7.071 in optimizer.step\(\), after they were clipped at 1"):
        optimizers[1].step()


def loop(count, between=lambda net: None, *, clip_at=lambda step: True, order="before", set_to_none=True, **options):
    """Train by hand; returns the clipper."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    clipper = Clipper(net, Fixed(0.1), **options)
    for step in range(count):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        (10 * net(inputs).square().mean()).backward()
        between(net)
        if order == "before":
            clipper.step(loss=1.0)
        if clip_at(step):
            optimizer.step()
            if order == "after":
                clipper.step(loss=1.0)
            optimizer.zero_grad(set_to_none)
    return clipper


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loop_that_is_right_is_told_nothing(set_to_none):
    assert loop(60, set_to_none=set_to_none).last.step == 59


def test_a_step_for_every_micro_batch_is_told():
    with pytest.warns(UserWarning, match=r"step\(\) was called 3 times before this optimizer.step\(\)") as told:
        loop(12, clip_at=lambda step: step % 4 == 3)
    assert len(told) == 1  # that the gradients have grown since is the same mistake


def test_a_step_after_the_optimizers_is_told():
    with pytest.warns(UserWarning, match="optimizer.step\\(\\) has other gradients than those that were clipped"):
        loop(4, order="after")


@pytest.mark.parametrize("largest", [0.1, 0.3])
def test_elements_that_were_limited_before_are_told(largest):
    with pytest.warns(UserWarning, match=rf"or more, are {largest}: does something limit elements"):
        loop(3, lambda net: nn.utils.clip_grad_value_(net.parameters(), largest))


@pytest.mark.parametrize(
    "clip",
    [
        nn.utils.clip_grad_norm_,
        autoclip.clip_grad_norm_,
        lambda parameters, most: nn.utils.clip_grad_norm_(parameters, most, inf),
    ],
    ids=["torch", "drop-in", "largest element"],
)
def test_a_clip_of_somebody_elses_is_told(clip):
    order = 2.0 if "lambda" not in getattr(clip, "__name__", "") else inf
    with pytest.warns(UserWarning, match=r"\d+ of 20 gradient norms are 0.05, the largest: does something else clip"):
        loop(20, lambda net: clip(net.parameters(), 0.05), norm_type=order)


def test_a_clip_beside_an_attached_clipper_is_told():
    torch.manual_seed(0)
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    attach(optimizer, Fixed(10.0))

    def train():
        for step in range(20):
            optimizer.zero_grad()
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            (100 * net(inputs) + inputs.sum()).square().mean().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()

    with pytest.warns(UserWarning, match=r"20 of 20 gradient norms are 0.5, the largest"):
        train()


def test_losses_that_come_a_step_late_are_told():
    weight, optimizer, _, _ = setting()
    clipper = attach(optimizer)

    def step():
        weight.grad = torch.tensor([1.0])
        optimizer.step()
        clipper.report_loss(1.0)

    with pytest.warns(UserWarning, match=r"is report_loss\(\) called after the step"):
        [step() for _ in range(3)]


def test_gradients_of_samples_are_told_of():
    weight = one_weight()
    weight.grad, weight.grad_sample = torch.tensor([5.0]), torch.tensor([[5.0]])
    with pytest.warns(UserWarning, match=r"use autoclip.attach\(optimizer\)"):
        Clipper([weight], Fixed(1.0)).step()


def test_a_forgotten_unscale_is_named_where_the_first_step_overflows():
    weight = one_weight()
    weight.grad = torch.tensor([inf])
    with pytest.warns(UserWarning, match=r"with a GradScaler call scaler.unscale_\(optimizer\) before step\(\)"):
        Clipper([weight], Fixed(1.0)).step()


def test_skipping_scaled_gradients_is_refused_as_a_scaler_could_not_go_on():
    weight = one_weight()
    weight.grad = torch.tensor([5.0])
    with pytest.raises(ValueError, match=r"call scaler.unscale_\(optimizer\) before step\(\)"):
        Clipper([weight], Fixed(1.0), response="skip").step(loss_scale=2.0)
    assert weight.grad.item() == 5.0


def test_clippers_over_parts_of_one_buffer_do_not_meet():
    weights, buffer = [nn.Parameter(torch.zeros(2)) for _ in range(2)], torch.zeros(4)
    clippers = [Clipper([weight], Fixed(1.0)) for weight in weights]
    for step in range(CHECKED_STEPS):
        buffer.copy_(torch.tensor([3.0, 4.0, 5.0, 12.0]) + step)
        for place, weight in enumerate(weights):
            weight.grad = buffer[2 * place : 2 * place + 2]
        for clipper in clippers:
            clipper.step()
    assert [clipper.clip_rate for clipper in clippers] == [1.0, 1.0]
    assert not Mark([weights[0].grad], buffer.sum(), None).is_on(weights[1].grad)
