"""Whether planted causes of spikes are found: five kinds, ten seeds each.

    python -m experiments.spikes

A small transformer over digits, eight rows of eight pixels each, is trained by AdamW or SGD under the default policy.
In the middle something is broken, in a layer or a batch that the seed chooses. It prints how often the first suspect is
the planted one.
"""

import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

import autoclip
from autoclip.flow import forward_order
from autoclip.sinks import SpikeRecorder
from autoclip.spikes import SpikeEvent, event_findings, read_events

STEPS, BROKEN_AT, BATCH, WIDTH, LAYERS = 450, 250, 32, 32, 3


class Block(nn.Module):
    """A layer of a transformer, normalised before attention and before the two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.inner, self.outer = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, rows, width) to the same."""
        normed = self.norm1(x)
        mixed = functional.scaled_dot_product_attention(self.query(normed), self.key(normed), self.value(normed))
        x = x + self.out(mixed)
        out: Tensor = x + self.outer(functional.gelu(self.inner(self.norm2(x))))
        return out


class Rows(nn.Module):
    """Digits as sequences of their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, WIDTH)
        self.place = nn.Parameter(torch.randn(8, WIDTH) * 0.02)
        self.layers = [Block() for _ in range(LAYERS)]
        self.blocks = nn.ModuleList(self.layers)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 64) to (batch, 10)."""
        x = self.embedding(x.view(-1, 8, 8)) + self.place
        for block in self.layers:
            x = block(x)
        scores: Tensor = self.head(x.mean(1))
        return scores


class Run:
    """One training; `before` is called with the step, and breaks what it likes."""

    def __init__(self, seed: int, optimizer: str) -> None:
        torch.manual_seed(seed)
        self.seed, self.model = seed, Rows()
        digits = load_digits()
        self.inputs = torch.tensor(digits.data / 16, dtype=torch.float32)
        self.labels = torch.tensor(digits.target)
        self.layer = seed % LAYERS
        self.block: Block = self.model.layers[self.layer]
        self.hook: RemovableHandle | None = None
        self.broken_batch: int | None = None
        rate = {"adamw": 2e-3, "sgd": 0.05}[optimizer]
        named = self.model.named_parameters()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(named, rate) if optimizer == "adamw" else torch.optim.SGD(named, rate, momentum=0.9)
        )

    def batches(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Numbers of batches, and their data; the same batches in every epoch, in another order."""
        generator = torch.Generator().manual_seed(self.seed)
        parts = torch.randperm(len(self.inputs), generator=generator)[: len(self.inputs) // BATCH * BATCH].view(
            -1, BATCH
        )
        while True:
            for number in torch.randperm(len(parts), generator=generator).tolist():
                inputs, labels = self.inputs[parts[number]], self.labels[parts[number]]
                if number == self.broken_batch:
                    inputs, labels = inputs * 30, (labels * 7 + 3) % 10
                yield number, inputs, labels

    def train(self, before: Callable[["Run", int], None], folder: Path) -> list[SpikeEvent]:
        """Its events."""
        clipper = autoclip.attach(
            self.optimizer, sinks=[SpikeRecorder(folder, order=forward_order(self.model, self.inputs[:2]))]
        )
        batches = self.batches()
        for step in range(STEPS):
            before(self, step)
            number, inputs, labels = next(batches)
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            clipper.note(number)
            clipper.report_loss(loss)
            self.optimizer.step()
        clipper.close()
        return read_events(folder)


def scaled_weights(run: Run, step: int) -> None:
    """The weights of one layer are multiplied by 30 at a step."""
    if step == BROKEN_AT:
        with torch.no_grad():
            run.block.inner.weight.mul_(30)


def broken_batch(run: Run, step: int) -> None:
    """One batch of the 56 has inputs times 30 and wrong labels from a step on."""
    run.broken_batch = 5 * run.seed % 56 if step >= BROKEN_AT else None


def nan_gradient(run: Run, step: int) -> None:
    """The backward pass of one layer gives a NaN in one step."""
    if step == BROKEN_AT:
        run.hook = run.block.inner.register_full_backward_hook(
            lambda module, into, out: tuple(None if one is None else one * nan for one in into)  # type: ignore[attr-defined]
        )
    elif run.hook is not None:
        run.hook.remove()


def raised_rate(run: Run, step: int) -> None:
    """The learning rate is multiplied by 30 at a step."""
    if step == BROKEN_AT:
        for group in run.optimizer.param_groups:
            group["lr"] *= 30


def growing_logits(run: Run, step: int) -> None:
    """Queries and keys of one layer grow by 4 % a step, so that attention becomes a choice of one row."""
    if step >= BROKEN_AT:
        with torch.no_grad():
            run.block.query.weight.mul_(1.04)
            run.block.key.weight.mul_(1.04)


def nothing(run: Run, step: int) -> None:
    """Nothing is broken."""


PLANTED: dict[str, tuple[Callable[[Run, int], None], Callable[[Run], list[str]]]] = {
    "weights of a layer times 30": (scaled_weights, lambda run: [f"blocks.{run.layer}.inner.weight"]),
    "a broken batch": (broken_batch, lambda run: [f"batch {5 * run.seed % 56}"]),
    "NaN from a layer": (
        nan_gradient,
        lambda run: [f"blocks.{run.layer}.norm2.bias", f"blocks.{run.layer}.inner.weight"],
    ),
    "learning rate times 30": (raised_rate, lambda run: ["learning rate"]),
    "attention logits that grow": (
        growing_logits,
        lambda run: [f"blocks.{run.layer}.query.weight", f"blocks.{run.layer}.key.weight"],
    ),
}


def main() -> None:
    """Print hits and misses."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--details", action="store_true", help="print every event")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for optimizer in ("adamw", "sgd"):
        for name, (plant, expected) in {**PLANTED, "nothing": (nothing, lambda run: [])}.items():
            hits, spikes, others = 0, 0, []
            for seed in range(given.seeds):
                run = Run(seed, optimizer)
                with tempfile.TemporaryDirectory() as folder:
                    events = run.train(plant, Path(folder))
                first = events[0] if events else None
                hit = first is not None and first.step >= BROKEN_AT and first.named in expected(run)
                hits, spikes = hits + hit, spikes + bool(events)
                if not hit and events:
                    others.append(f"seed {seed}: {first.named} at step {first.step}" if first else "")
                if given.details:
                    print(*events, *(one.text for one in event_findings(events)), sep="\n   ")
            print(
                f"{optimizer}, {name}: spikes in {spikes} of {given.seeds} runs, the planted one named first in {hits}"
            )
            print("".join(f"    {one}\n" for one in others), end="", flush=True)


if __name__ == "__main__":
    main()
