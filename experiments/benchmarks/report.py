"""The page of results, RESULTS.md, made of the JSON files of the benchmarks.

python -m experiments.benchmarks.report [--results experiments/benchmarks/results] [--output .../RESULTS.md]
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import imports, overhead, policies, sweep, training
from experiments.benchmarks.results import table

HERE = Path(__file__).parent
Document = Mapping[str, Any]
CELLS: dict[str, Callable[[Mapping[str, Any]], dict[str, str]]] = {
    "overhead": overhead.cells,
    "training": training.cells,
    "policies": policies.cells,
    "imports": imports.cells,
    "sweep": sweep.cells,
}
TITLES = {
    "overhead": "A step of the clipper, over `torch.nn.utils.clip_grad_norm_`",
    "training": "A whole training step, over one without clipping",
    "policies": "What a policy costs for each norm",
    "imports": "Imports",
    "sweep": "Sweeps",
}
HEAD = """# Results of the benchmarks

`make bench` measures all of this on the CPU and writes this file from the JSON files in `results/`: do not edit
it. Spreads in brackets are the middle half. Each script says in its first lines how it measures.
"""
FLAT = 1.2
"""Ratio of two costs up to which they count as the same."""


class Goal(NamedTuple):
    """A bound that is to hold, and the worst that was measured."""

    text: str
    measured: float
    bound: float
    form: str

    def cells(self) -> dict[str, str]:
        """A row of the table."""
        holds = "yes" if self.measured <= self.bound else "no"
        return {
            "goal": f"{self.text}: at most {self.bound:{self.form}}",
            "worst": f"{self.measured:{self.form}}",
            "holds": holds,
        }


def main(arguments: list[str] | None = None) -> None:
    """Read all results of the folder and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    options = parser.parse_args(arguments)
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.results.glob("*.json"))]
    if not documents:
        parser.error(f"no JSON file in {options.results}; `make bench` writes them")
    names = list(CELLS)
    documents.sort(key=lambda document: names.index(document["benchmark"]))
    options.output.write_text("\n".join([HEAD, *(_section(document) for document in documents)]), encoding="utf-8")


def goals(document: Document) -> list[Goal]:
    """What is to hold of the results of a benchmark, as far as it was measured."""
    rows = document["rows"]
    found = {"overhead": _of_overhead, "training": _of_training, "policies": _of_policies, "imports": _of_imports}
    judge = found.get(document["benchmark"])
    return [] if judge is None else list(judge(rows, document["settings"].get("device", "cpu")))


def _section(document: Document) -> str:
    name, machine = document["benchmark"], document["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    settings = ", ".join(f"{key} {_shown(value)}" for key, value in document["settings"].items())
    held = goals(document)
    parts = [
        f"## {TITLES[name]}",
        f"`python -m experiments.benchmarks.{name}` ({settings}). {where}, threads of torch: {machine['threads']}; "
        f"torch {machine['torch']}, Python {machine['python']}; {document['date']}.",
        table([CELLS[name](row) for row in document["rows"]]),
        *document["notes"],
        *([table([goal.cells() for goal in held])] if held else []),
    ]
    return "\n\n".join(parts) + "\n"


def _shown(value: Any) -> str:
    return " ".join(str(one) for one in value) if isinstance(value, list) else str(value)


def _of_overhead(rows: list[Any], device: str) -> Iterator[Goal]:
    plain = [row for row in rows if row["scope"] == "global" and not row["amp"]]
    models = [row for row in plain if row["elements"] >= 1e6]
    tiny = [row for row in plain if row["elements"] < 1e6]
    if device == "cuda":
        yield from _worst("Clipper, any shapes, any share clipped", plain, 1.0)
        return
    yield from _worst("Clipper, models, nothing clipped", [row for row in models if row["share"] == 0], 0.65)
    yield from _worst("Clipper, models, all clipped", [row for row in models if row["share"] == 1], 1.05)
    yield from _worst("Clipper, 1000 tiny tensors, any share clipped", tiny, 1.0)


def _worst(text: str, rows: list[Any], bound: float) -> Iterator[Goal]:
    if rows:
        yield Goal(text, max(row["ratios"]["Clipper"][0] for row in rows), bound, ".2f")


def _of_training(rows: list[Any], device: str) -> Iterator[Goal]:
    model, bound = ("gpt-11m", 0.03) if device == "cpu" else ("deep-mlp", 1 / 0.98 - 1)
    own = [row for row in rows if row["model"] == model and row["clipping"] in ("step", "attach")]
    if own:
        yield Goal(f"overhead of step and attach, {model}", max(row["overhead"][0] for row in own), bound, ".1%")


def _of_policies(rows: list[Any], _: str) -> Iterator[Goal]:
    yield Goal("microseconds per norm", max(row["microseconds"][0] for row in rows), 5.0, ".2f")
    ratios = [row["over_few"][0] for row in rows if row["over_few"] is not None]
    if ratios:
        yield Goal(f"cost at later counts over that at {policies.FEW:,} norms", max(ratios), FLAT, ".2f")
    pairs = [(one, other) for one, other in pairwise(rows) if one["policy"] == other["policy"]]
    later = [(one, other) for one, other in pairs if one["count"] >= policies.FEW]
    if later:
        largest = max(other["bytes"] / one["bytes"] for one, other in later)
        yield Goal(f"memory at later counts over that at {policies.FEW:,} norms", largest, FLAT, ".2f")


def _of_imports(rows: list[Any], _: str) -> Iterator[Goal]:
    own = [row["seconds"][0] for row in rows if row["before"]]
    yield Goal("seconds beyond `import torch`", max(own), imports.GOAL, ".3f")


if __name__ == "__main__":
    main()
