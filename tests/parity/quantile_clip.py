"""PyPI's autoclip at work, in a process of its own, because it has our import name: reads JSON, writes JSON.

In: {"quantile": q, "history_length": n, "norms": [[of each step], ... of each parameter]}.
Out: the gradients of one element that `QuantileClip` leaves, in the same form.
"""

import json
import sys

import torch
from autoclip.torch import QuantileClip

given = json.load(sys.stdin)
weights = [torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in given["norms"]]
torch.set_default_dtype(torch.float64)  # its history starts as an empty tensor of the default dtype
clipper = QuantileClip(
    weights,
    quantile=given["quantile"],
    history_length=given["history_length"],
    global_threshold=given["global_threshold"],
)
left: list[list[float]] = [[] for _ in weights]
for norms in zip(*given["norms"], strict=True):
    for weight, norm in zip(weights, norms, strict=True):
        weight.grad = torch.full((1,), norm, dtype=torch.float64)
    clipper.step()
    for kept, weight in zip(left, weights, strict=True):
        kept.append(weight.grad.item())
json.dump(left, sys.stdout)
