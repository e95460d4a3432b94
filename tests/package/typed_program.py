"""A training loop with types: it runs, and `mypy --strict` and pyright find nothing to complain of."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_type

import torch
from torch import Tensor, nn

import autoclip
from autoclip.policies.parameters import Positive
from autoclip.sinks import JSONLSink


@dataclass
class MultipleOfTheLast(autoclip.Policy):
    """A multiple of the norm before."""

    factor: Positive = 2.0

    def _start(self, warmup_norms: list[float]) -> None:
        self.latest = warmup_norms[-1]

    def _threshold(self) -> float:
        return self.factor * self.latest

    def _observe(self, norm: float, loss: float | None) -> None:
        self.latest = norm


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        inputs = torch.randn(16, 4, generator=generator)
        yield inputs, inputs.sum(1, keepdim=True)


def train(policy: autoclip.Policy | None, folder: Path) -> autoclip.Clipper:
    """Train a linear model, clipped by hand."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink = JSONLSink(folder)
    clipper = autoclip.Clipper(model, policy, mode="norm", on_nonfinite="skip", sinks=[sink])
    for inputs, targets in batches(200):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        assert_type(clipper.step(loss=loss), Tensor)
        optimizer.step()
    sink.close()
    return clipper


def attached() -> autoclip.Clipper:
    """Train a linear model, clipped by a hook of its optimizer."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    clipper = autoclip.attach(optimizer, autoclip.RunningQuantile(percentile=50, warmup_steps=10))
    for inputs, targets in batches(20):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        clipper.report_loss(loss)
        optimizer.step()
    return clipper


def main(folder: Path) -> None:
    """Train, read what the clipper tells, resume, and choose from the log."""
    clipper = train(None, folder)
    assert_type(clipper.last, autoclip.ClipRecord | None)
    if clipper.last is not None:
        assert_type(clipper.last.total_norm, float)
        assert_type(clipper.last.clipped, bool)
    assert_type(clipper.threshold, float | dict[str, float])
    assert_type(clipper.clip_rate, float)
    assert_type(clipper.policy, autoclip.Policy)
    state = clipper.state_dict()
    assert_type(state, dict[str, Any])
    resumed = autoclip.Clipper(nn.Linear(4, 1))
    resumed.load_state_dict(state)

    assert_type(attached(), autoclip.Clipper)
    train(MultipleOfTheLast(3.0, warmup_steps=1), folder / "own")

    (trace,) = autoclip.traces.read_traces([folder / "metrics.jsonl"])
    assert_type(trace, autoclip.traces.NormTrace)
    result = autoclip.replay(trace.norms, autoclip.Fixed(1.0), losses=trace.losses)
    assert_type(result.clip_rate, float)
    assert_type(autoclip.Fixed(1.0).threshold(), float)

    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert_type(autoclip.clip_grad_norm_([weight], 1.0), Tensor)
    autoclip.clip_grad_value_([weight], 0.5)
    assert_type(autoclip.__version__, str)
