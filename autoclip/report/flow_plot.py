"""The picture of gradient flow: norm of each layer in forward order, one line for each run."""

from collections.abc import Mapping, Sequence
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from autoclip.flow import GradientFlow
from autoclip.pictures.picture import Picture, colours, plain, smaller

MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">")
LONGEST_LAYER, LONGEST_LABEL = 40, 120
MOST_NAMED = 40
"""With more layers than this, there is no room for their names."""


def flow_picture(flows: Mapping[str, GradientFlow]) -> Picture | None:
    """Geometric mean of the norm over the samples, by layer in forward order, on a logarithmic axis.

    Runs with the same layers are drawn over their names, others over depth. A cross at the lower edge: a dead
    layer, or one without a norm above zero.

    Args:
        flows: label -> gradient flow.

    Returns:
        None if no run has a layer with a norm above zero.
    """
    drawn = {label: flow for label, flow in flows.items() if any(layer.norm for layer in flow.layers)}
    if not drawn:
        return None
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    floor = min(layer.norm for flow in drawn.values() for layer in flow.layers if layer.norm) / 3
    for index, ((label, flow), colour) in enumerate(zip(drawn.items(), colours(len(drawn)), strict=True)):
        placed = [(place / max(len(flow.layers) - 1, 1), layer) for place, layer in enumerate(flow.layers)]
        alive = [(depth, layer.norm) for depth, layer in placed if layer.norm]
        marker, told = MARKERS[index % len(MARKERS)], plain(f"{label}: {_told(flow)}", LONGEST_LABEL)
        axes.plot(*zip(*alive, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.2, label=told)
        dead = [depth for depth, layer in placed if layer.norm is None or layer.dead_since is not None]
        if dead:
            axes.plot(dead, [floor] * len(dead), "x", color=colour, markersize=6)
    _name_layers(axes, list(drawn.values()))
    axes.set_ylabel("gradient norm before clipping\n(L2; geometric mean over the sampled steps)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=1, fontsize=9, frameon=False)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return Picture(
        name="layers",
        title="Gradient flow through the layers",
        caption="Mean norm of each layer's gradient on a logarithmic axis, from the first layer to the last, and the "
        "slope in decades: above 0 if the norm rises towards the last layer. A healthy line stays within about three "
        "decades. If it rises to the right, the gradient vanishes on its way back to the first layers; if it falls, "
        "the gradient explodes on the way. A cross at the lower edge is a layer with a zero gradient.",
        alt="Norm of each layer in forward order, logarithmic axis: "
        + "; ".join(f"{label}: {flow.words}" for label, flow in flows.items())
        + ".",
        png=smaller(file.getvalue()),
        wide=True,
    )


def _told(flow: GradientFlow) -> str:
    told = [flow.words]
    if flow.slope is not None:
        told.append(f"{flow.slope.decades:+.1f} decades ({flow.slope.low:+.1f} to {flow.slope.high:+.1f})")
    if flow.level is not None:
        told.append(f"median {flow.level:.1e}")
    if flow.dead_layers:
        told.append(f"{len(flow.dead_layers)} dead (x)")
    return ", ".join(told)


def _name_layers(axes: Axes, flows: Sequence[GradientFlow]) -> None:
    names = [[layer.name for layer in flow.layers] for flow in flows]
    if any(other != names[0] for other in names) or len(names[0]) > MOST_NAMED:
        axes.set_xlabel("depth in forward order (0: first layer, 1: last)")
        return
    places = [place / max(len(names[0]) - 1, 1) for place in range(len(names[0]))]
    axes.set_xticks(places, [plain(name, LONGEST_LAYER) for name in names[0]], rotation=90, fontsize=7)
    axes.set_xlabel("layer in forward order")
