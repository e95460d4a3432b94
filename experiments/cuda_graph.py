"""A training step captured in a CUDA graph, clipped at a threshold that changes between its replays.

    python -m experiments.cuda_graph [--steps 500]

Forward pass, backward pass, clipping and the optimizer's step are captured once and replayed: the host launches one
graph a step and waits for nothing. The threshold lies in memory of the device; `clipper.replay(graph)` writes it before
each replay, from the norms of the replays before.
"""

import argparse
import time

import torch
from torch import nn
from torch.nn import functional as F

import autoclip
from autoclip import RunningQuantile
from autoclip.sinks import ConsoleSink

WARMUP_STEPS = 3
"""Taken before the capture: torch's allocator and the optimizer's state have to be there, and the clipper's first steps
look for mistakes in the loop."""


def main() -> None:
    """Train a small network on digits drawn at random, and say how many steps a second that makes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("CUDA graphs need a CUDA device, and torch sees none here")
    torch.manual_seed(0)
    train(arguments.steps, torch.device("cuda"))


def train(steps: int, device: torch.device) -> autoclip.Clipper:
    """Capture one step, and replay it; the clipper, closed."""
    teacher, model = network().to(device), network().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True)
    clipper = autoclip.attach(optimizer, RunningQuantile(percentile=90), sinks=[ConsoleSink(every=100)])
    inputs = torch.zeros(64, 32, device=device)  # the graph reads its batch from here
    targets = torch.zeros(64, 10, device=device)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        clipper.report_loss(loss)
        optimizer.step()

    def load_batch() -> None:
        inputs.normal_()
        with torch.no_grad():
            targets.copy_(teacher(inputs))

    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_STEPS):
            load_batch()
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    began = time.perf_counter()
    for _ in range(steps):
        load_batch()
        clipper.replay(graph)
    clipper.close()
    print(f"{steps / (time.perf_counter() - began):.0f} steps/s, {clipper.clip_rate:.0%} of them clipped")
    return clipper


def network() -> nn.Module:
    """A network of three layers."""
    return nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))


if __name__ == "__main__":
    main()
