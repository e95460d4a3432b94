"""Trains under FSDP2 with a checkpoint after every fourth step; with `--kill` rank 1 kills itself."""

import os
import signal

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.nn import functional as F

import autoclip
from autoclip import LossAwareQuantile
from autoclip.sinks import JSONLSink
from experiments.distributed import checkpoints
from experiments.distributed.char_lm_fsdp2 import load_model
from tests.distributed import layouts
from tests.distributed.network import batch, weights, whole
from tests.distributed.worker import arguments, run

STEPS = 20
CHECKPOINT_EVERY = 4
KILLED_AT = 14


def work(rank, ranks):
    output = arguments().output
    layout = layouts.fsdp2()
    optimizer = torch.optim.SGD(layout.source.parameters(), lr=0.02, momentum=0.9)
    found = checkpoints.latest(output / "checkpoints")
    if found is not None:
        load_model(found, layout.source, optimizer)
    sink = JSONLSink(output / f"metrics-{rank}.jsonl", optimizer)
    clipper = autoclip.attach(optimizer, LossAwareQuantile(), sinks=[sink])
    progress = {"clipper": clipper, "step": 0}
    if found is not None:
        dcp.load(progress, checkpoint_id=found)
    for step in range(progress["step"], STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.mse_loss(layout.model(x[layout.rows]), y[layout.rows])
        loss.backward()
        clipper.report_loss(loss)
        if arguments().kill and (rank, step) == (1, KILLED_AT):
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.step()
        if (step + 1) % CHECKPOINT_EVERY == 0:
            trained, momentum = get_state_dict(layout.source, optimizer)
            state = {"model": trained, "optimizer": momentum, "clipper": clipper, "step": step + 1}
            checkpoints.save(output / "checkpoints", step + 1, state)
    return {
        "began_at": progress["step"],
        "clipper": clipper.state_dict(),
        "weights": {name: whole(weight).flatten().tolist() for name, weight in weights(layout).items()},
    }


if __name__ == "__main__":
    run(work)
