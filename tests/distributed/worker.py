"""What every worker does: join the others, work, write down what came out."""

import argparse
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

PATIENCE = timedelta(seconds=60)
"""Ranks that wait for each other for ever give up after this time."""


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kill", action="store_true", help="rank 1 ends in the middle")
    return parser.parse_args()


def run(work):
    """Write what `work(rank, ranks)` returns as `rank-<n>.json` of the directory that is given on the command line."""
    output = arguments().output
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    told = work(dist.get_rank(), dist.get_world_size())
    (output / f"rank-{dist.get_rank()}.json").write_text(json.dumps(told))
    dist.destroy_process_group()
    leave()


def leave():
    """End this process at once, without the end of the interpreter.

    Gloo's threads may outlive the process group, in whatever still refers to it (a device mesh). One that lets go of a
    tensor while the interpreter ends waits for its lock and is unwound by Python, upon which C++ aborts the process
    ("terminate called without an active exception"): once in fifty runs on a busy machine (pytorch/pytorch#190489).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
