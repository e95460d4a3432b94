"""On a CUDA device: no host wait, the thresholds and weights of steps that wait, and replayed CUDA graphs."""

from math import inf, nan

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import autoclip
from autoclip import Clipper, Fixed, RunningQuantile
from tests.small_network import Records, batch, equal, network

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.filterwarnings("ignore:non-finite gradient norm"),
]
OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
}
SCOPES = ["global", "group", "parameter"]
STEPS = 30


@pytest.fixture
def no_waits():
    """Anything that makes the host wait for the device is an error from the moment that the fixture is called."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def batches():
    return [(x.cuda(), y.cuda()) for x, y in map(batch, range(STEPS))]


def quantile():
    return RunningQuantile(warmup_steps=5)


def groups_for(scope):
    return {"weights": "weight", "biases": "bias"} if scope == "group" else None


def train(net, optimizer, clipper, data, bad=(), scaler=None):
    for step, (x, y) in data:
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if step in bad:
            net[0].weight.grad.mul_(bad[step])
        clipper.report_loss(loss)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()


def run(kind="adamw", scope="global", bad=(), **options):
    net, records = network().cuda(), Records()
    optimizer = OPTIMIZERS[kind](net.named_parameters())
    clipper = autoclip.attach(optimizer, quantile(), scope=scope, groups=groups_for(scope), sinks=[records], **options)
    train(net, optimizer, clipper, enumerate(batches()), bad)
    state = clipper.state_dict()
    return [[p.detach().cpu() for p in net.parameters()], state, [one.as_json() for one in records]]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_that_do_not_wait_are_those_that_do(kind, scope):
    bad = {4: nan, 9: inf, 17: nan}
    waiting, late = run(kind, scope, bad, host_wait=True), run(kind, scope, bad)
    assert late[1] == waiting[1]
    assert late[2] == waiting[2]
    assert equal(late[0], waiting[0])


@pytest.mark.parametrize("scope", SCOPES)
def test_an_attached_clipper_never_waits(no_waits, scope):
    net = network().cuda()
    optimizer = OPTIMIZERS["adamw"](net.named_parameters())
    clipper = autoclip.attach(optimizer, quantile(), scope=scope, groups=groups_for(scope))
    data = list(enumerate(batches()))
    train(net, optimizer, clipper, data[:3])
    torch.cuda.synchronize()
    no_waits()
    for one in data[3:]:
        train(net, optimizer, clipper, [one], bad={7: nan})
        assert not clipper.is_settled  # no event was waited for either, which the mode does not see
    torch.cuda.set_sync_debug_mode("default")
    assert clipper.state_dict()["steps"] == STEPS
    assert clipper.skipped_steps == 1


def test_a_clipper_in_a_loop_of_ones_own_never_waits(no_waits):
    net = network().cuda()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    clipper = Clipper(net, quantile(), on_nonfinite="propagate")
    for step, (x, y) in enumerate(batches()):
        if step == 3:
            no_waits()
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        loss.backward()
        clipper.step(loss=loss)
        optimizer.step()
        assert clipper.is_settled == (step < 3)
    torch.cuda.set_sync_debug_mode("default")
    assert clipper.state_dict()["steps"] == STEPS


@pytest.mark.parametrize("wait", [True, "auto"])
def test_under_a_grad_scaler_overflows_are_no_steps(wait):
    net = network().cuda()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14)
    clipper = autoclip.attach(optimizer, quantile(), host_wait=wait)
    train(net, optimizer, clipper, enumerate(batches()), bad={8: inf}, scaler=scaler)
    assert clipper.state_dict()["steps"] == STEPS - 1
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_are_left_within_the_threshold(dtype):
    weights = [nn.Parameter(torch.zeros(300, 7, device="cuda", dtype=dtype)) for _ in range(5)]
    clipper = Clipper(weights, Fixed(1.0), on_nonfinite="propagate")
    for step in range(8):
        for weight in weights:
            weight.grad = torch.full_like(weight, 0.001 if step == 6 else 0.5)
        before = [weight.grad.clone() for weight in weights]
        clipper.step()
        norm = torch.linalg.vector_norm(torch.stack([w.grad.float().norm() for w in weights])).item()
        assert norm <= 1.01
        if step == 6:
            assert equal(before, [weight.grad for weight in weights])


def test_a_fixed_threshold_is_torchs_bit_for_bit():
    random = torch.Generator("cuda").manual_seed(0)
    weights = [nn.Parameter(torch.zeros(size, device="cuda")) for size in (3, 500, 70000)]
    others = [nn.Parameter(torch.zeros_like(weight)) for weight in weights]
    clipper = Clipper(weights, Fixed(1.5), on_nonfinite="propagate")
    for _ in range(8):
        for weight, other in zip(weights, others, strict=True):
            weight.grad = torch.randn(weight.shape, generator=random, device="cuda")
            other.grad = weight.grad.clone()
        norm = clipper.step()
        assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(others, 1.5))
        assert equal([w.grad for w in weights], [w.grad for w in others])


def test_a_replayed_graph_is_clipped_at_thresholds_that_change():
    def made():
        net, records = network().cuda(), Records()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True, capturable=True)
        clipper = autoclip.attach(optimizer, quantile(), sinks=[records])
        return net, optimizer, clipper, records

    data = batches()
    net, optimizer, eager, expected = made()
    train(net, optimizer, eager, enumerate(data))
    weights = [p.detach().cpu() for p in net.parameters()]
    state = eager.state_dict()

    net, optimizer, clipper, records = made()
    x, y = (one.clone() for one in data[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in range(3):
            x.copy_(data[step][0])
            y.copy_(data[step][1])
            train(net, optimizer, clipper, [(step, (x, y))])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(net, optimizer, clipper, [(3, (x, y))])
    for inputs, targets in data[3:]:
        x.copy_(inputs)
        y.copy_(targets)
        clipper.replay(graph)
    assert clipper.state_dict() == state
    assert [one.as_json() for one in records] == [one.as_json() for one in expected]
    assert equal(weights, [p.detach().cpu() for p in net.parameters()])
    assert len({record.threshold for record in records}) > 10


def test_the_example_of_a_captured_step_runs(capsys):
    from experiments.cuda_graph import train as train_captured

    clipper = train_captured(50, torch.device("cuda"))
    assert clipper.state_dict()["steps"] == 53
    assert "steps/s" in capsys.readouterr().out
