"""What a clipper does under every policy, scope, response and mode, step by step, to be kept while its code changes.

    python -m tests.golden            # writes tests/golden.csv anew: only where a result was meant to change
    python -m tests.golden --bits     # a hash of all thresholds, records and gradients for each case, down to the bit

The table has six digits, so that it holds on other machines. Hashes are compared between two checkouts on one machine.
"""

import csv
import hashlib
import sys
import warnings
from collections.abc import Iterator
from itertools import product
from math import inf, nan
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import autoclip
from autoclip import Clipper, ClipRecord

TABLE = Path(__file__).parent / "golden.csv"
STEPS = 48
KEPT = range(3, STEPS, 4)
SCOPES = ("global", "group", "parameter")
RESPONSES = ("scale", "reciprocal", "skip")
MODES = ("norm", "value", "agc")
ARGUMENTS = {
    "none": {},
    "fixed": {"threshold": 1.5},
    "center_multiple": {"window": 10},
    "skip_step": {"window": 16},
    "autoclip": {"history": 20},
    "probing_quantile": {"window": 12},
}
OWN_WARMUP = {"none", "fixed", "probing_quantile", "loss_aware_quantile"}
SHAPES = {"body.weight": (4, 3), "body.bias": (4,), "head.weight": (2, 4), "head.scale": ()}


def cases() -> Iterator[tuple[str, str, str, str]]:
    """Kind of the policy, scope, response and mode."""
    return product(autoclip.POLICIES, SCOPES, RESPONSES, MODES)


def policy(kind: str) -> autoclip.Policy:
    """A policy of a kind that is active after eight steps at most."""
    given = ARGUMENTS.get(kind, {})
    return autoclip.POLICIES[kind](**given, **({} if kind in OWN_WARMUP else {"warmup_steps": 8}))


def gradients() -> Iterator[dict[str, Tensor | None]]:
    """Falling norms with spikes, a missing, a zero, a NaN and an infinite gradient, and one step without any."""
    random = np.random.default_rng(5)
    for step in range(STEPS):
        size = 3 * 0.97**step * random.lognormal(0, 0.4) * (50 if step in (5, 17, 30) else 1)
        made: dict[str, Tensor | None] = {
            name: torch.tensor(size * random.normal(size=shape), dtype=torch.float32) for name, shape in SHAPES.items()
        }
        if step in (9, 40):
            made["head.scale"] = torch.tensor(nan if step == 9 else inf)
        if step == 12:
            made["body.bias"] = None
        if step == 14:
            made["body.weight"] = torch.zeros(4, 3)
        if step == 22:
            made = dict.fromkeys(SHAPES)
        yield made


def follow(kind: str, scope: str, response: str, mode: str) -> Iterator[tuple[ClipRecord, dict[str, Tensor | None]]]:
    """Record of each step, and the gradients that it left; half way the state goes to another clipper."""
    random = np.random.default_rng(6)
    named = {
        name: torch.nn.Parameter(torch.tensor(random.normal(size=shape), dtype=torch.float32))
        for name, shape in SHAPES.items()
    }
    groups = {"body": "^body"} if scope == "group" else None

    def clipper() -> Clipper:
        return Clipper(
            named.items(),
            policy(kind),
            scope=scope,
            response=response,
            mode=mode,
            groups=groups,
        )

    losses = 2 * 0.98 ** np.arange(STEPS) + 0.1 * random.normal(size=STEPS) + (np.arange(STEPS) > 35)
    clip = clipper()
    for step, made in enumerate(gradients()):
        if step == STEPS // 2:
            state, clip = clip.state_dict(), clipper()
            clip.load_state_dict(state)
        for name, gradient in made.items():
            named[name].grad = gradient
        clip.step(loss=float(losses[step]))
        assert clip.last is not None
        yield clip.last, {name: parameter.grad for name, parameter in named.items()}


def row(*case: str) -> list[str]:
    """A case, the sum of all gradients that were left, and threshold and coefficient of every fourth step."""
    total, kept = 0.0, []
    for step, (record, left) in enumerate(follow(*case)):
        finite = [tensor for tensor in left.values() if tensor is not None and bool(tensor.isfinite().all())]
        total += sum(float(tensor.abs().double().sum()) for tensor in finite)
        if step in KEPT:
            kept += [f"{record.threshold:.6g}", f"{record.coefficient:.6g}"]
    return [*case, f"{total:.6g}", *kept]


def bits(*case: str) -> str:
    """A hash of all records and of all gradients that were left."""
    digest = hashlib.sha256()
    for record, left in follow(*case):
        digest.update(repr(record).replace(f", skipped_by={record.skipped_by!r}", "").encode())  # as it was before
        for name, gradient in left.items():
            digest.update(name.encode() + (b"" if gradient is None else gradient.numpy().tobytes()))
    return digest.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the awkward gradients
    if "--bits" in sys.argv:
        for one in cases():
            print(*one, bits(*one))
    else:
        with TABLE.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(row(*one) for one in cases())
