"""The picture of the layers' norms, on a page."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from autoclip.flow import GradientFlow
from autoclip.pictures.picture import Picture, smaller
from autoclip.report.flow_plot import plot_flow


def flow_picture(flows: Mapping[str, GradientFlow]) -> Picture | None:
    """Norm of each layer in forward order, one line for each run.

    Returns:
        None if no run has a layer with a norm above zero.
    """
    if not any(layer.norm for flow in flows.values() for layer in flow.layers):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.png"
        plot_flow(flows, path)
        png = path.read_bytes()
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
        png=smaller(png),
        wide=True,
    )
