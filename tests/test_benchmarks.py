import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autoclip import POLICIES, ClipRecord
from autoclip.sinks import JSONLSink
from experiments.benchmarks import imports, overhead, policies, report, shapes, suggest, sweep, training, walk
from experiments.benchmarks.results import table, write
from experiments.benchmarks.steps import SHARES, Cell, Gradients, norms_of_step, time_cell
from experiments.benchmarks.timing import alternate, ratios, spread

ROOT = Path(__file__).parents[1]


def document(path):
    return json.loads(path.read_text())


def assert_spread(values):
    middle, low, high = values
    assert low <= middle <= high


@pytest.mark.parametrize(
    ("name", "tensors", "elements"),
    [
        ("gpt-1m", 52, 1_006_336),
        ("gpt-11m", 76, 10_844_160),
        ("gpt-124m", 148, 124_439_808),
        ("resnet-50", 161, 25_557_032),
        ("tiny-1000", 1000, 64_000),
    ],
)
def test_the_shapes_are_those_of_the_models(name, tensors, elements):
    assert (len(shapes.SHAPES[name]), shapes.elements(shapes.SHAPES[name])) == (tensors, elements)


def test_contenders_take_turns():
    order = []
    contenders = {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}
    taken = alternate(contenders, rounds=3, seconds=0.0, least=2)
    assert "".join(order) == "abcbca"  # nobody follows itself
    assert taken == {name: [1.0, 1.0] for name in "abc"}


def test_ratios_are_of_single_rounds():
    found = ratios({"base": [1.0, 2.0, 4.0], "one": [3.0, 4.0, 4.0]}, "base")
    assert found == {"one": (2.0, 1.5, 2.5)}
    assert spread([7.0]) == (7.0, 7.0, 7.0)


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
    assert len(seen["one"]) == 31
    for one, other in zip(seen["one"], seen["other"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert 0.3 < float(torch.cat([tensor.flatten() for tensor in one]).norm()) < 3  # unscaled


def test_overhead(tmp_path, capsys):
    path = tmp_path / "overhead.json"
    overhead.main(["--shapes", "gpt-1m", "--rounds", "2", "--no-peers", "--json", str(path)])
    found = document(path)
    rows = found["rows"]
    assert {(row["scope"], row["amp"], row["share"]) for row in rows} == {
        (scope, amp, share) for scope in ("global", "parameter") for amp in (False, True) for share in SHARES
    }
    for row in rows:
        assert row["rate"] == pytest.approx(row["share"])
        assert list(row["ratios"]) == ["Clipper", "drop-in"] if row["scope"] == "global" else ["Clipper"]
        assert row["torch_ms"] > 0
        for ratio in row["ratios"].values():
            assert_spread(ratio)
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["cores"] >= 1
    assert "left out" in found["notes"][0]
    assert "gpt-1m (52 tensors, 1.01 M)" in capsys.readouterr().out


def test_overhead_says_that_the_packages_of_pypi_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(overhead, "PARITY", tmp_path)
    overhead.main(["--shapes", "gpt-1m", "--rounds", "1", "--scopes", "parameter", "--no-amp"])
    assert "`make parity` installs them" in capsys.readouterr().out


@pytest.mark.skipif(not (ROOT / ".parity" / "ready").exists(), reason="`make parity` installs the packages of PyPI")
def test_overhead_with_the_packages_of_pypi(tmp_path):
    path = tmp_path / "overhead.json"
    overhead.main(["--shapes", "gpt-1m", "--rounds", "1", "--scopes", "global", "--no-amp", "--json", str(path)])
    for row in document(path)["rows"]:
        assert list(row["ratios"]) == ["Clipper", "drop-in", "PyPI autoclip", "PyPI zclip"]
    assert "zclip 1.0.0" in document(path)["notes"][0]


def test_policies(tmp_path, monkeypatch):
    monkeypatch.setattr(policies, "FEW", 200)
    path = tmp_path / "policies.json"
    policies.main(["--counts", "200", "1000", "--rounds", "3", "--all", "--json", str(path)])
    rows = document(path)["rows"]
    assert len(rows) == 2 * len(policies.USUAL + policies.OTHERS)
    for row in rows:
        assert_spread(row["microseconds"])
        assert row["microseconds"][1] > 0
        assert (row["over_few"] is None) == (row["count"] == 200)
        if row["over_few"] is not None:
            assert_spread(row["over_few"])
    sizes = {row["count"]: row["bytes"] for row in rows if row["policy"] == "AutoClip(percentile=10)"}
    assert sizes[1000] > sizes[200] + 800 * 8


def test_every_policy_is_measured():
    assert {type(policy) for policy in policies.USUAL + policies.OTHERS} == set(POLICIES.values())


def test_only_the_usual_policies_go_far_unless_all_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(policies, "FEW", 100)
    path = tmp_path / "policies.json"
    for options, far in (([], len(policies.USUAL)), (["--all"], len(policies.USUAL + policies.OTHERS))):
        policies.main(["--counts", "100", "200", "--rounds", "1", *options, "--json", str(path)])
        assert sum(row["count"] == 200 for row in document(path)["rows"]) == far


def test_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "keep_freed_memory", lambda: None)  # would last for the tests to come
    path = tmp_path / "training.json"
    training.main(["--models", "deep-mlp", "--rounds", "3", "--json", str(path)])
    rows = document(path)["rows"]
    assert [row["clipping"] for row in rows] == ["none", "torch", "step", "attach", "item", "none again"]
    for row in rows:
        assert_spread(row["steps_per_second"])
        assert row["steps_per_second"][1] > 0
        assert_spread(row["overhead"])
        assert (row["rate"] is None) == (row["clipping"] not in ("step", "attach"))
    assert rows[0]["overhead"] == [0.0, 0.0, 0.0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    code = """
import resource
from experiments.benchmarks.timing import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        bytearray(64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    before, after = map(int, printed.split())
    assert before > 10
    assert after < before / 10


def test_clipping_by_items_is_clipping():
    weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    weights[0].grad, weights[1].grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    assert training.clip_by_items(weights, 3.5) == pytest.approx(7.0)
    torch.testing.assert_close([weight.grad for weight in weights], [torch.tensor([1.0, 1.5]), torch.tensor([3.0])])


def test_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(
        imports, "IMPORTS", (imports.Import("import json"), imports.Import("import autoclip", "import json"))
    )
    path = tmp_path / "imports.json"
    imports.main(["--rounds", "1", "--json", str(path)])
    rows = document(path)["rows"]
    assert [row["what"] for row in rows] == ["import json", "import autoclip", "python", "autoclip --help"]
    for row in rows:
        assert_spread(row["seconds"])
        assert row["seconds"][1] > 0


def test_the_slowest_modules_are_those_beyond_torch():
    code = "import json\nimport autoclip"
    printed = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    ).stderr
    found = dict(imports.slowest_modules(printed.replace("| json\n", "| torch\n")))
    assert found
    assert "site" not in found
    assert all(seconds > 0 for seconds in found.values())
    assert any(name.startswith("autoclip") for name in found)


def timed_sweep(folder):
    path, config = folder / "sweep.json", folder / "sweep.yaml"
    config.write_text(
        "name: tiny\n"
        "task: {target: tests.tiny_task:TinyTask}\n"
        "optimizer: {kind: sgd, lr: 0.1, momentum: 0.9}\n"
        "sweep: {none: false, thresholds: [1], percentiles: [], seeds: [0], lr_multipliers: [1]}\n"
    )
    sweep.main([str(config), "steps=150", "--race", "--json", str(path)])
    return document(path)["rows"]


def test_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "VARIANTS", sweep.VARIANTS[:1])
    (row,) = timed_sweep(tmp_path)
    assert (row["runs"], row["base"], row["ratio"]) == (1, None, None)
    assert 0 < row["own_work"][0] < 1
    assert row["seconds"] > 0


@pytest.mark.slow
def test_sweeps_of_two_workers_and_races(tmp_path):
    rows = timed_sweep(tmp_path)
    assert [row["variant"] for row in rows] == ["1 worker", "2 workers", "2 workers, race"]
    assert [row["runs"] for row in rows] == [1, 1, 1]
    assert [row["base"] for row in rows] == [None, "1 worker", "2 workers"]
    for row in rows[1:]:
        assert_spread(row["ratio"])
        assert row["ratio"][1] > 0


@pytest.mark.parametrize(
    ("benchmark", "arguments"),
    [
        (overhead, ["--shapes", "gpt-5"]),
        (overhead, ["--rounds", "0"]),
        (training, ["--models", "none"]),
        (policies, ["--counts", "0"]),
        (sweep, ["nowhere.yaml"]),
        (report, ["--results", "nowhere"]),
    ],
)
def test_bad_input_ends_with_a_line(benchmark, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("benchmark", [overhead, training])
def test_no_gpu_is_an_error(benchmark, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--device", "cuda"])
    assert ended.value.code == 2
    assert "no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("load", "notes"), [(0.9, ["one"]), (99.0, ["one", "Measured on a busy machine (load 99.0 on 2"])]
)
def test_a_busy_machine_is_noted(load, notes, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    path = tmp_path / "results.json"
    write(path, "overhead", {}, [], ["one"])
    assert [note.partition(" cores")[0] for note in document(path)["notes"]] == notes


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


def test_a_table_is_aligned():
    assert table([{"a": "1", "long": "x"}, {"a": "234"}]).splitlines() == [
        "| a   | long |",
        "| --- | ---- |",
        "| 1   | x    |",
        "| 234 |      |",
    ]


def test_the_page_is_made_of_the_figures(tmp_path):
    results, page = tmp_path / "results", tmp_path / "RESULTS.md"
    overhead.main(
        [
            *("--shapes", "gpt-1m", "--rounds", "1", "--scopes", "global", "--no-amp", "--no-peers"),
            *("--json", str(results / "overhead.json")),
        ]
    )
    policies.main(["--counts", "100", "--rounds", "2", "--json", str(results / "policies.json")])
    report.main(["--results", str(results), "--output", str(page)])
    text = page.read_text()
    ratio = document(results / "overhead.json")["rows"][0]["ratios"]["Clipper"][0]
    assert f"{ratio:.2f} (" in text
    assert "Clipper, models, nothing clipped: at most 0.65" in text
    assert torch.__version__ in text
    assert text.index("clip_grad_norm_") < text.index("What a policy costs")


def row_of_overhead(share, ratio, *, elements=2e6):
    return {"scope": "global", "amp": False, "share": share, "elements": elements, "ratios": {"Clipper": [ratio] * 3}}


def test_goals_are_judged_by_the_worst_median():
    rows = [row_of_overhead(0.0, 0.6), row_of_overhead(0.0, 0.7), row_of_overhead(1.0, 1.04)]
    judged = report.goals({"benchmark": "overhead", "settings": {"device": "cpu"}, "rows": rows})
    assert [(goal.measured, goal.cells()["holds"]) for goal in judged] == [(0.7, "no"), (1.04, "yes")]
    on_gpu = report.goals({"benchmark": "overhead", "settings": {"device": "cuda"}, "rows": rows})
    assert [(goal.measured, goal.bound) for goal in on_gpu] == [(1.04, 1.0)]


def test_a_policy_that_slows_down_or_grows_is_noticed():
    rows = [
        {"policy": "A()", "count": count, "microseconds": [cost] * 3, "over_few": ratio, "bytes": size}
        for count, cost, ratio, size in (
            (1_000, 1.0, None, 10),
            (100_000, 2.0, None, 1000),
            (10_000_000, 3.0, [1.5] * 3, 100_000),
        )
    ]
    judged = report.goals({"benchmark": "policies", "settings": {}, "rows": rows})
    assert [goal.cells()["holds"] for goal in judged] == ["yes", "no", "no"]
    assert [goal.measured for goal in judged] == [3.0, 1.5, 100.0]


def test_the_walk_of_a_step_names_the_files_in_order():
    calls = walk.walk(walk.CASES["running quantile"]())
    files = list(dict.fromkeys(file for file, _ in calls))
    assert {"clipper/clipper.py", "gradients/norms.py", "policies/running_quantile.py"} <= set(files)
    assert files.index("clipper/clipper.py") < files.index("policies/running_quantile.py") < files.index("history.py")
    assert sys.getprofile() is None
