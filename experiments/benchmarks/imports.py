"""How long `import autoclip` takes beyond `import torch`, and the command's `--help`.

    python -m experiments.benchmarks.imports [--rounds 5]

Each import is timed in a fresh process, after what it is measured beyond: the time of `import torch` varies by more
from process to process than ours takes at all. The processes take turns. `import autoclip` alone brings neither torch
nor the clipper, so that the import of the clipper is measured too. Where more than .1 s is needed beyond torch, the
modules that took longest are listed, as `python -X importtime` counts them.
"""

import subprocess
import sys
import time
from functools import partial
from typing import Any, NamedTuple

from experiments.benchmarks.results import Row, parser_of, positive, table, write
from experiments.benchmarks.timing import alternate, spread

GOAL = 0.1
SLOWEST = 8


class Import(NamedTuple):
    """A statement that is timed, and the one before it."""

    statement: str
    before: str = ""


IMPORTS = (
    Import("import torch"),
    Import("import autoclip", before="import torch"),
    Import("from autoclip import Clipper, attach", before="import torch"),
    Import("import autoclip"),
)
COMMANDS = {"python": ("-c", ""), "autoclip --help": ("-m", "autoclip", "--help")}
"""Whole processes -> arguments of Python."""


def main(arguments: list[str] | None = None) -> None:
    """Time the processes and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args(arguments)
    contenders = {
        **{f"{one.statement} {one.before}": partial(_time_import, one) for one in IMPORTS},
        **{name: partial(_time_process, command) for name, command in COMMANDS.items()},
    }
    for run in contenders.values():
        run()  # writes the byte code, and reads the files into the cache
    taken = alternate(contenders, options.rounds, seconds=0.0, least=options.rounds)
    rows = [
        *(_row(one, taken[f"{one.statement} {one.before}"]) for one in IMPORTS),
        *(_row(Import(name), taken[name]) for name in COMMANDS),
    ]
    print(table([cells(row) for row in rows]))
    for row in rows:
        if row["slowest"]:
            print(f"{row['what']}: " + ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in row["slowest"]))
    write(options.json, "imports", {"rounds": options.rounds}, rows)


def cells(row: Row) -> dict[str, str]:
    """A row of the table."""
    return {
        "what": f"`{row['what']}`" + (f" after `{row['before']}`" if row["before"] else ""),
        "seconds": "{:.3f} ({:.3f} to {:.3f})".format(*row["seconds"]),
    }


def _row(one: Import, taken: list[float]) -> dict[str, Any]:
    seconds = spread(taken)
    return {
        "what": one.statement,
        "before": one.before,
        "seconds": seconds,
        "slowest": _slowest(one) if one.before and seconds.median > GOAL else [],
    }


def _time_import(one: Import) -> float:
    """Seconds of a statement in a fresh process."""
    lines = [one.before, "import time", "began = time.perf_counter()", one.statement]
    return float(_python("-c", "\n".join([*lines, "print(time.perf_counter() - began)"])))


def _time_process(arguments: tuple[str, ...]) -> float:
    """Seconds of a process from its start to its end."""
    began = time.perf_counter()
    _python(*arguments)
    return time.perf_counter() - began


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def _slowest(one: Import) -> list[tuple[str, float]]:
    command = [sys.executable, "-X", "importtime", "-c", f"{one.before}\n{one.statement}"]
    return slowest_modules(subprocess.run(command, capture_output=True, text=True, check=True).stderr)


def slowest_modules(printed: str) -> list[tuple[str, float]]:
    """Modules by the seconds that each took without those that it imports; those that came with torch do not count.

    Args:
        printed: by `python -X importtime`: "import time: self [us] | cumulative | imported package", indented.
    """
    found: list[tuple[str, float]] = []
    for line in printed.splitlines():
        own, _, name = line.removeprefix("import time:").split("|") if line.count("|") == 2 else ("", "", "")
        if own.strip().isdigit():
            found.append((name.strip(), 1e-6 * int(own)))
            if name == " torch":  # on the first level: all before it came with torch
                found = []
    return sorted(found, key=lambda module: -module[1])[:SLOWEST]


if __name__ == "__main__":
    main()
