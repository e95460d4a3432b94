"""`autoclip suggest` and `autoclip replay` on the command line."""

import json
import re

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import autoclip
from autoclip.cli import app
from autoclip.records import ClipRecord
from autoclip.report.trace_text import python_of
from autoclip.sinks import JSONLSink

STEPS = 300


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A run directory with a drifting, spiky trace."""
    directory = tmp_path_factory.mktemp("run")
    norms = np.random.default_rng(0).lognormal(0, 0.5, STEPS) * 20 ** np.linspace(0, 1, STEPS)
    norms[200] *= 100
    with JSONLSink(directory) as sink:
        for step, norm in enumerate(norms.tolist()):
            loss = 2.0 - step / STEPS
            sink.log(ClipRecord(step, "active", norm, float("inf"), 1.0, False, False, True, loss))
    return directory


def run(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def test_a_suggestion_in_words_ends_in_yaml_and_python_that_can_be_used(log):
    code, text = run("suggest", log)
    assert code == 0
    assert "300 norms, every step" in text
    assert "drift: the median of the last fifth is" in text
    section = yaml.safe_load(text[text.index("    clip:") : text.index("in a training loop:")])
    assert section == {"clip": {"policy": {"kind": "probing_quantile"}}}
    assert "autoclip.attach(optimizer, autoclip.ProbingQuantile())\n    clipper.report_loss(loss)" in text


def test_a_suggestion_as_json(log):
    code, text = run("suggest", log, "-f", "json")
    (found,) = json.loads(text)
    assert code == 0
    assert found["norms"] == STEPS
    assert found["spikes"]["value"] == pytest.approx(1 / STEPS)
    assert found["recommended"]["policy"] == {"kind": "probing_quantile"}


@pytest.mark.parametrize("last", [-300, 300])
def test_norms_over_the_whole_range_of_floats(tmp_path, last):
    norms = np.logspace(-last, last, STEPS).tolist()
    rows = "".join(json.dumps({"step": step, "gnorm": norm}) + "\n" for step, norm in enumerate(norms))
    (tmp_path / "log.jsonl").write_text(rows)
    for words in (["suggest"], ["suggest", "-f", "json"], ["suggest", "--html", tmp_path / "page.html"], ["replay"]):
        code, text = run(*words, tmp_path / "log.jsonl")
        assert code == 0, text
    code, text = run("report", tmp_path)
    assert (code, text.strip()) == (0, str(tmp_path / "report.html"))


def test_an_end_of_an_interval_that_is_not_known_is_said(log):
    _, text = run("suggest", log)
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["99"]]
    assert ", unknown]" in line
    (found,) = json.loads(run("suggest", log, "-f", "json")[1])
    assert found["percentiles"]["99"]["high"] is None


def test_a_replay_shows_a_line_for_each_policy_and_what_it_cannot_tell(log):
    code, text = run("replay", log, "--policy", "kind=fixed,threshold=5", "--policy", "kind=running_quantile")
    assert code == 0
    assert "metrics.jsonl [total_norm]: 300 norms" in text
    assert "Fixed(threshold=5.0)" in text
    assert "RunningQuantile()" in text
    assert "a replay cannot tell how training would have gone" in " ".join(text.split())


@pytest.mark.parametrize(("columns", "between"), [("80", r"\n +"), ("95", " +")])
def test_a_policy_stands_above_its_figures_where_both_do_not_fit_beside_each_other(log, monkeypatch, columns, between):
    monkeypatch.setenv("COLUMNS", columns)
    _, text = run("replay", log, "--policy", "kind=fixed,threshold=5")
    assert re.search(rf"^Fixed\(threshold=5\.0\){between}[\d.]+%  .*  5$", text, re.MULTILINE), text


def test_a_replay_as_json_is_what_the_function_returns(log):
    code, text = run("replay", log, "-f", "json")
    (found,) = json.loads(text)
    assert code == 0
    assert len(found["policies"]) == 10
    norms = [json.loads(line)["total_norm"] for line in (log / "metrics.jsonl").read_text().splitlines()]
    by_name = {one["policy"]: one for one in found["policies"]}
    assert by_name["RunningQuantile()"] == autoclip.replay(norms, autoclip.RunningQuantile()).summary()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suggest", "nowhere"], "nowhere"),
        (["replay", "nowhere"], "nowhere"),
        (["replay", ".", "--policy", "fixed"], "expected KEY=VALUE"),
        (["suggest"], "Missing argument"),
    ],
)
def test_wrong_input_is_named_and_exits_2(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, text = run(*words)
    assert code == 2
    assert message in text
    assert "Traceback" not in text


def test_a_policy_is_written_as_python_would_have_it():
    assert python_of({"kind": "fixed", "threshold": 2}) == "autoclip.Fixed(threshold=2.0)"
    written = python_of({"kind": "running_quantile", "percentile": 90, "warmup_threshold": float("inf")})
    assert eval(written, {"autoclip": autoclip}).warmup_threshold == float("inf")  # noqa: S307
