"""Functions that autograd and `torch.compile` do not follow, because their work belongs to the host."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """`torch.no_grad` and `torch.compiler.disable` in one, as it is called in every step.

    `torch.compiler.disable` itself would take a second to import the compiler, even if nobody compiles.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.set_grad_enabled(False):
            if "torch._dynamo" in sys.modules:
                if function not in _DISABLED:
                    _DISABLED[function] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
                return cast(R, _DISABLED[function](*args, **kwargs))
            return function(*args, **kwargs)

    # What the compiler looks for before it follows a call.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = None  # type: ignore[attr-defined]
    return call


_DISABLED: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Function -> the same, not followed by the compiler, which warns of `functools.cache` here."""
