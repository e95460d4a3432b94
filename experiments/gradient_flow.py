"""Gradient flow in four deep CNNs: vanishing, healthy with and without normalisation, exploding.

    python -m experiments.gradient_flow

trains sixteen convolutions on the digits for 150 steps each, writes `runs/gradient-flow/gradient_flow.png` and prints
the verdicts:

- plain, torch's default initialisation: every layer passes on about a third of the gradient, and the first layers
  never move;
- plain, He initialisation: as long as the norm is clipped, all layers learn;
- shortcuts and batch normalisation: likewise, clipped or not;
- plain, weights twice as large as He's: all norms are 2^15 times larger, with hardly a slope, as the large activations
  in the last layers make up for the small gradients there. Its learning rate is tiny, so that it lives to be measured.
"""

import shutil
from argparse import ArgumentParser
from pathlib import Path

import torch
from torch import nn

from autoclip.flow import diagnose, read_samples
from autoclip.lab.config import load_config
from autoclip.lab.experiment import Interrupt, run_seeds
from autoclip.report.flow_plot import flow_picture
from experiments.digits import ConvLayer, DigitsCNN

OUTPUT = Path("runs/gradient-flow")
SETTINGS = ("steps=150", "seeds=[0]", "evaluate_every=null", "log.layers_every=10")
RUNS = {
    "plain, default initialisation": ("plain_cnn", "task.args.initialisation=default"),
    "plain, He initialisation": ("plain_cnn",),
    "residual, batch normalisation": ("residual_cnn",),
    "plain, twice He's weights": (
        "plain_cnn",
        "task.target=experiments.gradient_flow:LargeWeightsCNN",
        "optimizer.lr=1e-9",
        "clip.policy={kind: none}",
    ),
}
"""Label in the picture -> configuration and overrides."""


class LargeWeightsCNN(DigitsCNN):
    """The stack of convolutions, whose weights are `GAIN` times as large as the initialisation has them."""

    GAIN = 2.0

    def _network(self) -> nn.Module:
        network = super()._network()
        with torch.no_grad():
            for layer in network.modules():
                if isinstance(layer, ConvLayer):
                    layer.convolution.weight.mul_(self.GAIN)
        return network


def main(output: Path = OUTPUT) -> None:
    """Train the runs anew and draw them."""
    flows = {}
    for label, (name, *overrides) in RUNS.items():
        directory = output / label.replace(", ", "-").replace(" ", "-").replace("'", "")
        shutil.rmtree(directory, ignore_errors=True)
        config = load_config(Path("configs") / f"{name}.yaml", [*SETTINGS, *overrides])
        run_seeds(config, directory, resume=False, interrupt=Interrupt())
        flows[label] = diagnose(read_samples(directory / "seed-0"))
        print(f"{label}: {flows[label]}")
    if picture := flow_picture(flows):
        (output / "gradient_flow.png").write_bytes(picture.png)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m experiments.gradient_flow", description=__doc__)
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT, help=f"folder for the runs ({OUTPUT})")
    main(parser.parse_args().output)
