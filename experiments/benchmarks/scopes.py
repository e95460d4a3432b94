"""What a threshold for each parameter costs, against one for all together.

    python -m experiments.benchmarks.scopes [--rounds 60] [--steps 5]

Both clippers have the default policy, see the same gradients, and take turns in one process with one thread: each round
times a few steps of one, then of the other, in alternating order. A ratio is that of the two medians over all rounds;
its spread is the middle half of the ratios of single rounds. Only `Clipper.step()` is timed: the gradients are copied
back before each step.
"""

import argparse
import time
from statistics import median, quantiles

import torch
from torch import nn

from autoclip import Clipper

Shape = tuple[int, ...]

LAYERS, WIDTH, VOCABULARY = 12, 256, 1024
BLOCK: list[Shape] = [
    (WIDTH,), (WIDTH,), (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,),
    (WIDTH,), (WIDTH,), (4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH), (WIDTH,),
]  # fmt: skip
TRANSFORMER: list[Shape] = [
    (VOCABULARY, WIDTH), (WIDTH, WIDTH), *LAYERS * BLOCK, (WIDTH,), (WIDTH,), (WIDTH, WIDTH), (WIDTH,)
]  # fmt: skip
LISTS: dict[str, list[Shape]] = {"transformer": TRANSFORMER, "small tensors": [(64,)] * len(TRANSFORMER)}


def main() -> None:
    """Time both lists of shapes and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=5, help="in a row of each clipper in a round")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, shapes in LISTS.items():
        _compare(name, shapes, arguments.rounds, arguments.steps)


def _compare(name: str, shapes: list[Shape], rounds: int, steps: int) -> None:
    random = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    gradients = [torch.randn(shape, generator=random) for shape in shapes]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    clippers = {"global": Clipper(weights), "parameter": Clipper(weights, scope="parameter")}
    for clipper in clippers.values():
        for _ in range(120):  # past the warm-up
            _step(clipper, weights, gradients, random)
    seconds: dict[str, list[float]] = {scope: [] for scope in clippers}
    for number in range(rounds):
        for scope in clippers if number % 2 == 0 else reversed(clippers):
            taken = [_step(clippers[scope], weights, gradients, random) for _ in range(steps)]
            seconds[scope].append(sum(taken) / steps)
    ratios = [one / all_ for one, all_ in zip(seconds["parameter"], seconds["global"], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    size = sum(weight.numel() for weight in weights) / 1e6
    times = ", ".join(f"{scope} {1e3 * median(taken):.2f} ms" for scope, taken in seconds.items())
    ratio = median(seconds["parameter"]) / median(seconds["global"])
    print(
        f"{name}: {len(weights)} tensors, {size:.2f} M elements: {times}; ratio {ratio:.2f}, "
        f"of single rounds {middle:.2f} ({low:.2f} to {high:.2f})",
        flush=True,
    )


def _step(
    clipper: Clipper, weights: list[nn.Parameter], gradients: list[torch.Tensor], random: torch.Generator
) -> float:
    """Seconds of one step on the gradients, each times a lognormal factor of its own and one for all."""
    factors = torch.exp(0.3 * torch.randn(len(weights) + 1, generator=random)).tolist()
    for weight, gradient, factor in zip(weights, gradients, factors[1:], strict=True):
        torch.mul(gradient, factor * factors[0], out=weight.grad)
    began = time.perf_counter()
    clipper.step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
