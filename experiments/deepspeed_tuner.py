"""DeepSpeed with a tuner attached clips as a plain torch loop does with a `Clipper`.

    DS_BUILD_OPS=0 pip install deepspeed
    python -m experiments.deepspeed_tuner [--stage 0] [--steps 40]

One process on the CPU. The first start compiles an operator of DeepSpeed, which takes a minute and needs a compiler.
"""

import argparse
import os
from math import inf

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import autoclip

LR = 1e-2


def network() -> nn.Sequential:
    """Two layers, the same in every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs (32, 8) and targets (32, 1); one batch in eleven has targets that are fifty times too large."""
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True) * (50 if step % 11 == 7 else 1)


def policy() -> autoclip.Policy:
    """Of both."""
    return autoclip.RunningQuantile(percentile=50, warmup_steps=10)


def train_plain(steps: int) -> list[autoclip.ClipRecord]:
    """The plain loop."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0)
    clipper, records = autoclip.Clipper(net, policy()), []
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = mse_loss(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        clipper.step(loss=loss)
        optimizer.step()
        assert clipper.last is not None
        records.append(clipper.last)
    return records


def train_deepspeed(steps: int, stage: int) -> list[autoclip.ClipRecord]:
    """The same under ZeRO."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ.get("MASTER_PORT", "29611")}
    import deepspeed  # reads the environment

    from autoclip.integrations.deepspeed import attach

    deepspeed.init_distributed(dist_backend="gloo")
    net = network()
    engine, *_ = deepspeed.initialize(
        model=net,
        model_parameters=net.parameters(),
        config={
            "train_micro_batch_size_per_gpu": 32,
            "optimizer": {"type": "AdamW", "params": {"lr": LR, "weight_decay": 0.0, "torch_adam": True}},
            "zero_optimization": {"stage": stage},
        },
    )
    tuner, records = attach(engine, policy()), list[autoclip.ClipRecord]()
    for step in range(steps):
        x, y = batch(step)
        loss = mse_loss(engine(x), y)
        engine.backward(loss)
        engine.step()
        assert tuner.last is not None
        records.append(tuner.last)
    return records


def main() -> None:
    """Print how far the two are apart."""
    parser = argparse.ArgumentParser(prog="python -m experiments.deepspeed_tuner", description=__doc__)
    parser.add_argument("--stage", type=int, choices=[0, 1, 2, 3], default=0, help="of ZeRO (1)")
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    pairs = list(zip(train_plain(given.steps), train_deepspeed(given.steps, given.stage), strict=True))
    norms = max(abs(theirs.total_norm / ours.total_norm - 1) for ours, theirs in pairs)
    thresholds = max(abs(theirs.threshold / ours.threshold - 1) for ours, theirs in pairs if ours.threshold < inf)
    clipped = sum(theirs.clipped for _, theirs in pairs)
    print(
        f"ZeRO {given.stage}, {given.steps} steps, {clipped} clipped: norms differ by {norms:.1e} at most, "
        f"thresholds by {thresholds:.1e}"
    )


if __name__ == "__main__":
    main()
