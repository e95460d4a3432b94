"""Gradients that several ranks hold together: DTensors, as FSDP2 and tensor parallelism make them."""

from collections.abc import Collection, Sequence
from math import inf
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from autoclip.gradients.host import on_device


def is_distributed(tensor: Tensor) -> bool:
    """Return True if this is a DTensor, of which every rank of a device mesh holds a part."""
    return type(tensor) is not Tensor and hasattr(tensor, "device_mesh") and hasattr(tensor, "to_local")


def to_local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, in the same memory; a plain tensor itself."""
    if not is_distributed(tensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return part


def reduce_partial(gradient: Tensor) -> Tensor:
    """The gradient with its pending sums over ranks carried out: before that, partial DTensors have no norm."""
    if not is_distributed(gradient):
        return gradient
    placements: Sequence[Any] = gradient.placements  # type: ignore[attr-defined]
    if not any(placement.is_partial() for placement in placements):
        return gradient
    from torch.distributed.tensor import Replicate

    whole = [Replicate() if placement.is_partial() else placement for placement in placements]
    result: Tensor = gradient.redistribute(placements=whole)  # type: ignore[attr-defined]
    return result


def to_scalar(tensor: Tensor) -> Tensor:
    """A tensor of one element as a plain one, 0-d, without a graph; a DTensor gives that of all ranks together."""
    value: Any = tensor.detach().reshape(())
    number: Tensor = value.full_tensor() if is_distributed(value) else value
    return number


def sharded_over(tensor: Any) -> list[tuple[Any, int]]:
    """The groups of ranks over which a tensor is sharded, each with the dimension of the tensor that it divides."""
    if not is_distributed(tensor):
        return []
    return [
        (tensor.device_mesh.get_group(mesh_dimension), placement.dim)
        for mesh_dimension, placement in enumerate(tensor.placements)
        if not placement.is_replicate()  # `is_shard` is false for the strided shards of FSDP2 over TP
    ]


def reduce_norms(gradients: Sequence[Tensor], norms: Tensor, norm_type: float) -> Tensor:
    """Norm of each whole gradient from the norms of this rank's parts: |g| = (sum over the parts of |part|^p)^(1/p).

    One collective for each group of ranks over which any gradient is sharded, whatever their number: one for FSDP2, and
    none for gradients that every rank holds whole (plain ones, replicated DTensors). All ranks get the same numbers.

    Args:
        gradients: n of them, plain ones and DTensors of any meshes.
        norms: shape (n,), of their local parts.
        norm_type: p > 0, or inf.
    """
    split: dict[str, tuple[Any, list[int]]] = {}  # meshes may share a group of ranks
    for position, gradient in enumerate(gradients):
        for group, _ in sharded_over(gradient):
            split.setdefault(group.group_name, (group, []))[1].append(position)
    if not split:
        return norms
    whole = norms.double()
    largest = torch.ones_like(whole)
    if norm_type == inf or norms.dtype is torch.float64:  # powers of float32 norms fit float64
        largest = _reduced(whole.nan_to_num(nan=inf, posinf=inf), split.values(), torch.distributed.ReduceOp.MAX)
        if norm_type == inf:
            return largest.to(norms.dtype)
        limits = torch.finfo(torch.float64)
        largest = largest.clamp(min=limits.tiny, max=limits.max)  # infinite norms stay infinite
    powers = _reduced((whole / largest) ** norm_type, split.values(), torch.distributed.ReduceOp.SUM)
    return (powers ** (1 / norm_type) * largest).to(norms.dtype)


def _reduced(values: Tensor, split: Collection[tuple[Any, list[int]]], operation: Any) -> Tensor:
    values = values.clone()
    for group, positions in split:
        places = on_device(positions, values, torch.int64)
        part = values if len(positions) == len(values) else values.index_select(0, places)
        torch.distributed.all_reduce(part, operation, group=group)
        if part is not values:
            values.index_copy_(0, places, part)
    return values
