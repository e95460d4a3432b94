"""What `on_spike: rewind` saves: runs with broken batches that go back, against runs without broken batches.

    python -m experiments.rewinds [--seeds 5]

Digits with 1 % of the batches times 100, and a character LSTM whose batches 200 to 219 have shuffled targets; clipped
at 10, and under the default policy. Prints the validation losses of all seeds.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoclip.lab.config import load_config
from autoclip.lab.experiment import Interrupt, make_task, run_quietly
from autoclip.lab.run_summary import read_summary
from experiments.char_lm import CharLanguageModel

STRETCH = range(200, 220)


class BrokenStretch(CharLanguageModel):
    """The targets of a stretch of batches are in any order."""

    def batches(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """As those of the task, but for the stretch."""
        noise = torch.Generator().manual_seed(seed)
        for number, (inputs, targets) in enumerate(super().batches(seed)):
            order = torch.randperm(targets.numel(), generator=noise)
            yield inputs, targets.flatten()[order].view_as(targets) if number in STRETCH else targets


BROKEN = "experiments.rewinds:BrokenStretch"
RUNS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "digits": (
        "configs/corrupted_digits.yaml",
        {
            "broken, on": ["on_spike=continue"],
            "broken, back": ["on_spike=rewind", "max_rewinds=30"],
            "clean": ["task.args.corrupted_share=0.0"],
        },
    ),
    "characters": (
        "configs/char_lm.yaml",
        {
            "broken, on": [f"task.target={BROKEN}", "on_spike=continue"],
            "broken, back": [f"task.target={BROKEN}", "on_spike=rewind", "max_rewinds=30"],
            "clean": [],
        },
    ),
}


def main() -> None:
    """Print a line for each kind of run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", choices=RUNS, default=list(RUNS))
    given = parser.parse_args()
    for task in given.tasks:
        path, kinds = RUNS[task]
        for policy in ("{kind: fixed, threshold: 10}", "{kind: probing_quantile}"):
            for kind, overrides in kinds.items():
                common = ["checkpoint_every=20", "evaluate_every=null", "log={}", "threads=1", f"clip.policy={policy}"]
                summaries = [trained(path, [*common, *overrides], seed) for seed in range(given.seeds)]
                losses = " ".join(f"{summary['validation_loss'] or float('nan'):.4g}" for summary in summaries)
                rewinds = " ".join(str(len(summary["rewinds"])) for summary in summaries)
                print(f"{task}, {policy}, {kind}: {losses}; rewinds {rewinds}", flush=True)


def trained(path: str, overrides: list[str], seed: int) -> dict[str, Any]:
    """Summary of one run."""
    config = load_config(Path(path), [*overrides, f"seeds=[{seed}]"])
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / f"seed-{seed}"
        run_quietly(config, make_task(config), seed, directory, Interrupt())
        return read_summary(directory)


if __name__ == "__main__":
    main()
