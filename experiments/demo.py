"""`make demo`: what the threshold does, on two tasks, three seeds each, and a small sweep that chooses one.

Every row is one `autoclip run`; two run at a time, one thread each. Running it again continues or shows what is there.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from autoclip.records import rate_text
from autoclip.terminal import aligned, console

QUICK = "--quick" in sys.argv[1:]
"""Sixty steps of everything, to see that it works."""
OUTPUT = Path("runs/demo-quick" if QUICK else "runs/demo")
SHORT = ("steps=60",) if QUICK else ()
WORKERS = 2
SEEDS = "[0, 1, 2]"
DEAD = 0.95
"""A run whose validation loss ends above this share of the best constant predictor's has learned nothing."""

# A fixed threshold, or none, is what torch offers, so those rows treat a NaN as torch does: it is passed on.
AS_TORCH = "clip.on_nonfinite=propagate"


@dataclass(frozen=True)
class Experiment:
    """A configuration with the overrides of the demo."""

    title: str
    config: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Arm:
    """One way of clipping."""

    name: str
    overrides: tuple[str, ...]


EXPERIMENTS = (
    Experiment("digits, 1 % of the batches scaled by 100", "configs/corrupted_digits.yaml", SHORT),
    Experiment("character LSTM at learning rate 16", "configs/char_lm.yaml", ("optimizer.lr=16", *SHORT)),
)
SWEEP = (
    "configs/sweep_corrupted_digits.yaml",
    "steps=60" if QUICK else "steps=600",
    f"sweep.seeds={SEEDS}",
    "sweep.percentiles=[10, 50, 90]",
    "sweep.kinds=[running_quantile]",
)
"""The shipped sweep, made smaller."""
ARMS = (
    Arm("no clipping", ("clip.policy={kind: none}", AS_TORCH)),
    Arm("fixed 1.0", ("clip.policy={kind: fixed, threshold: 1.0}", AS_TORCH)),
    Arm("fixed 5.0", ("clip.policy={kind: fixed, threshold: 5.0}", AS_TORCH)),
    Arm("fixed 10.0", ("clip.policy={kind: fixed, threshold: 10.0}", AS_TORCH)),
    Arm("running quantile", ("clip.policy={kind: running_quantile, percentile: 50}",)),
    Arm("probing quantile", ("clip.policy={kind: probing_quantile}",)),
)


def main() -> int:
    """Run every arm of every experiment and print the tables; how far it is goes to stderr, line by line."""
    say = console(stderr=True).print
    jobs = [(experiment, arm) for experiment in EXPERIMENTS for arm in ARMS]
    # The long runs first, so that no core waits for the last of them.
    jobs.sort(key=lambda job: job[0].config != "configs/char_lm.yaml")
    pool = ThreadPoolExecutor(WORKERS)
    results = {}
    try:
        for job, seeds in zip(jobs, pool.map(_run, *zip(*jobs, strict=True)), strict=True):
            results[job] = seeds
            say(f"{len(results)} of {len(jobs)} trained: {job[0].title}, {job[1].name}")
    except KeyboardInterrupt:
        say(f"interrupted; running it again continues in {OUTPUT}")
        return 130
    finally:
        pool.shutdown(cancel_futures=True)
    for experiment in EXPERIMENTS:
        console().print(f"\n{_table(experiment, {arm: results[experiment, arm] for arm in ARMS})}")
    console().print(f"run directories: {OUTPUT}/*/*/seed-*\n")
    sys.stdout.flush()
    say("and now a sweep, with a line for each candidate that is finished")
    return _sweep()


def _run(experiment: Experiment, arm: Arm) -> list[dict[str, Any]]:
    """Run one arm in a process of its own and return the summaries of its seeds."""
    directory = _directory(experiment, arm)
    command = [
        *(sys.executable, "-m", "autoclip", "run", experiment.config, *experiment.overrides, *arm.overrides),
        *(f"seeds={SEEDS}", "--output-dir", str(directory), "--resume"),
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode not in (0, 1) or not (directory / "summary.json").exists():
        raise SystemExit(f"{' '.join(command)}\nended with code {process.returncode}:\n{process.stderr}")
    return [json.loads(path.read_text()) for path in sorted(directory.glob("seed-*/summary.json"))]


def _sweep() -> int:
    """Run the small sweep, which prints its table and the recommended setting; return its exit code."""
    command = [
        *(sys.executable, "-m", "autoclip", "sweep", *SWEEP),
        *("--workers", str(WORKERS), "--output-dir", str(OUTPUT / "sweep")),
    ]
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the sweep was told too, and ends by itself
            continue


def _directory(experiment: Experiment, arm: Arm) -> Path:
    return OUTPUT / Path(experiment.config).stem / arm.name.replace(" ", "-")


def _table(experiment: Experiment, results: dict[Arm, list[dict[str, Any]]]) -> str:
    rows = [("clipping", "validation loss", "failed", "clip rate", "last threshold")]
    for arm, seeds in results.items():
        losses = [seed["validation_loss"] for seed in seeds if seed["validation_loss"] is not None]
        failed = sum(_failed(seed) for seed in seeds)
        rates = [seed["clip_rate"] for seed in seeds if seed["clip_rate"] is not None]
        thresholds = [seed["threshold"] for seed in seeds if seed["threshold"] is not None]
        rows.append(
            (
                arm.name,
                f"{median(losses):.3f}" if len(losses) == len(seeds) else "diverged",
                f"{failed} of {len(seeds)}",
                rate_text(median(rates) if rates else None, 0),
                f"{median(thresholds):.3g}" if thresholds else "none",
            )
        )
    caption = "medians over 3 seeds; failed: diverged, or no better than a constant prediction"
    return "\n".join([experiment.title, *aligned(rows, "<>>>>"), caption])


def _failed(seed: dict[str, Any]) -> bool:
    loss = seed["validation_loss"]
    return seed["status"] == "diverged" or loss is None or loss > DEAD * seed["trivial_loss"]


if __name__ == "__main__":
    sys.exit(main())
