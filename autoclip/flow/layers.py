"""From the norms of parameters to the norms of layers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import hypot, isfinite, nan
from pathlib import Path
from typing import NamedTuple

from autoclip.run_directory import LAYERS, read_rows

RECURRENT = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_(l\d+)(?:_reverse)?")
"""Parameters of torch's recurrent modules, which hold several layers each."""

UNNAMED = re.compile(r"(?:group\d+\.)?\d+")
"""Positions that a clipper calls parameters by which have no names, as those of an optimizer mostly."""

PARAMETRIZED = ".parametrizations."
"""What torch puts between a module's name and that of a parametrized weight."""


class Sample(NamedTuple):
    """Norms of one step: parameter's name -> norm of its gradient before clipping; None or NaN: not finite."""

    step: int
    norms: Mapping[str, float | None]


def layer_of(parameter: str) -> str:
    """Name of a parameter's layer: that of its module. Recurrent modules have one layer for each level.

    A parameter that is named by a position is a layer by itself.

    >>> layer_of("blocks.0.fc.weight"), layer_of("rnn.bias_hh_l1"), layer_of("cls_token")
    ('blocks.0.fc', 'rnn.l1', 'cls_token')
    """
    if UNNAMED.fullmatch(parameter):
        return parameter
    module, _, name = parameter.partition(PARAMETRIZED)
    if name:
        return module
    module, _, name = parameter.rpartition(".")
    level = RECURRENT.fullmatch(name)
    if level is not None:
        name = level.group(1)
        return f"{module}.{name}" if module else name
    return module or parameter


def by_layer(norms: Mapping[str, float | None]) -> dict[str, float]:
    """Layer -> norm of all its gradients together; NaN if any is not finite."""
    parts: dict[str, list[float]] = {}
    for name, norm in norms.items():
        parts.setdefault(layer_of(name), []).append(norm if norm is not None and isfinite(norm) else nan)
    return {layer: hypot(*values) for layer, values in parts.items()}


def in_order(found: Iterable[str], order: Sequence[str] | None) -> list[str]:
    """Layers in the given order of parameters (or layers); a layer that is not in it follows the one measured before.

    Args:
        found: layers, in the order in which they were measured.
        order: names of parameters or layers; None: as measured.

    Raises:
        ValueError: the order names none of the layers.
    """
    layers = list(found)
    if order is None:
        return layers
    known = set(layers)
    given = [name if name in known else layer_of(name) for name in order]
    placed = dict.fromkeys(name for name in given if name in known)
    if layers and not placed:
        raise ValueError(
            f"order names none of the layers: it begins with {order[0]!r}, they with {layers[0]!r} (a clipper has the "
            f"names of a module, or of an optimizer that was given model.named_parameters())"
            if order
            else "order is empty; None takes the layers as they were measured"
        )
    return completed(placed, layers)


def completed(order: Iterable[str], names: Sequence[str]) -> list[str]:
    """The order with all names; one that it lacks follows the name before it in `names`."""
    placed = list(order)
    for before, name in zip([None, *names], names, strict=False):
        if name not in placed:
            placed.insert(0 if before is None else placed.index(before) + 1, name)
    return placed


def read_samples(path: Path) -> list[Sample]:
    """Samples of a `layers.jsonl`, or of the run directory that holds it. A torn last line is left out.

    Raises:
        OSError: the file cannot be read.
    """
    rows = read_rows(path / LAYERS if path.is_dir() else path)
    return [Sample(row["step"], row["norms"]) for row in rows if isinstance(row.get("norms"), dict)]
