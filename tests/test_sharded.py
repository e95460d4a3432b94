"""Sharded gradients in a world of one rank, and plain ones where there is no world; more ranks: tests/distributed."""

from math import inf

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

from autoclip import Clipper, Fixed
from autoclip.gradients import gradients_of, measure
from autoclip.gradients.sharded import is_distributed, reduce_norms, reduce_partial, to_local

WEIGHTS = torch.arange(1.0, 13.0).view(3, 4)
PLACEMENTS = [Shard(0), Shard(1), Replicate()]


@pytest.fixture
def mesh():
    """One rank that is a world."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def square_mesh():
    """The same with two dimensions."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1, 1))
    dist.destroy_process_group()


def distributed(tensor, mesh, *placements):
    return DTensor.from_local(tensor.clone(), mesh, placements)


def test_plain_tensors_pass_through_without_torch_distributed():
    assert not dist.is_initialized()
    gradients = [WEIGHTS, WEIGHTS.double(), nn.Parameter(WEIGHTS), WEIGHTS.to_sparse(), torch.zeros(0)]
    norms = torch.arange(5.0)
    for gradient in gradients:
        assert not is_distributed(gradient)
        assert to_local(gradient) is gradient
        assert reduce_partial(gradient) is gradient
    assert reduce_norms(gradients, norms, 2.0) is norms


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_local_part_is_the_memory_of_the_rank(mesh, placement):
    gradient = distributed(WEIGHTS, mesh, placement)
    assert is_distributed(gradient)
    assert is_distributed(nn.Parameter(gradient))
    part = to_local(gradient)
    assert type(part) is torch.Tensor
    part.mul_(2)
    assert torch.equal(gradient.full_tensor(), 2 * WEIGHTS)


def test_partial_gradients_are_summed_before_anything_is_measured(mesh):
    gradient = distributed(WEIGHTS, mesh, Partial())
    assert reduce_partial(gradient).placements == (Replicate(),)
    whole = distributed(WEIGHTS, mesh, Shard(0))
    assert reduce_partial(whole) is whole
    parameter = nn.Parameter(distributed(WEIGHTS, mesh, Replicate()))
    parameter.grad = gradient
    assert gradients_of({"weight": parameter})["weight"] is parameter.grad
    assert parameter.grad.placements == (Replicate(),)
    assert torch.equal(parameter.grad.full_tensor(), WEIGHTS)


def test_pending_sums_keep_what_else_is_sharded(square_mesh):
    assert reduce_partial(distributed(WEIGHTS, square_mesh, Partial(), Shard(1))).placements == (Replicate(), Shard(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 3.0, inf])
def test_norms_survive_the_way_over_the_ranks(mesh, order, dtype):
    largest = torch.finfo(dtype).max
    norms = torch.tensor([0.0, 1.0, 1e-30, 0.3, largest / 100, inf], dtype=dtype)
    gradients = [distributed(WEIGHTS.to(dtype), mesh, Shard(0)) for _ in norms]
    whole = reduce_norms(gradients, norms, order)
    assert whole.dtype is dtype
    torch.testing.assert_close(whole, norms, rtol=1e-6, atol=0)


def collectives(gradients):
    with CommDebugMode() as made:
        reduce_norms(gradients, torch.ones(len(gradients)), 2.0)
    return made.get_total_counts()


def test_there_is_one_collective_for_each_group_of_ranks(square_mesh):
    assert collectives([WEIGHTS, distributed(WEIGHTS, square_mesh, Replicate(), Replicate())]) == 0
    assert collectives([distributed(WEIGHTS, square_mesh, Replicate(), Shard(0))] * 20) == 1
    # In a world of one rank both dimensions of the mesh have the same group, of which a gradient's norm is summed once.
    assert collectives([distributed(WEIGHTS, square_mesh, Shard(0), Shard(1)), WEIGHTS] * 20) == 1


@pytest.mark.parametrize("mode", ["norm", "value", "agc", "param_rms"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_clipper_leaves_what_it_leaves_of_plain_gradients(mesh, placement, mode):
    plain = nn.Parameter(WEIGHTS.clone())
    sharded = nn.Parameter(distributed(WEIGHTS, mesh, placement))
    plain.grad = 10 * WEIGHTS
    sharded.grad = distributed(10 * WEIGHTS, mesh, placement)
    clippers = [Clipper([parameter], Fixed(0.7), mode=mode) for parameter in (plain, sharded)]
    norms = [clipper.step() for clipper in clippers]
    assert type(norms[1]) is torch.Tensor
    assert float(norms[1]) == pytest.approx(float(norms[0]), rel=1e-6)
    torch.testing.assert_close(sharded.grad.full_tensor(), plain.grad)
    assert clippers[1].last.clipped


def test_empty_parts_have_the_dtype_of_the_others(mesh):
    # Ranks whose dtypes differ would take part in different collectives, and wait for each other.
    for dtype in (torch.float32, torch.float64):
        gradient = distributed(torch.zeros(0, 4, dtype=dtype), mesh, Shard(0))
        assert measure({"a": gradient}).each.dtype == measure({"a": WEIGHTS.to(dtype)}).each.dtype
