"""How the gradient flows through the layers: vanishing, healthy, exploding, or too little to tell; with the evidence.

    flow = FlowSink(every=50, order=forward_order(model, batch))
    clipper = autoclip.Clipper(model, sinks=[flow])
    ...
    print(flow.verdict())

The norms are those that the clipper measures in any case: nothing is computed from the gradients again. `autoclip run`
writes them to `layers.jsonl` and prints the verdict at its end.
"""

from autoclip.flow.layers import Sample, layer_of, read_samples
from autoclip.flow.order import UseOrder, forward_order
from autoclip.flow.sink import FlowSink
from autoclip.flow.verdict import GradientFlow, Layer, Slope, diagnose, flow_findings

__all__ = [
    "FlowSink",
    "GradientFlow",
    "Layer",
    "Sample",
    "Slope",
    "UseOrder",
    "diagnose",
    "flow_findings",
    "forward_order",
    "layer_of",
    "read_samples",
]
