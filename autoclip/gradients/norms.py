"""Norms of gradients, in float32 or wider, finite whenever the gradients are."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from sys import float_info

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from autoclip.gradients.refused import values_of, without_numbers
from autoclip.gradients.sharded import reduce_norms, to_local

# Where the p-th power of a float32 norm is below this, powers of its elements may have been lost to underflow: those
# of 1e8 elements together would matter.
SMALLEST_FAST_POWER = 1e-30


@dataclass(slots=True)
class Norms:
    """Norms of one step's gradients; not changed once made.

    Attributes:
        total: 0-d tensor, the norm of all gradients as if they were one vector. float64 if the gradients are, or if
            float32 could not hold it (see `measure`); else float32.
        each: shape (n,), the norm of each gradient, in the order of the names.
        value: the total as a float on the host.
        scale: that the gradients still carry; the norms are those without it.
        alike: the gradients are known to be dense, of torch's own tensors and on one device.
    """

    total: Tensor
    each: Tensor
    value: float
    scale: float = 1.0
    alike: bool = False

    def without(self, scale: float) -> "Norms":
        """The norms without a scale that the gradients still carry."""
        return replace(self, total=self.total / scale, each=self.each / scale, value=self.value / scale, scale=scale)


def measure(gradients: Mapping[str, Tensor], norm_type: float = 2.0, *, look_twice: bool = True) -> Norms:
    """Norm of each gradient and of all together, p-th root of the sum of |g|^p.

    One pass in float32 (float64 for float64 gradients). If its result is non-finite, zero or very small (below 1e-15
    for p = 2), a second pass in float64 tells an overflow or underflow of the powers from a gradient that really is
    infinite or zero. So finite gradients never measure as infinite.

    Args:
        gradients: by parameter name: dense, sparse or complex, of any floating dtype. On several devices the norms meet
            on the first's. A DTensor has the norm of the whole tensor, on every rank (see `reduce_norms`).
        norm_type: p > 0, or inf for the largest absolute value.
        look_twice: make the second pass where it is needed.

    Raises:
        TypeError: a gradient of an integer dtype or of eight bits, of a layout other than dense and sparse COO, on the
            meta device, or of a class that has no norm. The message names its parameter.
    """
    if not gradients:
        return Norms(torch.tensor(0.0), torch.zeros(0), 0.0)
    each, alike = fast_norms(gradients, norm_type)
    total = torch.linalg.vector_norm(each, norm_type)
    if total.is_meta:
        raise without_numbers(gradients)
    value = float(total)  # host read
    if look_twice and not least_fast_norm(norm_type) < value < inf:
        exact_parts = [_exact_norm(values_of(name, gradient), norm_type) for name, gradient in gradients.items()]
        exact = reduce_norms(list(gradients.values()), _of_torch(_stack(exact_parts)), norm_type)
        exact_total = _exact_norm(exact, norm_type)
        exact_value = float(exact_total)  # host read
        if exact_value != 0:
            return Norms(exact_total, exact, exact_value)
    return Norms(total, each, value, alike=alike)


@cache
def least_fast_norm(norm_type: float) -> float:
    """Norm below which float32 may have lost powers of elements to underflow."""
    return 0.0 if norm_type == inf else float(SMALLEST_FAST_POWER ** (1 / norm_type))


def fast_norms(gradients: Mapping[str, Tensor], norm_type: float) -> tuple[Tensor, bool]:
    """Norm of each gradient, shape (n,), in one pass in float32 (float64 for float64 gradients), as in `measure`.

    Also whether the gradients were found to be dense, of torch's own tensors and on one device.
    """
    plain = {*map(type, gradients.values())} == {Tensor}
    parts = list(gradients.values()) if plain else [to_local(gradient) for gradient in gradients.values()]
    norms = None
    if parts[0].dtype != torch.float64:
        with suppress(RuntimeError, NotImplementedError, TypeError):  # sparse, complex, on several devices
            norms = torch.stack(torch._foreach_norm(parts, norm_type, torch.float32))
    alike = plain and norms is not None
    if norms is None:
        norms = _stack([_norm_of(name, gradient, norm_type) for name, gradient in gradients.items()])
    return norms if plain else reduce_norms(list(gradients.values()), _of_torch(norms), norm_type), alike


def _of_torch(norms: Tensor) -> Tensor:
    """Norms, shape (n,), as a tensor of torch itself, whatever class the gradients have."""
    if is_traceable_wrapper_subclass(norms):
        return torch.tensor([float(norm) for norm in norms], dtype=norms.dtype)  # host read: a class without memory
    return norms.as_subclass(Tensor)


def _norm_of(name: str, gradient: Tensor, norm_type: float) -> Tensor:
    values = values_of(name, gradient)
    wide = values.dtype in (torch.float64, torch.complex128)
    if values.numel() == 0:  # in the dtype of the others: ranks without elements take part in the same collectives
        return torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=values.device)
    try:
        norm: Tensor = torch.linalg.vector_norm(values, norm_type, dtype=_dtype(values, wide=wide))
    except (TypeError, NotImplementedError) as error:
        raise TypeError(
            f"the gradient of parameter {name!r} is a {type(gradient).__name__}, which has no norm in torch: leave "
            f"that parameter out"
        ) from error
    return norm


def _exact_norm(values: Tensor, norm_type: float) -> Tensor:
    """Norm in float64 of the values divided by the largest, which neither overflows nor underflows."""
    if values.device.type == "mps":
        values = values.cpu()  # no float64 there
    if values.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=values.device)
    values = values.to(_dtype(values, wide=True))
    largest = values.abs().max()
    if not 0 < float(largest) < inf:  # host read: rare, see `measure`
        return largest
    scaled: Tensor = torch.linalg.vector_norm(values / largest, norm_type)
    return (largest * scaled).clamp(max=float_info.max)


def _dtype(values: Tensor, wide: bool) -> torch.dtype:
    if values.is_complex():
        return torch.complex128 if wide else torch.complex64
    return torch.float64 if wide else torch.float32


def _stack(norms: Sequence[Tensor]) -> Tensor:
    first = norms[0]
    widest = torch.float64 if any(norm.dtype == torch.float64 for norm in norms) else torch.float32
    return torch.stack([norm.to(first.device, widest) for norm in norms])
