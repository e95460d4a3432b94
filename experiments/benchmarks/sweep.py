"""How much faster a sweep is with two workers, and how much of its time is not training.

    python -m experiments.benchmarks.sweep configs/sweep_corrupted_digits.yaml [KEY=VALUE ...] [--pairs 3]

Each pair is one sweep with one worker and one with two, in alternating order, each from an empty directory. Own work is
the share of the wall time of a single worker in which no run was training: from the start of the command to its end,
with all imports.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Timing:
    """One sweep: seconds of the whole command, and of the training in it, summed over the workers."""

    wall: float
    training: float


def main() -> None:
    """Time the pairs and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=1)
    arguments = parser.parse_args()
    ratios, shares = [], []
    for number in range(arguments.pairs):
        order = (1, 2) if number % 2 == 0 else (2, 1)
        timings = {workers: _time(arguments.config, arguments.overrides, workers) for workers in order}
        ratios.append(timings[2].wall / timings[1].wall)
        shares.append(1 - timings[1].training / timings[1].wall)
        print(
            f"1 worker {timings[1].wall:.1f} s, 2 workers {timings[2].wall:.1f} s: ratio {ratios[-1]:.3f}; "
            f"own work of 1 worker {shares[-1]:.2%}; "
            f"of 2 workers, waiting included, {1 - timings[2].training / (2 * timings[2].wall):.2%}",
            flush=True,
        )
    print(f"{arguments.config}: median ratio {median(ratios):.3f}, median own work {median(shares):.2%}")


def _time(config: Path, overrides: list[str], workers: int) -> Timing:
    place = Path(tempfile.mkdtemp(prefix="autoclip-benchmark-"))
    try:
        command = [sys.executable, "-m", "autoclip", "sweep", str(config), *overrides]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--workers", str(workers), "--output-dir", str(place / "out")],
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.monotonic() - began
        if done.returncode:
            raise SystemExit(done.stderr)
        summaries = (place / "out" / "runs").glob("*/*/seed-*/summary.json")
        return Timing(wall, sum(json.loads(path.read_text())["seconds"] for path in summaries))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
