"""The order in which a forward pass uses the parameters."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from autoclip.flow.layers import completed


class UseOrder(TorchFunctionMode):
    """A context that notes the order in which parameters are first given to an operation, whatever module holds them.

    An operation is a torch call that returns a tensor; reading a shape or a device does not count. Values do not
    change, and each call costs some microseconds more.

    Args:
        parameters: name -> parameter.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._all = list(parameters)
        self._used: dict[str, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and note its parameters."""
        returned = func(*args, **(kwargs or {}))
        if len(self._used) < len(self._all) and any(isinstance(leaf, Tensor) for leaf in tree_leaves(returned)):
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and id(leaf) in self._names:
                    self._used.setdefault(self._names[id(leaf)])
        return returned

    @property
    def names(self) -> list[str]:
        """All names in the order of use. An unused parameter follows the one before it in the given order."""
        return completed(self._used, self._all)


def forward_order(model: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Any] | None = None) -> list[str]:
    """Names of a model's parameters in the order in which one forward pass uses them.

    The order of `named_parameters()`, that of registration, is often another: a head that is defined first, a token
    that is added last. Parameters that the pass does not use follow the one registered before them. The pass leaves no
    trace: it makes no gradients, and buffers (such as running means) and torch's random generators are put back.

    Args:
        model: as it is trained, before FSDP wraps it.
        batch: what the model is called with.
        forward: called as `forward(model, batch)` if `model(batch)` would be wrong, such as a task's `loss`.

    >>> class Tower(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.head = nn.Linear(2, 1)
    ...         self.body = nn.Linear(3, 2, bias=False)
    ...
    ...     def forward(self, x):
    ...         return self.head(self.body(x))
    >>> forward_order(Tower(), torch.zeros(1, 3))
    ['body.weight', 'head.weight', 'head.bias']
    """
    order = UseOrder(dict(model.named_parameters()))
    with torch.no_grad(), _put_back(model), order:
        if forward is None:
            model(batch)
        else:
            forward(model, batch)
    return order.names


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """Leave buffers and random generators as they were before the block."""
    holders = [(module, dict(module._buffers)) for module in model.modules()]  # a pass may exchange buffers
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {parameter.device.index or 0 for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices)):
        try:
            yield
        finally:
            for module, held in holders:
                module._buffers.clear()
                module._buffers.update(held)
            for buffer, before in buffers:
                if not torch.equal(buffer, before):  # what is expanded cannot be written to, here or in the pass
                    buffer.copy_(before)
