"""Gradients that are not as the clipper left them are noticed in the first steps."""

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks, register_optimizer_step_pre_hook

from autoclip import Clipper, Fixed, NoClip, attach, watch
from autoclip.watch import WATCHED_STEPS
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


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [2.0, 1024.0, 65536.0])
@pytest.mark.parametrize("norm", [0.3, 3.0])
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
    weight, optimizer, clipper, _ = setting()
    train(weight, optimizer, clipper, [5.0] * WATCHED_STEPS)
    assert not watch._WAITING
    train(weight, optimizer, clipper, [5.0], between=lambda: weight.grad.mul_(3))
    assert not watch._WAITING


def test_a_monitor_is_told_too():
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(1))
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
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0))
    weight.grad = torch.tensor([5.0])
    with pytest.warns(UserWarning, match=r"clip_fn was to leave a norm of 1, but the gradients have 5"):
        clipper.step(clip_fn=lambda max_norm: returned(weight.grad.norm()))


def test_a_function_that_clips_is_right():
    weight = one_weight()
    clipper = Clipper([weight], Fixed(1.0))
    for norm in (5.0, 0.5, 7.0):
        weight.grad = torch.tensor([norm])
        assert clipper.step(clip_fn=lambda max_norm: nn.utils.clip_grad_norm_([weight], max_norm)) == norm


def test_an_attached_clipper_needs_no_look():
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    attach(optimizer, Fixed(1.0))
    weight.grad = torch.tensor([5.0])
    optimizer.step()
    assert not watch._WAITING


def test_all_clippers_share_one_hook_and_dropped_ones_are_forgotten():
    Clipper([one_weight()])
    hooks = list(_global_optimizer_pre_hooks)
    for _ in range(4):
        weight = one_weight()
        weight.grad = torch.tensor([5.0])
        Clipper([weight], Fixed(1.0)).step()
        gc.collect()
    assert list(_global_optimizer_pre_hooks) == hooks
    assert len(watch._WAITING) == 1
    torch.optim.SGD([weight], lr=0.1).step()
    assert not watch._WAITING


def test_a_hook_of_all_optimizers_may_call_step():
    weight = one_weight()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    clipper = Clipper([weight], Fixed(1.0))
    handle = register_optimizer_step_pre_hook(lambda *_: clipper.step() and None)
    try:
        for _ in range(WATCHED_STEPS + 2):
            weight.grad = torch.tensor([5.0])
            optimizer.step()
    finally:
        handle.remove()
    assert clipper.last.step == WATCHED_STEPS + 1
    assert weight.grad.item() == pytest.approx(1.0)


def test_threads_train_beside_each_other():
    def fresh_clippers(_):
        for _ in range(60):
            weight, optimizer, clipper, _ = setting()
            train(weight, optimizer, clipper, [5.0] * (WATCHED_STEPS + 1))
        return clipper.last.step

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(fresh_clippers, range(4))) == [WATCHED_STEPS] * 4
    finally:
        sys.setswitchinterval(interval)
