"""How much faster a sweep is with two workers or as a race, and how much of its time is not training.

    python -m experiments.benchmarks.sweep configs/sweep_corrupted_digits.yaml [KEY=VALUE ...] [--pairs 3] [--race]

Each pair is one sweep with one worker and one with two, in alternating order, each from an empty directory; with
--race there is a third, with two workers and `sweep.race=true`. Own work is the share of the wall time in which a
worker was not training (waiting for the others included): from the start of the command to its end, with all imports.
The shorter the runs, the larger it is.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from experiments.benchmarks.results import Row, parser_of, positive, table, write
from experiments.benchmarks.timing import alternate, spread


class Variant(NamedTuple):
    """A way of doing the same sweep, and the one that its wall time is compared with."""

    name: str
    workers: int
    race: bool
    base: str | None


VARIANTS = (
    Variant("1 worker", 1, race=False, base=None),
    Variant("2 workers", 2, race=False, base="1 worker"),
    Variant("2 workers, race", 2, race=True, base="2 workers"),
)


class Timing(NamedTuple):
    """One sweep: seconds of the whole command, and of the training in it, summed over the workers; number of runs."""

    wall: float
    training: float
    runs: int


def main(arguments: list[str] | None = None) -> None:
    """Time the pairs and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--pairs", type=positive, default=1)
    parser.add_argument("--race", action="store_true", help="race too, with two workers")
    options = parser.parse_intermixed_args(arguments)
    if not options.config.is_file():
        parser.error(f"{options.config}: no such file; take one of configs/sweep_*.yaml")
    variants = [variant for variant in VARIANTS if options.race or not variant.race]
    timings: dict[str, list[Timing]] = {variant.name: [] for variant in variants}

    def run(variant: Variant) -> float:
        timing = _time(options.config, options.overrides, variant)
        timings[variant.name].append(timing)
        print(f"{variant.name}: {timing.wall:.1f} s, {timing.runs} runs", file=sys.stderr, flush=True)
        return timing.wall

    contenders = {variant.name: partial(run, variant) for variant in variants}
    alternate(contenders, options.pairs, seconds=0.0, least=options.pairs)
    rows = [_row(variant, timings) for variant in variants]
    print(table([cells(row) for row in rows]))
    settings = {"config": str(options.config), "overrides": options.overrides, "pairs": options.pairs}
    write(options.json, "sweep", settings, rows)


def cells(row: Row) -> dict[str, str]:
    """A row of the table."""
    ratio = "" if row["base"] is None else "{:.3f} ({:.3f} to {:.3f})".format(*row["ratio"]) + f" of {row['base']}"
    return {
        "sweep": row["variant"],
        "runs": str(row["runs"]),
        "seconds": f"{row['seconds']:.1f}",
        "own work": "{:.1%} ({:.1%} to {:.1%})".format(*row["own_work"]),
        "ratio": ratio,
    }


def _row(variant: Variant, timings: Mapping[str, list[Timing]]) -> dict[str, Any]:
    own = timings[variant.name]
    ratio = None
    if variant.base is not None:
        ratio = spread([one.wall / base.wall for one, base in zip(own, timings[variant.base], strict=True)])
    return {
        "variant": variant.name,
        "workers": variant.workers,
        "runs": own[0].runs,
        "seconds": median(one.wall for one in own),
        "own_work": spread([1 - one.training / (variant.workers * one.wall) for one in own]),
        "base": variant.base,
        "ratio": ratio,
    }


def _time(config: Path, overrides: list[str], variant: Variant) -> Timing:
    place = Path(tempfile.mkdtemp(prefix="autoclip-benchmark-"))
    race = ["sweep.race=true"] if variant.race else []
    try:
        command = [sys.executable, "-m", "autoclip", "sweep", str(config), *overrides, *race]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--workers", str(variant.workers), "--output-dir", str(place / "out")],
            capture_output=True,
            text=True,
            check=False,
        )
        wall = time.monotonic() - began
        if done.returncode:
            raise SystemExit(done.stderr)
        summaries = list((place / "out" / "runs").glob("*/*/seed-*/summary.json"))
        return Timing(wall, sum(json.loads(path.read_text())["seconds"] for path in summaries), len(summaries))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
