"""How far a reader has to walk to follow one step: files entered, calls, and changes of file, within the package.

    python -m experiments.benchmarks.walk [--calls CASE]

Counted by `sys.setprofile` in one step in the middle of a run over four tensors. `--calls` lists the calls of a case.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import autoclip
from experiments.benchmarks.results import table

PACKAGE = str(Path(autoclip.__file__).parent)
STEPS = 30
"""Past the first ten norms, which the default looks at by themselves."""


def network() -> torch.nn.Sequential:
    """Two layers: four tensors."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def by_hand(steps: int = STEPS, **options: Any) -> Callable[[], object]:
    """A step of a clipper called by hand, after so many others."""
    net = network()
    clipper = autoclip.Clipper(net, options.pop("policy", None), **options)
    for _ in range(steps):
        net(torch.ones(2, 4)).sum().backward()
        clipper.step(loss=1.0)
        net.zero_grad()
    net(torch.ones(2, 4)).sum().backward()
    return lambda: clipper.step(loss=1.0)


def attached(steps: int = STEPS) -> Callable[[], object]:
    """A step of an optimizer with an attached clipper that does not wait for the norm."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=True)
    clipper = autoclip.attach(optimizer, host_wait=False)
    for _ in range(steps):
        net(torch.ones(2, 4)).sum().backward()
        clipper.report_loss(1.0)
        optimizer.step()
        optimizer.zero_grad()
    net(torch.ones(2, 4)).sum().backward()
    clipper.report_loss(1.0)
    return optimizer.step


CASES: dict[str, Callable[[], Callable[[], object]]] = {
    "default policy": by_hand,
    "running quantile": lambda: by_hand(policy=autoclip.RunningQuantile(percentile=50, warmup_steps=4)),
    "warm-up, step 2": lambda: by_hand(2, policy=autoclip.RunningQuantile(percentile=50)),
    "scope parameter": lambda: by_hand(scope="parameter"),
    "attached, no host wait": attached,
}


def walk(step: Callable[[], object]) -> list[tuple[str, str]]:
    """File and function of each call within the package, in order."""
    calls: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            calls.append((code.co_filename[len(PACKAGE) + 1 :], code.co_qualname))

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return calls


def main() -> None:
    """Print a row for each case, or the calls of one."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.walk", description=__doc__)
    parser.add_argument("--calls", choices=CASES, metavar="CASE", help=f"one of {', '.join(CASES)}")
    given = parser.parse_args()
    if given.calls:
        print(*(f"{file}: {name}" for file, name in walk(CASES[given.calls]())), sep="\n")
        return
    rows = []
    for name, case in CASES.items():
        calls = walk(case())
        files = [file for file, _ in calls]
        changes = sum(one != other for one, other in pairwise(files))
        rows.append({"case": name, "files": str(len(set(files))), "calls": str(len(calls)), "changes": str(changes)})
    print(table(rows))


if __name__ == "__main__":
    main()
