"""The ways of spreading the network over the ranks that there are."""

from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.network import BATCH, SETTINGS, Layout, network


def rows(index, parts):
    """Rows of each batch that belong to one part."""
    return slice(index * BATCH // parts, (index + 1) * BATCH // parts)


def own_rows():
    return rows(dist.get_rank(), dist.get_world_size())


def ddp():
    net = network()
    return Layout(DistributedDataParallel(net), net, own_rows())


def fsdp2():
    net = network()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(net.up, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return Layout(net, net, own_rows())


def hsdp():
    """Two copies, each on two ranks."""
    net = network()
    fully_shard(net, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    return Layout(net, net, own_rows())


def tensor_parallel():
    """`up` and `down` are split, the other parameters are plain tensors; all ranks see the whole batch."""
    net = network()
    split = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(net, init_device_mesh("cpu", (dist.get_world_size(),)), split)
    return Layout(net, net)


def sequence_parallel():
    """The same with the layer norm on a part of the rows, so that its gradients are partial sums."""
    net = network()
    split = {
        "lift": PrepareModuleOutput(
            output_layouts=Replicate(), desired_output_layouts=Shard(0), use_local_output=False
        ),
        "norm": SequenceParallel(sequence_dim=0),
        "up": ColwiseParallel(input_layouts=Shard(0)),
        "down": RowwiseParallel(),
    }
    parallelize_module(net, init_device_mesh("cpu", (dist.get_world_size(),)), split)
    return Layout(net, net)


def two_dimensional():
    """FSDP2 of two ranks over tensor parallelism of two."""
    net = network()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(net, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(net, mesh=mesh["data"])
    return Layout(net, net, rows(mesh["data"].get_local_rank(), 2))


def fsdp1(use_orig_params):
    """Its parameters are pieces that only its own function can measure."""
    cpu = torch.device("cpu")
    model = FullyShardedDataParallel(network(), use_orig_params=use_orig_params, device_id=cpu)
    return Layout(model, model, own_rows(), clip_fn=model.clip_grad_norm_, flat=True)


def zero():
    """DDP with an optimizer of which every rank holds a part."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns that torch.jit.script, which it uses, is old

    layout = ddp()
    layout.optimizer = partial(
        ZeroRedundancyOptimizer, optimizer_class=torch.optim.SGD, lr=0.02, momentum=0.9, parameters_as_bucket_view=True
    )
    return layout


EVERYWHERE = {
    "ddp": ddp,
    "fsdp2": fsdp2,
    "tensor parallel": tensor_parallel,
    "sequence parallel": sequence_parallel,
    "zero": zero,
}
LAYOUTS = {
    2: EVERYWHERE | {"fsdp1": partial(fsdp1, False), "fsdp1, original parameters": partial(fsdp1, True)},
    4: EVERYWHERE | {"hsdp": hsdp, "fsdp2 x tensor parallel": two_dimensional},
}
EVERY_SETTING = {2: ["ddp", "fsdp2", "tensor parallel"], 4: ["fsdp2"]}
FOR_CLIP_FN = ["running quantile", "running quantile, attached", "loss-aware, attached"]
OTHERWISE = ["loss-aware, attached", "by parameter", "by group, loss-aware", "value", "norm inf"]


def settings(layout, ranks):
    """Names of the settings that a layout is tried under; not every one everywhere, for the time that it takes."""
    if layout.startswith("fsdp1"):
        return FOR_CLIP_FN
    return list(SETTINGS) if layout in EVERY_SETTING[ranks] else OTHERWISE
