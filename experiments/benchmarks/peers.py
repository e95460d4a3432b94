"""The packages of PyPI at the same work as `overhead`: a process of its own, because one has our import name.

    PYTHONPATH=.parity/pypi-autoclip:.parity/packages:. python -P -m experiments.benchmarks.peers --shapes gpt-1m

`overhead` starts it. Prints JSON: the versions, and for each list of shapes and share of clipped steps the ratios to
`torch.nn.utils.clip_grad_norm_`. Here `autoclip` is PyPI's.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from experiments.benchmarks.shapes import SHAPES
from experiments.benchmarks.steps import LIMIT, SHARES, Cell, Gradients, time_cell
from experiments.benchmarks.timing import ratios


def main() -> None:
    """Time every cell of scope "global" without AMP, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.shapes:
        gradients = Gradients(SHAPES[name], "cpu", slots=1)
        for share in SHARES:
            cell = Cell(name, "global", False, share)
            taken = time_cell(
                cell, gradients, _clips(gradients), device="cpu", rounds=options.rounds, seconds=options.seconds
            )
            rows.append({**cell._asdict(), "ratios": ratios(taken, "torch")})
    versions = [f"{name} {version(name)}" for name in ("autoclip", "zclip")]
    print(json.dumps({"versions": versions, "rows": rows}))


def _clips(gradients: Gradients) -> dict[str, Callable[[], Any]]:
    model = nn.ParameterList(gradients.parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zclip's, about FSDP
        # Its upper bound is what clips, from the fifth step on, as with the others.
        zclip = import_module("zclip").ZClip(max_grad_norm=LIMIT, z_thresh=1e6, warmup_steps=4)
    # Its thresholds are its own; its work is the same whether it clips or not.
    quantile_clip = import_module("autoclip.torch").QuantileClip(gradients.parameters, global_threshold=True)
    return {
        "torch": lambda: torch.nn.utils.clip_grad_norm_(gradients.parameters, LIMIT),
        "PyPI autoclip": quantile_clip.step,
        "PyPI zclip": lambda: zclip.step(model),
    }


if __name__ == "__main__":
    main()
