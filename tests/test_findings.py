"""Each finding is made once: the terminal, JSON and the page show the same sentences."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autoclip.cli import app
from autoclip.lab.config import load_config
from autoclip.report.sweep_text import report
from tests.report_runs import loaded, metrics_of, write_run, write_sweep
from tests.test_sweep_text import CONFIG, Finished


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_of_a_log(tmp_path: Path) -> None:
    norms = np.random.default_rng(0).lognormal(0, 0.5, 300).tolist()
    norms[40:60] = [float("nan")] * 10 + [0.0] * 10
    log = tmp_path / "log.csv"
    log.write_text("step,grad_norm\n" + "".join(f"{step},{norm}\n" for step, norm in enumerate(norms)) + "300,3,x\n")
    page = tmp_path / "page.html"
    (found,) = json.loads(call("suggest", log, "-f", "json", "--html", page))["suggestions"]
    texts = [one["text"] for one in found["findings"]]
    printed, shown = call("suggest", log).splitlines(), loaded(page).text
    assert [text.partition(":")[0] for text in texts] == [
        "recommended",
        "why",
        "doubt",
        "doubt",
        "log",
        "log",
        "drift",
        "spikes",
    ]
    assert printed[: len(texts)] == texts
    assert all(text in shown for text in texts)


def test_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "seed-0", metrics_of(nonfinite=[50]), policy={"kind": "probing_quantile"})
    told = json.loads(call("report", run, "-f", "json"))
    shown = loaded(run / "report.html").text
    assert len(told["findings"]) > 3
    assert all(one["text"] in shown for one in told["findings"])
    assert {*told["notes"]} <= {one["text"] for one in told["findings"]}


def test_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {"none": ({"kind": "none"}, 3.0, True), "fixed 1": ({"kind": "fixed", "threshold": 1.0}, 1.0, False)}
    results = write_sweep(tmp_path, kinds)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    sweep = Finished(load_config(tmp_path / "tiny.yaml"), tmp_path, results)
    told = json.loads(call("report", tmp_path, "-f", "json"))["findings"]
    shown = loaded(tmp_path / "report.html").text
    report(sweep, "text")  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    report(sweep, "json")  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out)["findings"] == told
    assert told
    assert all(one["text"] in shown and one["text"] in printed for one in told)
