"""What a step of the clipper costs, against `torch.nn.utils.clip_grad_norm_`.

    python -m experiments.benchmarks.overhead [--shapes gpt-1m tiny-1000] [--rounds 300] [--threads 2] [--device cuda]

The contenders take turns in one process on the same gradients, which are written anew before each step; only the
clipping is timed. A ratio is the median of the ratios of single rounds, its spread their middle half. Thresholds are
held at 1 by the bounds of the policy, norms lie around .5 or 2, and torch clips at 1: what is clipped is the same for
all. In scope "parameter" each tensor has its threshold, and torch still has one for all. With AMP the time is that of
`GradScaler.unscale_`, the clipping and `GradScaler.update`. Cells of scope "global" without AMP, which goals are for,
take four times as many rounds.

PyPI's `zclip` and `autoclip` are compared where `make parity` has installed them, in a process of their own.
"""

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import autoclip
from experiments.benchmarks.results import Row, parser_of, positive, table, write
from experiments.benchmarks.shapes import SHAPES, elements
from experiments.benchmarks.steps import CUDA_STEPS, LIMIT, SHARES, Cell, Gradients, time_cell
from experiments.benchmarks.timing import Spread, milliseconds, ratios

ROOT = Path(__file__).parents[2]
PARITY = ROOT / ".parity"
LONGER = 4
"""Times the rounds and seconds in cells that goals are for: single medians of 300 rounds differ by .03."""

LARGE = 50_000_000
"""Elements above which a tenth of the steps is clipped in the plain cell only: a round has ten steps."""


def main(arguments: list[str] | None = None) -> None:
    """Time every cell and print a table."""
    parser = parser_of(__doc__)
    shapes = list(SHAPES)
    parser.add_argument("--shapes", nargs="+", choices=shapes, default=shapes, metavar="NAME", help=", ".join(shapes))
    parser.add_argument("--scopes", nargs="+", choices=("global", "parameter"), default=["global", "parameter"])
    parser.add_argument("--rounds", type=positive, default=300, help="at most, in a cell")
    parser.add_argument("--seconds", type=float, default=1.5, help="for a cell, but at least four rounds")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-amp", action="store_true", help="without the cells with a GradScaler")
    parser.add_argument("--no-peers", action="store_true", help="without the packages of PyPI")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    torch.set_num_threads(options.threads)
    peers, note = ({}, "the packages of PyPI were left out by --no-peers") if options.no_peers else _peers(options)
    rows = []
    for row in _rows(options):
        key = (row["shape"], row["share"])
        if row["scope"] == "global" and not row["amp"]:
            row["ratios"].update(peers.get(key, {}))
        rows.append(row)
    print(note)
    print(table([cells(row) for row in rows]))
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    write(options.json, "overhead", settings, rows, [note])


def cells(row: Row) -> dict[str, str]:
    """A row of the table."""
    return {
        "shapes": f"{row['shape']} ({row['tensors']} tensors, {row['elements'] / 1e6:.2f} M)",
        "scope": row["scope"] + (", AMP" if row["amp"] else ""),
        "clipped": f"{row['rate']:.0%}",
        "torch, ms": f"{row['torch_ms']:.3g}",
        **{name: "{:.2f} ({:.2f} to {:.2f})".format(*ratio) for name, ratio in row["ratios"].items()},
    }


def _rows(options: Namespace) -> Iterator[dict[str, Any]]:
    for name in options.shapes:
        print(f"timing {name}", file=sys.stderr, flush=True)
        shapes = SHAPES[name]
        gradients = Gradients(shapes, options.device, slots=1 if options.device == "cpu" else CUDA_STEPS)
        for scope in options.scopes:
            for amp in (False,) if options.no_amp else (False, True):
                for share in SHARES:
                    if elements(shapes) > LARGE and share not in (0, 1) and (amp or scope != "global"):
                        continue
                    yield _row(Cell(name, scope, amp, share), gradients, options)


def _row(cell: Cell, gradients: Gradients, options: Namespace) -> dict[str, Any]:
    policy = autoclip.RunningQuantile(warmup_steps=1, min_threshold=LIMIT, max_threshold=LIMIT)
    clipper = autoclip.Clipper(gradients.parameters, policy, scope=cell.scope)
    clips: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch.nn.utils.clip_grad_norm_(gradients.parameters, LIMIT),
        "Clipper": clipper.step,
    }
    if cell.scope == "global":
        clips["drop-in"] = lambda: autoclip.clip_grad_norm_(gradients.parameters, LIMIT)
    factor = LONGER if cell.scope == "global" and not cell.amp else 1
    rounds, seconds = factor * options.rounds, factor * options.seconds
    taken = time_cell(cell, gradients, clips, device=options.device, rounds=rounds, seconds=seconds)
    shapes = SHAPES[cell.shape]
    return {
        **cell._asdict(),
        "tensors": len(shapes),
        "elements": elements(shapes),
        "rate": fmean(clipper.clip_rates.values()),
        "rounds": len(taken["torch"]),
        "torch_ms": milliseconds(taken["torch"]),
        "ratios": ratios(taken, "torch"),
    }


def _peers(options: Namespace) -> tuple[dict[tuple[str, float], dict[str, Spread]], str]:
    """(Shape, share) -> package -> its ratio to torch's function, and a line about where they are from."""
    if options.device != "cpu":
        return {}, "PyPI's zclip and autoclip are left out: they are compared on a CPU"
    if not (PARITY / "ready").exists():
        return {}, "PyPI's zclip and autoclip are left out: they are not in .parity, where `make parity` installs them"
    command = [
        *(sys.executable, "-P", "-m", "experiments.benchmarks.peers", "--shapes", *options.shapes),
        *("--rounds", str(options.rounds), "--seconds", str(options.seconds), "--threads", str(options.threads)),
    ]
    # PyPI's autoclip has our import name, so that its folder comes before ours.
    path = os.pathsep.join([str(PARITY / "pypi-autoclip"), str(PARITY / "packages"), str(ROOT)])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout)
    peers = {
        (row["shape"], row["share"]): {name: Spread(*ratio) for name, ratio in row["ratios"].items()}
        for row in found["rows"]
    }
    return peers, "PyPI's packages: " + ", ".join(found["versions"]) + ", each against torch in a process of their own"


if __name__ == "__main__":
    main()
