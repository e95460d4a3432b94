import json
from pathlib import Path

import numpy as np
import pytest

from autoclip import replay
from autoclip.errors import UsageError
from autoclip.policies import POLICIES
from autoclip.report.trace_page import trace_page
from autoclip.report.writing import write_report
from autoclip.traces import NormTrace
from autoclip.tuning.suggest import suggest
from tests.report_runs import Page


def trace(**changes) -> NormTrace:
    generator = np.random.default_rng(0)
    norms = np.exp(generator.normal(0, 0.3, 600))
    fields = {"steps": np.arange(600), "norms": norms, "source": "by hand", **changes}
    return NormTrace(**fields)


def test_the_page_of_a_trace():
    norms = trace().norms.copy()
    norms[300], norms[400] = 80.0, np.nan
    text, pictures = trace_page([suggest(trace(norms=norms, losses=np.geomspace(3, 0.1, 600)))], "a title")
    page = Page(text)
    assert page.is_whole()
    assert [one.name for one in pictures] == ["norms", "norm_histogram", "clip_rate", "loss"]
    assert len(page.images) == 4
    for words in (
        "Gradient norms of by hand",
        "recommended: autoclip.ProbingQuantile()",
        "kind: probing_quantile",
        "clipper = autoclip.attach(optimizer, autoclip.ProbingQuantile())",
        "95 % confidence intervals",
        "a replay cannot show",
    ):
        assert words in page.text


def test_the_page_of_a_training_that_broke_down_begins_with_that():
    norms = trace().norms.copy()
    norms[400:] = np.nan
    text, _ = trace_page([suggest(trace(norms=norms))], "t")
    told = Page(text).text
    assert told.count("the training broke down at step 400") == 1
    assert told.index("the training broke down") < told.index("once the cause is found: autoclip.ProbingQuantile()")
    assert "recommended:" not in told


def test_a_threshold_in_the_log_has_a_picture_of_its_own():
    thresholds = np.full(600, 1.0)
    thresholds[:10] = np.nan
    _, pictures = trace_page([suggest(trace(thresholds=thresholds))], "t")
    assert [one.name for one in pictures] == ["norms", "norms_logged", "norm_histogram", "clip_rate"]
    assert "%" not in pictures[1].caption  # where its warm-up ends is not known


def test_the_clip_rate_of_the_suggested_policy_is_that_of_its_replay():
    norms = trace().norms.copy()
    norms[[3, 200, 201]] = np.nan, 0.0, np.inf
    found = suggest(trace(norms=norms))
    _, pictures = trace_page([found], "t")
    parameters = {name: value for name, value in found.policy.items() if name != "kind"}
    expected = replay(norms, POLICIES[found.policy["kind"]](**parameters))
    rate, left = f"{expected.clip_rate:.1%}", f"{expected.mean_coefficient:.1%}"
    told = f"After the warm-up {rate} of the steps were clipped, with a mean coefficient of {left}."
    assert told in pictures[0].caption


def test_an_interval_without_a_known_end_is_drawn_to_the_edge_and_said():
    text, pictures = trace_page([suggest(trace(norms=trace().norms[:200], steps=np.arange(200)))], "t")
    assert "to unknown" in Page(text).text
    assert "one that reaches the edge has no known end" in pictures[1].caption
    assert pictures[1].png


def test_several_logs_share_a_page():
    text, pictures = trace_page([suggest(trace()), suggest(trace(source="<b>other</b>"))], "t")
    assert [one.name for one in pictures] == [
        f"{name}_{number}" for number in (1, 2) for name in ("norms", "norm_histogram", "clip_rate")
    ]
    assert "<b>other" not in text
    assert "<b>other</b>" in Page(text).text
    assert "Gradient norms of 2 logs" in text


def test_a_sparse_log_is_said_to_be_one():
    one = trace(steps=np.arange(0, 6000, 10), notes=("the last line is torn and left out",))
    text, pictures = trace_page([suggest(one)], "t")
    assert "One step in 10 was logged" in pictures[0].caption
    assert "the last line is torn and left out" in Page(text).text


@pytest.mark.parametrize("count", [20, 119])
def test_a_short_log_has_the_pictures_that_it_is_enough_for(count):
    _, pictures = trace_page([suggest(trace(steps=np.arange(count), norms=trace().norms[:count]))], "t")
    assert {"norms", "norm_histogram"} <= {one.name for one in pictures}


def test_long_logs_keep_their_spikes_and_small_pictures(tmp_path: Path):
    generator = np.random.default_rng(0)
    norms = np.exp(generator.normal(0, 0.3, 50_000))
    norms[31_234] = 1e4
    _, pictures = trace_page([suggest(trace(steps=np.arange(50_000), norms=norms))], "t")
    assert max(len(one.png) for one in pictures) < 120_000


def test_large_logs_have_the_same_page(monkeypatch, tmp_path):
    for name in ("one", "other"):
        rows = [{"step": n, "grad_norm": norm} for n, norm in enumerate(trace().norms.tolist())]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = write_report(tmp_path)
    text, pictures = written.page.read_text(), [path.read_bytes() for path in written.pictures]
    monkeypatch.setattr("autoclip.report.beside.LARGE", 100)
    written = write_report(tmp_path)
    assert written.page.read_text() == text
    assert [path.read_bytes() for path in written.pictures] == pictures


def test_what_is_wrong_with_large_logs_is_told_as_of_small_ones(monkeypatch, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "grad_norm": 2.0}\n' * 9)
    told = []
    for large in (20_000_000, 100):
        monkeypatch.setattr("autoclip.report.beside.LARGE", large)
        with pytest.raises(UsageError) as refused:
            write_report(tmp_path)
        told.append(str(refused.value))
    assert told[0] == told[1]
