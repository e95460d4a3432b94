"""What may go wrong on one rank only, how many collectives a step takes, and accumulation."""

import warnings
from math import inf, nan

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import autoclip
from autoclip import Fixed, LossAwareQuantile, RunningQuantile
from tests.distributed import layouts
from tests.distributed.network import Layout, alone, batch, weights, whole
from tests.distributed.worker import run
from tests.small_network import Records

MICRO_BATCHES = 2
BAD_STEP = 5


def work(rank, ranks):
    sharded = {"fsdp2": layouts.fsdp2, "tensor parallel": layouts.tensor_parallel}
    data_parallel = {"ddp": layouts.ddp, "fsdp2": layouts.fsdp2}
    if ranks == 4:
        sharded |= {"hsdp": layouts.hsdp, "fsdp2 x tensor parallel": layouts.two_dimensional}
        data_parallel |= {"fsdp2 x tensor parallel": layouts.two_dimensional}
    return {
        "nan": {name: meet_nan(make(), rank) for name, make in data_parallel.items()},
        "raised": {name: meet_nan_and_raise(make(), rank) for name, make in data_parallel.items()},
        "late": {name: without_waiting(make, rank) for name, make in {**data_parallel, **sharded}.items()},
        "collectives": count_collectives(ranks),
        "accumulated": {name: accumulate(data_parallel[name]()) for name in ("ddp", "fsdp2")},
        "repeated": {name: step_twice(make()) for name, make in sharded.items()},
        "overflow": {name: overflow(make()) for name, make in sharded.items()},
        "float64": {"fsdp2": overflow(few_rows(torch.float64))},
        "one row": {str(order): overflow(few_rows(torch.float32), order) for order in (1.0, 2.0, 3.0, inf)},
        "converted": {name: convert(make()) for name, make in sharded.items()},
        "agc": {name: overflow(make(), mode="agc", value=1e30) for name, make in sharded.items()},
    }


def convert(layout):
    """Clip, and convert the model to another dtype and back, with its gradients; the number of clipped steps."""
    clipper = autoclip.Clipper(layout.source, Fixed(1e-3))
    for step in range(5):
        backward(layout, step)
        clipper.step()
        for dtype in (torch.float64, torch.bfloat16, torch.float32):
            layout.model.to(dtype)
        layout.model.zero_grad()
    return clipper.state_dict()["clipped_steps"]


def few_rows(dtype):
    """One parameter of one row, of which all ranks but one hold nothing."""
    layer = nn.Linear(5, 1, bias=False).to(dtype)
    fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return Layout(layer, layer)


def flat_weights(layout):
    return torch.cat([whole(weight).flatten() for weight in weights(layout).values()]).tolist()


def backward(layout, step, bad=False):
    x, y = batch(step)
    x, y = x[layout.rows].clone(), y[layout.rows]
    if bad:
        x[0, 0] = nan
    loss = F.mse_loss(layout.model(x), y)
    loss.backward()
    return loss


def without_waiting(make, rank):
    """Train once with a host wait and once without; state, records and weights of both.

    With a NaN on the last rank, where a fused optimizer can leave out the step: torch's take no DTensors beside others.
    """
    told = []
    for wait in (True, False):
        layout, records = make(), Records()
        parameters = list(layout.model.parameters())
        fused = len({type(parameter) for parameter in parameters}) == 1
        optimizer = torch.optim.AdamW(parameters, lr=0.01, fused=fused)
        on_nonfinite = "skip" if fused else "propagate"
        clipper = autoclip.attach(
            optimizer, LossAwareQuantile(), sinks=[records], host_wait=wait, on_nonfinite=on_nonfinite
        )
        for step in range(12):
            optimizer.zero_grad()
            bad = fused and step == BAD_STEP and rank == dist.get_world_size() - 1
            clipper.report_loss(backward(layout, step, bad))
            optimizer.step()
            assert clipper.is_settled == (wait or step < 3)
        told.append([clipper.state_dict(), [one.as_json() for one in records], flat_weights(layout)])
    return told


def meet_nan(layout, rank):
    """Train with a NaN in one batch of the last rank only."""
    optimizer = layout.optimizer(layout.model.parameters())
    clipper = autoclip.attach(optimizer, RunningQuantile(warmup_steps=4))
    told = {"skipped": [], "finite": [], "thresholds": []}
    for step in range(10):
        before = flat_weights(layout)
        optimizer.zero_grad()
        bad = step == BAD_STEP and rank == dist.get_world_size() - 1
        clipper.report_loss(backward(layout, step, bad))
        optimizer.step()
        told["skipped"].append(clipper.last.skipped)
        told["finite"].append(clipper.last.finite)
        told["thresholds"].append(clipper.threshold)
        if step == BAD_STEP:
            told["unchanged"] = flat_weights(layout) == before
    return told | {"weights": flat_weights(layout)}


def meet_nan_and_raise(layout, rank):
    clipper = autoclip.Clipper(layout.source, on_nonfinite="raise")
    backward(layout, 0, bad=rank == 0)
    try:
        clipper.step()
    except RuntimeError as error:
        return str(error)
    return None


def count_collectives(ranks):
    """Collectives of one step, by layout and setting."""
    made = {
        "ddp": collectives(layouts.ddp()),
        "ddp, loss": collectives(layouts.ddp(), with_loss=True),
        "ddp, loss of this rank": collectives(layouts.ddp(), with_loss=True, process_group=None),
        "fsdp2": collectives(layouts.fsdp2()),
        "fsdp2, loss": collectives(layouts.fsdp2(), with_loss=True),
        "fsdp2, 30 layers": collectives(deep()),
        "fsdp2, by parameter": collectives(layouts.fsdp2(), scope="parameter"),
        "fsdp2, value": collectives(layouts.fsdp2(), mode="value"),
        "tensor parallel": collectives(layouts.tensor_parallel()),
    }
    if ranks == 4:
        made["hsdp"] = collectives(layouts.hsdp())
        made["fsdp2 x tensor parallel"] = collectives(layouts.two_dimensional())
    return made


def deep():
    net = nn.Sequential(nn.Linear(6, 3), *(nn.Linear(3, 3) for _ in range(29)))
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return Layout(net, net, layouts.own_rows())


def collectives(layout, *, with_loss=False, **options):
    """Of `Clipper.step` and of the `optimizer.step` that an attached clipper is part of."""
    optimizer = layout.optimizer(layout.source.parameters())
    attached = autoclip.attach(optimizer, Fixed(1e-3), **options)
    loss = backward(layout, 0)
    with CommDebugMode() as within_optimizer:
        if with_loss:
            attached.report_loss(loss)
        optimizer.step()
    attached.detach()
    clipper = autoclip.Clipper(layout.source, Fixed(1e-3), **options)
    optimizer.zero_grad()
    loss = backward(layout, 0)
    with CommDebugMode() as by_hand:
        clipper.step(loss=loss if with_loss else None)
    assert attached.last.clipped
    assert clipper.last.clipped
    return [by_hand.get_total_counts(), within_optimizer.get_total_counts()]


def accumulate(layout, steps=10):
    """Two micro-batches for each step, gradients averaged over the ranks with the last one only."""
    optimizer = layout.optimizer(layout.model.parameters())
    clipper = autoclip.attach(optimizer, LossAwareQuantile())
    told = []
    for step in range(steps):
        x, y = (values[layout.rows].chunk(MICRO_BATCHES) for values in batch(step))
        optimizer.zero_grad()
        for position in range(MICRO_BATCHES):
            postpone(layout.model, position < MICRO_BATCHES - 1)
            loss = F.mse_loss(layout.model(x[position]), y[position])
            clipper.report_loss(loss)
            (loss / MICRO_BATCHES).backward()
        optimizer.step()
        told.append([clipper.last.loss, clipper.last.total_norm, clipper.last.threshold])
    return told


def postpone(model, later):
    """Whether gradients are kept by each rank for now; what DDP's `no_sync()` and FSDP2's method set."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not later)
    elif isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = not later


def step_twice(layout):
    """Norms that two calls in one step return, and the number of steps that were counted."""
    clipper = autoclip.Clipper(layout.source, RunningQuantile())
    backward(layout, 0)
    norms = [clipper.step(), clipper.step()]
    return [*map(float, norms), clipper.state_dict()["steps"]]


def overflow(layout, order=2.0, mode="norm", value=1e30):
    """Clip to 1 gradients that are all this large."""
    clipper = autoclip.Clipper(layout.source, Fixed(1.0), norm_type=order, mode=mode)
    for parameter in layout.source.parameters():
        parameter.grad = torch.full_like(parameter, value)
    norm = clipper.step()
    left = torch.cat([whole(parameter.grad).flatten() for parameter in layout.source.parameters()])
    numbers = {"norm": float(norm), "left": float(torch.linalg.vector_norm(left.double(), order))}
    return numbers | {"elements": left.numel(), "finite": clipper.last.finite, "plain": type(norm) is torch.Tensor}


def accumulate_alone():
    return accumulate(alone())


def agc_alone():
    return overflow(alone(), mode="agc")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # what is said once of a non-finite norm or a repeated step is not looked at here
    run(work)
