"""Parameters with gradients of every kind that a loop may make, and of some that only a mistake makes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor


def weight(gradient: Tensor | None, *, like: Tensor | None = None) -> Tensor:
    """A parameter of zeros with this gradient."""
    shape_of = gradient if gradient is not None else like
    assert shape_of is not None
    zeros = torch.zeros_like(shape_of if shape_of.layout is torch.sparse_csr else shape_of.to_dense())
    parameter = zeros.requires_grad_(zeros.is_floating_point() or zeros.is_complex())
    parameter.grad = gradient
    return parameter


def of(*values: Any, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """One parameter with these elements as its gradient."""
    return [weight(torch.tensor(values, dtype=dtype))]


def sparse(indices: list[int], values: Any, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A parameter with a sparse gradient; an index may be there several times."""
    gradient = torch.sparse_coo_tensor(
        torch.tensor([indices], dtype=torch.int64), torch.tensor(values, dtype=dtype), size, check_invariants=True
    )
    return weight(gradient)


def in_one_memory() -> list[Tensor]:
    gradient = torch.tensor([3.0, 4.0])
    return [weight(gradient), weight(gradient)]


def in_views_of_one_memory() -> list[Tensor]:
    gradient = torch.tensor([3.0, 4.0])
    return [weight(gradient), weight(gradient.view(2, 1))]


def neighbours_in_one_buffer() -> list[Tensor]:
    buffer = torch.tensor([3.0, 4.0, 12.0])
    return [weight(buffer[:2]), weight(buffer[2:])]


def overlapping() -> list[Tensor]:
    buffer = torch.tensor([3.0, 4.0, 12.0])
    return [weight(buffer[:2]), weight(buffer[1:])]


def frozen() -> list[Tensor]:
    first, second = of(3.0, 4.0)[0], weight(None, like=torch.zeros(2))
    return [first, second.requires_grad_(False)]


def frozen_later() -> list[Tensor]:
    return [of(3.0, 4.0)[0].requires_grad_(False)]  # its gradient stays until it is set to None, as in torch


def with_a_graph() -> list[Tensor]:
    parameter = torch.tensor([1.0, 2.0], requires_grad=True)
    (parameter.grad,) = torch.autograd.grad((parameter**2).sum().mul(1.5), [parameter], create_graph=True)
    assert parameter.grad.requires_grad
    return [parameter]


def of_a_result() -> list[Tensor]:
    hidden = torch.zeros(2, requires_grad=True) * 1
    hidden.retain_grad()
    hidden.backward(torch.tensor([3.0, 4.0]))
    return [hidden]


def conjugated() -> list[Tensor]:
    parameter = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    (parameter.conj() * torch.tensor([3.0 + 0j, 4j])).real.sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.is_conj()
    return [parameter]


def negated() -> list[Tensor]:
    gradient = torch.tensor([3.0 - 3j, 4.0 + 4j]).conj().imag
    assert gradient.is_neg()
    return [weight(gradient), *of(12.0)]


class Named(Tensor):
    """A subclass as users write them."""


def wrapped(*values: float) -> Tensor:
    """A parameter whose gradient is of a class that holds other tensors and has no memory of its own."""
    parameter = nn.Parameter(TwoTensor(torch.zeros(len(values)), torch.zeros(len(values))))
    parameter.grad = TwoTensor(torch.tensor(values), torch.tensor(values))
    return parameter


def a_hundred_thousand() -> list[Tensor]:
    gradients = torch.ones(100_000).unbind()
    parameters = torch.zeros(100_000).unbind()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return list(parameters)


def whole_numbers(dtype: torch.dtype) -> list[Tensor]:
    return [weight(torch.ones(2, dtype=dtype))]


def eight_bits(dtype: torch.dtype) -> list[Tensor]:
    parameter = torch.zeros(2).to(dtype).requires_grad_()
    parameter.grad = torch.tensor([3.0, 4.0]).to(dtype)
    return [parameter]


def jagged() -> list[Tensor]:
    values = [torch.tensor([3.0]), torch.tensor([4.0, 0.0])]
    parameter = nn.Parameter(torch.nested.nested_tensor(values, layout=torch.jagged))
    parameter.grad = torch.ones_like(parameter)
    return [parameter]


def on_meta() -> Tensor:
    return weight(torch.zeros(2, device="meta"))


def made_in_inference() -> list[Tensor]:
    with torch.inference_mode():
        gradient = torch.tensor([3.0, 4.0])
    return [weight(gradient)]


class Normless(TwoTensor):
    """A class that knows no norm."""

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if "norm" in str(function):
            return NotImplemented
        return super().__torch_dispatch__(function, types, args, kwargs)


def without_a_norm() -> list[Tensor]:
    parameter = nn.Parameter(Normless(torch.zeros(1), torch.zeros(1)))
    parameter.grad = Normless(torch.ones(1), torch.ones(1))
    return [parameter]
