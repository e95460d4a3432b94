"""Where gradients come from: a module, parameters, parameter groups or an optimizer."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoclip.gradients.sharded import is_distributed, reduce_partial

Source = (
    nn.Module
    | torch.optim.Optimizer
    | Tensor
    | Iterable[Tensor]
    | Iterable[tuple[str, Tensor]]
    | Mapping[str, Tensor]
    | Iterable[Mapping[str, Any]]
)


COMPILED = "_orig_mod."


def named_parameters(source: Source) -> dict[str, Tensor]:
    """Name -> parameter, each parameter once, in the source's order.

    Names are those of the module or the pairs. An optimizer has its `param_names`, if it was given named parameters.
    Otherwise they are positions: "3", or "group0.3" in parameter groups.

    Raises:
        TypeError: the source holds something that is no parameter.
    """
    if isinstance(source, nn.Module):
        # `torch.compile` puts a prefix of its own before the names; a state loads with and without it.
        return {name.replace(COMPILED, ""): parameter for name, parameter in source.named_parameters()}
    if isinstance(source, torch.optim.Optimizer):
        source = source.param_groups
    if isinstance(source, Tensor):
        source = [source]
    if isinstance(source, Mapping):
        source = source.items()
    if not isinstance(source, Iterable):
        kind = type(source).__name__
        raise TypeError(f"expected a module, parameters, parameter groups or an optimizer, got a {kind}")
    items = list(source)
    if {*map(type, items)} == {nn.Parameter} and len({*map(id, items)}) == len(items):
        return dict(zip(map(str, range(len(items))), items, strict=True))
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, parameter in _pairs(items):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"expected a parameter at {name!r}, got a {type(parameter).__name__}")
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if name in found:
            raise ValueError(f"two different parameters are named {name!r}")
        found[name] = parameter
    return found


def _pairs(source: list[Any]) -> Iterator[tuple[str, Any]]:
    given = Counter(name for item in source if isinstance(item, Mapping) for name in item.get("param_names") or ())
    for position, item in enumerate(source):
        if isinstance(item, Mapping):
            if "params" not in item:
                raise TypeError(f"parameter group {position} has no 'params', only {', '.join(map(str, item))}")
            parameters = [item["params"]] if isinstance(item["params"], Tensor) else list(item["params"])
            names = item.get("param_names") or [f"group{position}.{index}" for index in range(len(parameters))]
            group = item.get("name", f"group{position}")
            names = [f"{group}.{name}" if given[name] > 1 else name for name in names]  # torch lets groups share names
            yield from zip(names, parameters, strict=True)
        elif isinstance(item, tuple) and len(item) == 2:
            yield str(item[0]), item[1]
        else:
            yield str(position), item


def gradients_of(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> gradient, of the parameters that have one. Two gradients in the same memory count once.

    Empty gradients are left out, except those of DTensors, of which another rank may hold elements. Partial DTensors
    are summed over their ranks first; the sum replaces the parameter's gradient.
    """
    gradients = {name: gradient for name, parameter in parameters.items() if (gradient := parameter.grad) is not None}
    if are_apart(gradients.values()):
        return gradients
    for name, gradient in gradients.items():
        if type(gradient) is not Tensor and (whole := reduce_partial(gradient)) is not gradient:
            parameters[name].grad = gradients[name] = whole
    places = [_memory(gradient) for gradient in gradients.values()]
    if len(set(places)) == len(places) and NO_MEMORY not in places:
        return gradients
    once: dict[tuple[int, int], str] = {}
    for (name, gradient), place in zip(gradients.items(), places, strict=True):
        # Expanded gradients repeat elements in memory, and are given memory of their own before they are written to.
        expanded = gradient.layout is torch.strided and 0 in gradient.stride()
        once.setdefault((id(gradient), -1) if expanded else place, name)
    once.pop(NO_MEMORY, None)
    return {name: gradients[name] for name in once.values()}


def are_apart(gradients: Collection[Tensor]) -> bool:
    """Return True if all are dense tensors of torch itself, each in memory of its own, as nearly always."""
    if {*map(type, gradients)} != {Tensor}:
        return False
    try:
        addresses = {*map(Tensor.data_ptr, gradients)}
    except RuntimeError:  # sparse
        return False
    return len(addresses) == len(gradients) and 0 not in addresses


NO_MEMORY = (0, 0)


def _memory(gradient: Tensor) -> tuple[int, int]:
    """Address and number of elements; the object itself if it has no address (sparse, distributed, a wrapper)."""
    if gradient.layout is torch.strided and not is_distributed(gradient):
        place = gradient.data_ptr(), gradient.numel()
        if place[0] != 0 or place == NO_MEMORY:
            return place
    return id(gradient), -1
