"""Run directories and sweeps with values and bytes changed at random: a report, or one error; never anything else."""

import json
import random

import pytest

from autoclip.errors import RunError, UsageError
from autoclip.report.writing import write_report
from tests.report_runs import Page, metrics_of, write_run, write_sweep

NASTY = [
    None, True, -1, 0, 10**400, -1e308, 1e308, float("nan"), float("inf"), "", "</style><script>alert(1)</script>",
    "\ud800", "\x00\x1b[2J", "../../etc", [], [[]], {}, {"a": {"b": []}}, [None] * 3, "x" * 5000,
]  # fmt: skip


def places(value, path=()):
    """Every place in nested JSON values."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield from places(entry, (*path, key))


def with_change(generator, value):
    """The value with one thing in it replaced or removed."""
    path = generator.choice(list(places(value)))
    new = generator.choice(NASTY)
    if not path:
        return new
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if generator.random() < 0.2:
        del holder[path[-1]]
    else:
        holder[path[-1]] = new
    return value


def damage(generator, path):
    """Change one file, in its values where it holds any, else in its bytes."""
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and generator.random() < 0.7:
        lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
        place = generator.randrange(len(lines))
        lines[place] = json.dumps(with_change(generator, json.loads(lines[place])))
        path.write_text("\n".join(lines) + "\n")
        return
    changed = bytearray(content)
    for _ in range(generator.randrange(1, 6)):
        changed[generator.randrange(len(changed))] = generator.randrange(256)
    if generator.random() < 0.3:
        del changed[generator.randrange(len(changed)) :]
    path.write_bytes(changed)


LAYERS = "".join(json.dumps({"step": step, "norms": {"a.weight": 1.0, "b.weight": 0.5}}) + "\n" for step in (0, 9))
TOTAL = json.dumps({"name": "x", "seeds": [{"seed": 0, "status": "failed"}]})


@pytest.mark.filterwarnings("ignore")  # matplotlib's, of what it has to draw
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_damaged_directory_is_reported_on_or_refused(tmp_path, outcomes, kind):
    generator = random.Random(11)
    for trial in range(30):
        directory = tmp_path / str(trial)
        if kind == "run":
            write_run(directory / "seed-0", metrics_of(40))
            (directory / "seed-0" / "layers.jsonl").write_text(LAYERS)
            (directory / "summary.json").write_text(TOTAL)
        else:
            write_sweep(directory, {"fixed 1": ({"kind": "fixed", "threshold": 1.0}, 1.0, False)}, multipliers=(1,))
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        for path in generator.sample(files, generator.randrange(1, 4)):
            damage(generator, path)
        try:
            write_report(directory)
        except (UsageError, RunError) as error:
            complaint = str(error)
            outcomes.add(f"report on a damaged {kind}", "one error")
        else:
            complaint = ""
            page = Page((directory / "report.html").read_text())
            assert not [tag for tag, _ in page.tags if tag == "script"]
            outcomes.add(f"report on a damaged {kind}", "reported")
        assert complaint.count("\n") <= 1, "one line, or a headline with one"
