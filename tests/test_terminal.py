import ast
import json
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from autoclip.cli import app
from autoclip.terminal import aligned, console, laid_out, print_code
from tests.terminals import run_in_terminal, seen

ROOT = Path(__file__).parent.parent
CONFIG = """
name: an_experiment_of_a_few_steps
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.05, momentum: 0.9}
steps: 12
seeds: [0, 1]
clip: {scope: parameter, policy: {kind: running_quantile, percentile: 12.5, rate: 0.25, warmup_steps: 5}}
log: {layers_every: 5, sinks: [jsonl, console]}
sweep: {thresholds: [0.1, 1.0], percentiles: [], seeds: [0], lr_multipliers: [1]}
"""
LONG = (
    "kind=running_quantile,percentile=12.5,rate=0.25,warmup_steps=50,warmup_threshold=0.125,min_threshold=0.25,"
    "max_threshold=123456"
)
RUN = ("run", "{}/tiny.yaml", "--output-dir", "{}/out", "--resume")
COMMANDS = {
    "run": (RUN, 0),
    "run that fails": ((*RUN, "task.args.fail_at=7"), 1),
    "no such file": (("run", "{}/" + "a-long-name/" * 9 + "experiment.yaml"), 2),
    "suggest": (("suggest", "{}/log.jsonl"), 0),
    "replay": (("replay", "{}/log.jsonl"), 0),
    "replay of long names": (("replay", "{}/log.jsonl", "--policy", LONG, "--policy", "kind=zclip"), 0),
    "sweep": (("sweep", "{}/tiny.yaml", "--output-dir", "{}/sweep"), 0),
}

POLICY = "autoclip.RunningQuantile(percentile=50, warmup_steps=50, min_threshold=0.25, max_threshold=float('inf'))"
GROUPS = "groups={'early': '^[01](,|\\\\))', 'late': \"it's, {4\"}"
CLIPPER = f"clipper = autoclip.Clipper(model, {POLICY}, {GROUPS})"


@pytest.fixture
def folder(monkeypatch):
    """A configuration, and a log whose norms drift and spike, of every second step; its path is short."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("COLUMNS", raising=False)
    with TemporaryDirectory() as directory:
        (Path(directory) / "tiny.yaml").write_text(CONFIG)
        norms = np.random.default_rng(0).lognormal(0, 0.5, 300) * 20 ** np.linspace(0, 1, 300)
        norms[200] *= 100
        rows = [{"step": 2 * index, "grad_norm": norm, "loss": 2.0} for index, norm in enumerate(norms.tolist())]
        (Path(directory) / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield Path(directory)


@pytest.mark.parametrize(("command", "columns"), [*((name, 80) for name in COMMANDS), ("suggest", 120)])
def test_a_terminal_shows_all_that_a_pipe_gets_in_lines_that_fit(folder, command, columns):
    words, code = COMMANDS[command]
    words = [word.replace("{}", str(folder)) for word in words]
    ended, written = run_in_terminal([sys.executable, "-m", "autoclip", *words], columns)
    assert ended == code, written
    lines = seen(written)
    widest = max(map(cell_len, lines))
    assert widest <= columns, written
    assert widest > 80 or columns == 80  # more room is used
    assert "…" not in written
    together = "".join("".join(lines).split())
    piped = CliRunner().invoke(app, words).stdout
    left_out = {"policy"} | ({"+-", "target"} if (command, columns) == ("sweep", 80) else set())
    assert {word for word in piped.split() if word not in together} <= left_out
    if command == "run":
        assert re.search(r"seed112/12loss[\d.]+norm[\d.]+threshold[\d.]+clipped\d+%,left\d+%", together), written


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_a_call_is_broken_at_its_arguments_and_means_the_same(width: int) -> None:
    text = laid_out(CLIPPER, width)
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(CLIPPER))
    assert max(map(len, text.splitlines())) <= max(width, len(f"    {GROUPS},"))


def test_a_call_takes_no_more_lines_than_it_needs() -> None:
    code = "clipper = autoclip.attach(optimizer, autoclip.Fixed(threshold=1.0))"
    assert laid_out(code, len(code)) == code
    assert laid_out(code, 60) == "clipper = autoclip.attach(\n    optimizer, autoclip.Fixed(threshold=1.0)\n)"
    assert laid_out(code, 40) == "clipper = autoclip.attach(\n    optimizer,\n    autoclip.Fixed(threshold=1.0),\n)"
    rows = [("name", "figure"), ("名前", "1"), ("x", "12345678")]
    assert aligned(rows, "<>") == ["name    figure", "名前         1", "x     12345678"]


@pytest.mark.parametrize("text", ["a" * 30, "it's, (" * 3, "\\n\n\t" * 3, "名" * 15, ""])
def test_arguments_of_every_kind_are_kept(text: str) -> None:
    code = f"call({{'key': {text!r}}}, (1,), x={text!r}, y=f({text!r}), **z({text!r}))"
    broken = laid_out(code, 50)
    assert ast.dump(ast.parse(broken)) == ast.dump(ast.parse(code))
    assert max(map(cell_len, broken.splitlines())) <= 50


@pytest.mark.parametrize(
    "code", ["<Own policy's repr with 'quotes at 0x12>", "x" * 50, "call('unfinished", "call()" * 9]
)
def test_what_cannot_be_broken_is_left_as_it_is(code: str) -> None:
    assert laid_out(code, 20) == code


def test_a_pipe_has_no_width_unless_the_environment_sets_one(capsys, monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    sentence = "[bold]word[/bold] :smile: " * 40
    console().print(sentence)
    print_code(console(), CLIPPER)
    assert capsys.readouterr().out == f"{sentence}\n    {CLIPPER}\n"
    monkeypatch.setenv("COLUMNS", "80")
    console(stderr=True).print(sentence)
    print_code(console(stderr=True), CLIPPER)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert max(map(len, captured.err.splitlines())) <= 80
    assert captured.err.split()[:4] == sentence.split()[:4]
    monkeypatch.setenv("COLUMNS", "0")
    assert console().width == 80
