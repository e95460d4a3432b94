"""Whose gradients make one norm: all together, a group's, or one parameter's."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from autoclip.gradients.source import Source
from autoclip.policies.policy import ALL

REST = "rest"


def kept_source(source: Source) -> Source:
    """The source in a form that can be read more than once: iterators become lists, in parameter groups too."""
    if isinstance(source, Iterator):
        source = list(source)
    if isinstance(source, list | tuple):
        return [_kept_group(item) if isinstance(item, Mapping) else item for item in source]
    return source


def group_by_parameter(
    source: Source, parameters: Mapping[str, Tensor], scope: str, patterns: Mapping[str, str] | None
) -> dict[str, str]:
    """Name of each parameter -> name of its group.

    Args:
        source: what the parameters come from. For scope "group" without patterns an optimizer or parameter groups,
            whose groups are called by their "name", or group0, group1, ...
        parameters: by name.
        scope: "global": one group, "all"; "parameter": a group for each; "group".
        patterns: for scope "group": group's name -> regular expression, searched anywhere in the parameter's name. The
            first that matches counts; parameters that match none are the group "rest".

    Raises:
        ValueError: there are no groups, two have one name, or a pattern matches no parameter.
    """
    if scope == "global":
        return dict.fromkeys(parameters, ALL)
    if scope == "parameter":
        return {name: name for name in parameters}
    if patterns:
        return _by_pattern(parameters, patterns)
    by_identity = {id(parameter): group for group, members in _groups(source) for parameter in members}
    return {name: by_identity[id(parameter)] for name, parameter in parameters.items()}


def _by_pattern(parameters: Iterable[str], patterns: Mapping[str, str]) -> dict[str, str]:
    compiled = {}
    for group, pattern in patterns.items():
        try:
            compiled[group] = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(f"groups: {pattern!r} of {group!r} is no regular expression: {error}") from None
    names = list(parameters)
    found = {name: next((group for group, pattern in compiled.items() if pattern.search(name)), REST) for name in names}
    for group, pattern in patterns.items():
        if group not in found.values():
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(f"groups: {pattern!r} of {group!r} fits no parameter that is left; there are {shown}")
    return found


def _kept_group(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, Iterator) else value for key, value in group.items()}


def _groups(source: Source) -> list[tuple[str, list[Tensor]]]:
    groups: Any = source.param_groups if isinstance(source, torch.optim.Optimizer) else source
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError(
            "scope='group' needs an optimizer or parameter groups as the source, or groups={name: pattern}"
        )
    named = []
    for position, group in enumerate(groups):
        members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        named.append((str(group.get("name", f"group{position}")), members))
    names = [name for name, _ in named]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"two parameter groups are called {repeated[0]!r}")
    return named
