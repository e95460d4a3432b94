import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from autoclip.lab.config import ExperimentConfig, load_config
from autoclip.report.sweep_findings import PICKED
from autoclip.report.sweep_text import report
from autoclip.sweeps.candidates import Candidate, fixed, of_percentile
from autoclip.sweeps.outcome import Result
from tests.scores import score_with

CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.5}
steps: 10
sweep: {seeds: [0, 1], lr_multipliers: [1]}
"""


@dataclass
class Finished:
    """What the report asks of a sweep."""

    config: ExperimentConfig
    output_dir: Path
    found: Sequence[Result]
    trials: Any = field(default_factory=lambda: SimpleNamespace(optuna=SimpleNamespace(user_attrs={"reference": 0.0})))

    @property
    def settings(self):
        return self.config.sweep

    def results(self):
        return list(self.found)

    def share_of_steps(self):
        return 0.4321


def scored(candidate, area, loss, seeds=2):
    runs = [
        score_with(seed=seed, aulc=area + 0.01 * seed, validation_loss=loss, bounded_loss=loss, initial_loss=1.0)
        for seed in range(seeds)
    ]
    return Result(candidate, tuple(runs), 0.0)


@pytest.fixture
def finished(tmp_path):
    def make(results, *changes):
        path = tmp_path / "tiny.yaml"
        path.write_text(CONFIG)
        return Finished(load_config(path, changes), tmp_path, results)

    return make


FAST = scored(fixed(5), area=0.2, loss=0.3)
STEADY = scored(of_percentile("running_quantile", 50), area=0.4, loss=0.1)


def test_the_picks_are_named_with_what_each_would_change(finished, capsys):
    between = scored(fixed(1), area=0.205, loss=0.12)
    assert report(finished([FAST, STEADY, between]), "text") == 0
    printed = capsys.readouterr().out
    assert (
        "recommended: fixed 1, the balanced pick: nearest to the best in training loss, instability and validation "
        "loss together, of all 3 candidates; no run of them failed\n"
    ) in printed
    assert (
        "note: fastest: fixed 5: mean training loss 0.2050 instead of 0.2100; instability 0.300 instead of 0.120; "
        "validation loss 0.3000 instead of 0.1200\n"
    ) in printed
    assert "note: steadiest: running_quantile p50: mean training loss 0.4050 instead of 0.2100" in printed
    assert "with one seed left out, the balanced pick is the same in 2 of 2 cases\n" in printed
    assert "race" not in printed


@pytest.mark.parametrize(
    ("prefer", "name", "pick"),
    [
        ("speed", "fixed 5", "fastest"),
        ("balanced", "fixed 1", "balanced"),
        ("stability", "running_quantile p50", "steadiest"),
    ],
)
def test_what_is_preferred_is_recommended_and_every_pick_has_its_file(finished, capsys, prefer, name, pick):
    sweep = finished([FAST, STEADY, scored(fixed(1), area=0.205, loss=0.12)], f"sweep.prefer={prefer}")
    assert report(sweep, "text") == 0
    assert f"recommended: {name}, the {pick} pick" in capsys.readouterr().out
    files = {path.name: path.read_text() for path in sweep.output_dir.glob("*.yaml")}
    assert files["recommended.yaml"] == files[f"{pick}.yaml"]
    policies = {name: yaml.safe_load(files[f"{name}.yaml"])["clip"]["policy"] for name in PICKED}
    assert [policies[name]["kind"] for name in PICKED] == ["fixed", "running_quantile", "fixed"]
    assert (policies["fastest"]["threshold"], policies["balanced"]["threshold"]) == (5, 1)
    assert report(sweep, "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["recommended"], found["prefer"]) == (name, prefer)
    assert {name: one["candidate"] for name, one in found["picks"].items()} == {
        "fastest": "fixed 5",
        "steadiest": "running_quantile p50",
        "balanced": "fixed 1",
    }
    assert found["picks"][pick]["stays"] == 2


def test_a_pick_that_is_another_one_too_is_said_to_be(finished, capsys):
    assert report(finished([FAST]), "text") == 0
    assert "recommended: fixed 5, the balanced pick (also the fastest and the steadiest): nearest" in (
        capsys.readouterr().out
    )


def failing(candidate):
    runs = [score_with(seed=seed, aulc=0.2, validation_loss=0.3, initial_loss=1.0) for seed in range(2)]
    runs.append(score_with(seed=0, multiplier=10.0, aulc=1.0, validation_loss=1.0, initial_loss=1.0, failed=True))
    return Result(candidate, tuple(runs), 0.0)


def test_failures_at_other_rates_are_told_in_the_same_line(finished, capsys):
    assert report(finished([failing(fixed(5)), STEADY], "sweep.prefer=speed"), "text") == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("recommended")]
    assert line == (
        "recommended: fixed 5, the fastest pick: least mean training loss, but it failed in 1 of 3 runs, all at other "
        "learning rates than the configured one; --prefer balanced names one that never failed"
    )
    assert report(finished([failing(fixed(5)), STEADY]), "text") == 0
    printed = capsys.readouterr().out
    assert "recommended: running_quantile p50, the balanced pick (also the steadiest)" in printed
    assert "of the 1 of 2 candidates that never failed" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("note: fastest: fixed 5")]
    assert line.endswith("; it failed in 1 of 3 runs, all at other learning rates")
    assert report(finished([failing(fixed(5))]), "text") == 0
    assert "failed in 1 of 3 runs, all at other learning rates than the configured one, as every candidate did" in (
        capsys.readouterr().out
    )
    assert report(finished([failing(fixed(5))]), "json") == 0
    (one,) = json.loads(capsys.readouterr().out)["candidates"]
    assert (one["failed"], one["failed_at_any_rate"]) == (0, 1)


@pytest.mark.parametrize(
    ("candidate", "rates", "expected"),
    [
        (fixed(5), (0.0, 0.0), "fixed 5 (no clipping: it clipped no step at any learning rate), the"),
        (
            of_percentile("running_quantile", 50),
            (0.0, 0.0),
            "running_quantile p50 (no clipping: it clipped no step after its warm-up at any learning rate), the",
        ),
        (fixed(5), (0.0, 0.1), "fixed 5, the"),
        (Candidate("none", {"kind": "none"}), (0.0, 0.0), "no clipping, the"),
    ],
)
def test_a_pick_that_clipped_nothing_is_said_to_be_no_clipping(finished, capsys, candidate, rates, expected):
    runs = [
        score_with(multiplier=multiplier, aulc=0.2, validation_loss=0.3, initial_loss=1.0, clip_rate=rate)
        for multiplier, rate in zip((1.0, 10.0), rates, strict=True)
    ]
    sweep = finished([Result(candidate, tuple(runs), 0.0)])
    assert report(sweep, "json") == 0
    assert json.loads(capsys.readouterr().out)["picks"]["balanced"]["no_clipping"] == (rates == (0.0, 0.0))
    assert report(sweep, "text") == 0
    printed = capsys.readouterr().out
    assert f"recommended: {expected} balanced pick" in printed
    assert "one seed: another one may give another pick" in printed


@pytest.mark.parametrize(("width", "shown"), [(60, 0), (80, 0), (110, 1), (150, 5)])
def test_the_table_has_as_many_columns_as_fit(finished, capsys, monkeypatch, width, shown):
    monkeypatch.setenv("COLUMNS", str(width))
    name = "tests.test_sweep:TwiceTheLast(tag=long)"
    results = [FAST, STEADY, scored(Candidate(name, {"kind": "fixed", "threshold": 2.0}), area=0.3, loss=0.2)]
    assert report(finished(results if width > 100 else results[:2]), "text") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    heading = next(line for line in lines if "training loss" in line)
    assert sum(part in heading for part in ("to target", "seeds")) + heading.count("+-") == shown


def test_the_snippet_is_the_clip_section_as_python(finished, capsys):
    import autoclip

    sweep = finished([FAST], "clip.mode=value", "clip.on_nonfinite=raise")
    assert report(sweep, "text") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "clipper = " in line]
    model = __import__("torch").nn.Linear(2, 1)
    names = {"autoclip": autoclip, "model": model}
    exec(line.strip(), names)
    clipper = names["clipper"]
    from_file = autoclip.Clipper(model, **autoclip.from_config(sweep.output_dir / "recommended.yaml"))
    assert repr(clipper) == repr(from_file)
    assert (clipper.mode, clipper.on_nonfinite) == (from_file.mode, from_file.on_nonfinite) == ("value", "raise")
    assert yaml.safe_load((sweep.output_dir / "recommended.yaml").read_text())["clip"]["mode"] == "value"


def test_names_from_outside_are_shown_as_they_are(finished, capsys):
    name = "tests.test_sweep:TwiceTheLast(tag=[/x] [red]:smile:)"
    odd = scored(Candidate(name, {"kind": "running_quantile"}), area=0.2, loss=0.3)
    sweep = finished([odd])
    sweep.output_dir /= "so[/x]"
    sweep.output_dir.mkdir(parents=True)
    assert report(sweep, "text") == 0
    printed = capsys.readouterr().out
    assert f"recommended: {name}, the balanced pick" in printed
    assert any(line.startswith(f"{name} * ") for line in printed.splitlines())
    assert f"files in {sweep.output_dir}: recommended.yaml, fastest.yaml" in printed


@pytest.mark.parametrize("name", ["1e3", "0o7", "no", "null", "1:30", "~", "é"])
def test_the_recommended_section_is_read_back_as_it_was(finished, capsys, name):
    import autoclip

    sweep = finished([FAST], "clip.scope=group", f"clip.groups={{'{name}': '.*'}}")
    assert report(sweep, "text") == 0
    assert autoclip.from_config(sweep.output_dir / "recommended.yaml")["groups"] == {name: ".*"}


def test_a_race_tells_its_steps_and_gives_no_spread_for_one_seed(finished, capsys):
    alone = scored(fixed(1), area=0.9, loss=0.9, seeds=1)
    assert report(finished([FAST, alone], "sweep.race=true"), "text") == 0
    printed = capsys.readouterr().out
    assert "the race took 43% of the full grid's training steps" in printed
    (row,) = [line for line in printed.splitlines() if "fixed 1 " in line]
    assert row.split() == [
        "fixed",
        "1",
        "0.9000",
        "-",
        "0.900",
        "-",
        "0.9000",
        "-",
        "0",
        "of",
        "1",
        "25%",
        "80%",
        "1",
        "-",
    ]
    assert report(finished([FAST, alone], "sweep.race=true"), "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["share_of_steps"] == 0.4321
    assert [one["seeds"] for one in found["candidates"]] == [2, 1]


def test_a_candidate_with_a_single_seed_of_a_race_is_no_pick(finished, capsys):
    lucky = scored(of_percentile("running_quantile", 10), area=0.1, loss=0.01, seeds=1)
    assert report(finished([FAST, lucky], "sweep.race=true"), "text") == 0
    printed = capsys.readouterr().out
    assert "note: steadiest" not in printed
    assert "of the 1 of 2 candidates that never failed and had 2 seeds of the race" in printed
