"""Gradients that have no norm, or cannot be clipped, and what to do about them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from autoclip.gradients.sharded import to_local


def values_of(name: str, gradient: Tensor) -> Tensor:
    """Its values on this rank, if they have a norm."""
    gradient = to_local(gradient)
    dtype = gradient.dtype
    if gradient.is_meta:
        raise without_numbers({name: gradient})
    if gradient.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(
            f"gradients must be dense or sparse COO tensors, got {gradient.layout} for parameter {name!r}: leave that "
            f"parameter out, or keep it dense"
        )
    if not (dtype.is_floating_point or dtype.is_complex):
        raise TypeError(
            f"gradients must be floating-point or complex, got {dtype} for parameter {name!r}: leave that parameter out"
        )
    if dtype.itemsize < 2:
        raise TypeError(
            f"gradients must have at least 16 bits, got {dtype} for parameter {name!r}: keep them in bfloat16 until "
            f"they are clipped"
        )
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def refuse_complex(gradients: Mapping[str, Tensor]) -> None:
    """Raise where a gradient is complex, which mode "value" cannot clamp, whether or not it would clip this step."""
    for name, gradient in gradients.items():
        if gradient.is_complex():
            raise TypeError(
                f"complex gradients cannot be clipped by value, only by norm, got {gradient.dtype} for parameter "
                f"{name!r}"
            )


def without_numbers(gradients: Mapping[str, Tensor]) -> TypeError:
    """The error for a gradient on the meta device."""
    name = next(name for name, gradient in gradients.items() if gradient.is_meta)
    return TypeError(
        f"the gradient of parameter {name!r} is on the meta device, which holds no numbers: give the model memory "
        f"first (model.to_empty(device=...)), and its parameters values"
    )
