"""Trains the GPT of `experiments/char_lm.py` under FSDP2 with autoclip, on any number of ranks.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m experiments.distributed.char_lm_fsdp2 \
        --steps 60 --output-dir runs/fsdp2

`--resume` continues from the latest checkpoint, on as many ranks as before or on others.
"""

import argparse
import os
import sys
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import autoclip
from autoclip.sinks import JSONLSink
from experiments.char_lm import GPT, CharLanguageModel
from experiments.distributed import checkpoints


def main() -> None:
    """Train, and write metrics.jsonl and checkpoints."""
    args = parse_arguments()
    torch.set_num_threads(1)
    # FSDP2 warns of any module that returns a view, as a linear layer does; nothing writes to it in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    dist.init_process_group("gloo")
    try:
        train(args)
    finally:
        dist.destroy_process_group()
    # The interpreter's own end can abort a process whose gloo threads still hold tensors (pytorch/pytorch#190489).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; the same on all ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="continue from the latest checkpoint, if there is one")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--checkpoint-every", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16, help="of all ranks together")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.resume and checkpoints.latest(args.output_dir / "checkpoints") is not None:
        parser.error(f"{args.output_dir} holds checkpoints of another run: give --resume, or another --output-dir")
    return args


def train(args: argparse.Namespace) -> None:
    """Train on the ranks that there are."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if args.batch_size % ranks:
        raise SystemExit(f"--batch-size must be a multiple of the number of ranks, got {args.batch_size} and {ranks}")
    task = CharLanguageModel(
        architecture="gpt", hidden=args.width, layers=args.layers, batch_size=args.batch_size, context=args.context
    )
    model = shard(task.model(args.seed))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    directory = args.output_dir / "checkpoints"
    found = checkpoints.latest(directory) if args.resume else None
    if found is not None:
        load_model(found, model, optimizer)

    # All ranks have the same thresholds; one of them writes them down.
    sinks = [JSONLSink(args.output_dir, optimizer)] if rank == 0 else []
    clipper = autoclip.attach(optimizer, autoclip.LossAwareQuantile(), sinks=sinks)
    progress: dict[str, Any] = {"clipper": clipper, "step": 0}
    if found is not None:
        state_dict_loader.load(progress, checkpoint_id=found)

    done = progress["step"]
    for batch in islice(task.batches(args.seed), done, args.steps):
        loss = task.loss(model, own_part(batch, rank, ranks))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        clipper.report_loss(loss)  # averaged over the ranks
        optimizer.step()
        done += 1
        if done % args.checkpoint_every == 0 or done == args.steps:
            weights, momentum = get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": momentum, "clipper": clipper, "step": done}
            checkpoints.save(directory, done, state)
    clipper.close()

    with torch.no_grad():
        validation_loss = task.evaluate(model)
    if rank == 0:
        print(
            f"{ranks} ranks, {done} steps: validation loss {validation_loss:.4f} (trivial {task.trivial_loss:.4f}), "
            f"threshold {clipper.threshold:.4f}, {clipper.clip_rate:.0%} of the steps clipped"
        )


def shard(model: nn.Module) -> nn.Module:
    """Shard each layer and what is around them over all ranks."""
    assert isinstance(model, GPT)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def load_model(found: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Continue from a checkpoint; before a clipper is attached.

    To have something to load into, torch makes a step with zero gradients where an optimizer has no state yet, which
    an attached clipper would count.
    """
    weights, momentum = get_state_dict(model, optimizer)
    state_dict_loader.load({"model": weights, "optimizer": momentum}, checkpoint_id=found)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=momentum)


def own_part(batch: tuple[Tensor, ...], rank: int, ranks: int) -> tuple[Tensor, ...]:
    """Rows that this rank has of the global batch, which is the same for any number of ranks."""
    return tuple(values.tensor_split(ranks)[rank] for values in batch)


if __name__ == "__main__":
    main()
