"""What a `SpikeRecorder` adds to a step of the clipper, as a share of torch's clip; nothing is clipped.

    python -m experiments.benchmarks.spikes [--rounds 2000]

Three contenders take turns in one process on the same gradients: `torch.nn.utils.clip_grad_norm_`, a clipper, and one
with a recorder. Added: the median over the rounds of the second difference over the first.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from autoclip import Clipper, Fixed
from autoclip.sinks import JSONLSink, SpikeRecorder
from experiments.benchmarks.shapes import SHAPES
from experiments.benchmarks.steps import LIMIT, Cell, Gradients, time_cell
from experiments.benchmarks.timing import milliseconds, spread


def main() -> None:
    """Print a line for each list of shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for shape in ("gpt-1m", "tiny-1000"):
        gradients = Gradients(SHAPES[shape], "cpu", 1)
        with tempfile.TemporaryDirectory() as folder:
            weights = gradients.parameters
            contenders: dict[str, Callable[[], Any]] = {
                "torch": partial(clip_grad_norm_, weights, LIMIT),
                "clipper": Clipper(weights, Fixed(LIMIT)).step,
                "recorder": Clipper(weights, Fixed(LIMIT), sinks=[SpikeRecorder(folder)]).step,
                "metrics.jsonl": Clipper(weights, Fixed(LIMIT), sinks=[JSONLSink(folder)]).step,
            }
            cell = Cell(shape, "global", amp=False, share=0.0)
            taken = time_cell(cell, gradients, contenders, device="cpu", rounds=rounds, seconds=1e9)
        for name in ("recorder", "metrics.jsonl"):
            pairs = zip(taken[name], taken["clipper"], taken["torch"], strict=True)
            added = spread([(one - bare) / base for one, bare, base in pairs])
            all_steps = (mean(taken[name]) - mean(taken["clipper"])) / mean(taken["torch"])  # every 64th has more to do
            told = f"{added.median:.3f} ({added.low:.3f} to {added.high:.3f}), {all_steps:.3f} of the mean"
            print(f"{shape}: torch {milliseconds(taken['torch']):.3f} ms; {name} adds {told}", flush=True)


if __name__ == "__main__":
    main()
