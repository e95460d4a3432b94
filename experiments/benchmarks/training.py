"""What clipping costs of a whole training step: forward, backward, clip, AdamW.

    python -m experiments.benchmarks.training [--models gpt-11m deep-mlp] [--rounds 400] [--threads 2] [--device cuda]

The contenders train one model in turn, a block of steps each, every one with an optimizer of its own. The overhead is
the time of a block over that of the block without clipping in the same round, less one: the median over the rounds, and
their middle half. The process keeps the memory that it frees, see `keep_freed_memory`: otherwise the page faults of
each step's new gradients hide what clipping costs.

none: no clipping. torch: `clip_grad_norm_` at 1. step: `Clipper(parameters).step()`. attach:
`autoclip.attach(optimizer)`. item: a clipper that reads the norm of every tensor by `.item()`, and scales each in turn.
none again: no clipping once more, which tells how far apart equal contenders come out.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from math import sqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoclip
from experiments.benchmarks.results import Row, parser_of, positive, table, write
from experiments.benchmarks.timing import Spread, alternate, keep_freed_memory, ratios, spread
from experiments.char_lm import GPT, SYMBOLS


class Setting(NamedTuple):
    """A model, its batches, and the number of steps in a block.

    Attributes:
        model: makes it.
        batch: draws (inputs, targets) by a generator.
        block: steps of one contender in a round.
    """

    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    block: int


def _characters(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    text = torch.randint(len(SYMBOLS), (1, 129), generator=generator)
    return text[:, :-1], text[:, 1:]


def _gpt_11m() -> nn.Module:
    return GPT(width=384, layers=6, heads=6, norm="pre", context=128)


def _points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(8, 32, generator=generator), torch.randint(10, (8,), generator=generator)


def _deep_mlp() -> nn.Module:
    hidden = chain.from_iterable((nn.Linear(32, 32), nn.ReLU()) for _ in range(30))
    return nn.Sequential(*hidden, nn.Linear(32, 10))


SETTINGS = {
    "gpt-11m": Setting(_gpt_11m, _characters, block=1),
    "deep-mlp": Setting(_deep_mlp, _points, block=5),
}
"""Name -> setting: a GPT whose step is mostly arithmetic, and a chain of 31 tiny layers that is mostly calls."""


CLIPPINGS = ("none", "torch", "step", "attach", "item", "none again")
UNTIMED = 5
"""Steps of each contender before the first round, which are the warm-up of the policies."""


def main(arguments: list[str] | None = None) -> None:
    """Train each model and print a table."""
    parser = parser_of(__doc__)
    models = list(SETTINGS)
    parser.add_argument("--models", nargs="+", choices=models, default=models, metavar="NAME", help=", ".join(models))
    parser.add_argument("--rounds", type=positive, default=400, help="at most, for each model")
    parser.add_argument("--seconds", type=float, default=90.0, help="for each model, but at least four rounds")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows = [row for name in options.models for row in _rows(name, options)]
    print(table([cells(row) for row in rows]))
    write(options.json, "training", {name: value for name, value in vars(options).items() if name != "json"}, rows)


def cells(row: Row) -> dict[str, str]:
    """A row of the table."""
    return {
        "model": f"{row['model']} ({row['tensors']} tensors, {row['elements'] / 1e6:.2f} M)",
        "clipping": row["clipping"],
        "steps per second": "{:.2f} ({:.2f} to {:.2f})".format(*row["steps_per_second"]),
        "overhead": "{:+.1%} ({:+.1%} to {:+.1%})".format(*row["overhead"]),
        "clipped": "" if row["rate"] is None else f"{row['rate']:.0%}",
    }


def clip_by_items(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Clip as is often written by hand: the norm of every tensor is read by the host; returns the total norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = sqrt(sum(gradient.norm().item() ** 2 for gradient in gradients))
    if total > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / total)
    return total


def _rows(name: str, options: Namespace) -> list[dict[str, Any]]:
    setting = SETTINGS[name]
    torch.manual_seed(0)
    model = setting.model().to(options.device)
    parameters = list(model.parameters())
    optimizers = {clipping: torch.optim.AdamW(parameters, lr=1e-5) for clipping in CLIPPINGS}
    clippers = {
        "step": autoclip.Clipper(parameters, autoclip.RunningQuantile(warmup_steps=UNTIMED)),
        "attach": autoclip.attach(optimizers["attach"], autoclip.RunningQuantile(warmup_steps=UNTIMED)),
    }
    clips: dict[str, Callable[[], Any]] = {
        "torch": lambda: nn.utils.clip_grad_norm_(parameters, 1.0),
        "step": clippers["step"].step,
        "item": lambda: clip_by_items(parameters, 1.0),
    }
    generator = torch.Generator().manual_seed(0)

    def block(clipping: str, steps: int) -> float:
        drawn = [setting.batch(generator) for _ in range(steps)]
        batches = [(inputs.to(options.device), targets.to(options.device)) for inputs, targets in drawn]
        return _train(model, batches, optimizers[clipping], clips.get(clipping))

    for clipping in CLIPPINGS:
        block(clipping, UNTIMED)
    contenders = {clipping: partial(block, clipping, setting.block) for clipping in CLIPPINGS}
    taken = alternate(contenders, options.rounds, options.seconds)
    overheads = {"none": Spread(1.0, 1.0, 1.0), **ratios(taken, "none")}
    return [
        {
            "model": name,
            "tensors": len(parameters),
            "elements": sum(parameter.numel() for parameter in parameters),
            "clipping": clipping,
            "rounds": len(taken[clipping]),
            "steps_per_second": spread([setting.block / seconds for seconds in taken[clipping]]),
            "overhead": [ratio - 1 for ratio in overheads[clipping]],
            "rate": clippers[clipping].clip_rate if clipping in clippers else None,
        }
        for clipping in CLIPPINGS
    ]


def _train(
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    clip: Callable[[], Any] | None,
) -> float:
    """Seconds of a step for each batch."""
    _wait(batches[0][0])
    began = time.perf_counter()
    for inputs, targets in batches:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten()).backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            clip()
        optimizer.step()
    _wait(batches[0][0])
    return time.perf_counter() - began


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
