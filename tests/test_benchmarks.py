"""Every benchmark runs in its smallest form; what its figures rely on holds."""

import json
import sys
from pathlib import Path

import pytest
import torch

from autoclip import POLICIES, ClipRecord
from autoclip.sinks import JSONLSink
from experiments.benchmarks import imports, overhead, policies, report, shapes, suggest, sweep, training, walk
from experiments.benchmarks.steps import SHARES, Cell, Gradients, norms_of_step, time_cell
from experiments.benchmarks.timing import alternate, ratios

ROOT = Path(__file__).parents[1]
SWEEP = """
name: tiny
task: {target: tests.tiny_task:TinyTask}
optimizer: {kind: sgd, lr: 0.1, momentum: 0.9}
sweep: {none: false, thresholds: [1], percentiles: [], seeds: [0], lr_multipliers: [1]}
"""


def rows_of(benchmark, path, *arguments):
    benchmark.main([*arguments, "--json", str(path)])
    return json.loads(path.read_text())["rows"]


def is_spread(values):
    middle, low, high = values
    return 0 < low <= middle <= high


def test_the_shapes_are_those_of_the_models():
    sizes = {name: (len(found), shapes.elements(found)) for name, found in shapes.SHAPES.items()}
    assert sizes["gpt-124m"] == (148, 124_439_808)
    assert sizes["resnet-50"] == (161, 25_557_032)
    assert sizes["tiny-1000"] == (1000, 64_000)


def test_contenders_take_turns_and_ratios_are_of_single_rounds():
    order = []
    alternate({name: lambda name=name: order.append(name) or 1.0 for name in "abc"}, rounds=3, seconds=0.0, least=2)
    assert "".join(order) == "abcbca"  # nobody follows itself
    assert ratios({"base": [1.0, 2.0, 4.0], "one": [3.0, 4.0, 4.0]}, "base") == {"one": (2.0, 1.5, 2.5)}


@pytest.mark.parametrize("scope", ["global", "parameter"])
@pytest.mark.parametrize("share", SHARES)
def test_gradients_have_the_norms_of_their_cell(scope, share):
    gradients = Gradients([(3, 4), (5,), (2, 2)], "cpu", slots=1)
    clipped = []
    for step in range(10):
        gradients.prepare(0, norms_of_step(Cell("gpt-1m", scope, False, share), 3, step))
        gradients.give(0)
        norms = [float(parameter.grad.norm()) for parameter in gradients.parameters]
        own = [float(torch.tensor(norms).norm())] if scope == "global" else norms
        assert all(not 0.7 < norm < 1.5 for norm in own)
        clipped += [norm > 1 for norm in own]
    assert sum(clipped) == pytest.approx(share * len(clipped))


@pytest.mark.parametrize("amp", [False, True])
def test_every_contender_gets_the_same_gradients(amp):
    gradients = Gradients([(8,), (4, 4)], "cpu", slots=1)
    seen = {"one": [], "other": []}

    def clip(name):
        seen[name].append([parameter.grad.clone() for parameter in gradients.parameters])
        for parameter in gradients.parameters:
            parameter.grad.zero_()

    clips = {name: lambda name=name: clip(name) for name in seen}
    time_cell(Cell("gpt-1m", "global", amp, 0.1), gradients, clips, device="cpu", rounds=2, seconds=0.0)
    for one, other in zip(seen["one"], seen["other"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert 0.3 < float(torch.cat([tensor.flatten() for tensor in one]).norm()) < 3  # unscaled


def test_overhead_and_the_page(tmp_path, capsys):
    small = ("--shapes", "gpt-1m", "--rounds", "1", "--scopes", "global", "--no-amp", "--no-peers")
    rows = rows_of(overhead, tmp_path / "overhead.json", *small)
    assert [row["rate"] for row in rows] == pytest.approx(SHARES)
    assert all(is_spread(ratio) for row in rows for ratio in row["ratios"].values())
    page = tmp_path / "RESULTS.md"
    report.main(["--results", str(tmp_path), "--output", str(page)])
    assert f"{rows[0]['ratios']['Clipper'][0]:.2f} (" in page.read_text()


def test_policies(tmp_path, monkeypatch):
    monkeypatch.setattr(policies, "FEW", 200)
    rows = rows_of(policies, tmp_path / "policies.json", "--counts", "200", "1000", "--rounds", "1", "--all")
    assert {type(policy) for policy in policies.USUAL + policies.OTHERS} == set(POLICIES.values())
    assert len(rows) == 2 * len(policies.USUAL + policies.OTHERS)
    assert all(is_spread(row["microseconds"]) for row in rows)


def test_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "keep_freed_memory", lambda: None)  # would last for the tests to come
    rows = rows_of(training, tmp_path / "training.json", "--models", "deep-mlp", "--rounds", "1")
    assert [row["clipping"] for row in rows] == ["none", "torch", "step", "attach", "item", "none again"]
    assert all(is_spread(row["steps_per_second"]) for row in rows)


def test_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(imports, "IMPORTS", (imports.Import("import json"),))
    rows = rows_of(imports, tmp_path / "imports.json", "--rounds", "1")
    assert [row["what"] for row in rows] == ["import json", "python", "autoclip --help"]


@pytest.mark.slow
def test_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "VARIANTS", sweep.VARIANTS[:1])
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    (row,) = rows_of(sweep, tmp_path / "sweep.json", str(tmp_path / "sweep.yaml"), "steps=20", "--race")
    assert (row["runs"], row["base"], row["ratio"]) == (1, None, None)
    assert 0 < row["own_work"][0] < 1


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        (["none,3.0,2.0", "probing_quantile,2.0,1.0"], "rank 1 by convergence, 1 by instability, 1 by both"),
        (["none,3.0,2.0"], "probing_quantile (from 1 seeds) is no candidate of this sweep"),
    ],
)
def test_a_suggestion_is_looked_up_in_a_sweep(candidates, words, tmp_path, monkeypatch, capsys):
    norms = torch.randn(300, generator=torch.Generator().manual_seed(0)).exp().tolist()
    with JSONLSink(tmp_path / "runs" / "none" / "lr-x1" / "seed-0") as sink:
        for step, norm in enumerate(norms):
            sink.log(ClipRecord(step, "active", norm, float("inf"), 1.0, False, False, True, 1 / (1 + step)))
    (tmp_path / "trials.csv").write_text("\n".join(["candidate,convergence,instability", *candidates]))
    monkeypatch.setattr(sys, "argv", ["suggest", str(tmp_path)])
    suggest.main()
    assert words in capsys.readouterr().out


def test_bad_input_ends_with_a_line(capsys):
    for benchmark, argument in ((overhead, "--rounds=0"), (sweep, "nowhere.yaml"), (report, "--results=nowhere")):
        with pytest.raises(SystemExit) as ended:
            benchmark.main([argument])
        assert ended.value.code == 2
        assert "error:" in capsys.readouterr().err


def test_goals_are_judged_by_the_worst_median():
    def row(share, ratio):
        return {"scope": "global", "amp": False, "share": share, "elements": 2e6, "ratios": {"Clipper": [ratio] * 3}}

    rows = [row(0.0, 0.6), row(0.0, 0.7), row(1.0, 1.04)]
    judged = report.goals({"benchmark": "overhead", "settings": {"device": "cpu"}, "rows": rows})
    assert [(goal.measured, goal.cells()["holds"]) for goal in judged] == [(0.7, "no"), (1.04, "yes")]


def test_the_walk_of_a_step_names_the_files_in_order():
    files = list(dict.fromkeys(file for file, _ in walk.walk(walk.CASES["running quantile"]())))
    assert files.index("clipper/clipper.py") < files.index("policies/running_quantile.py") < files.index("history.py")
    assert sys.getprofile() is None
