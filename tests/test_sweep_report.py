import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from autoclip.lab.config import ExperimentConfig, load_config
from autoclip.lab.sweep_report import report
from autoclip.tuning.candidates import Candidate, fixed, of_percentile
from autoclip.tuning.outcome import Result, result
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
    def settings(self) -> Any:
        return self.config.sweep

    def results(self) -> list[Result]:
        return list(self.found)

    def share_of_steps(self) -> float:
        return 0.4321


def scored(candidate: Candidate, area: float, loss: float, seeds: int = 2) -> Result:
    runs = [
        score_with(seed=seed, aulc=area + 0.01 * seed, validation_loss=loss, bounded_loss=loss, initial_loss=1.0)
        for seed in range(seeds)
    ]
    return result(candidate, runs, 0.0)


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Finished]:
    def make(results: Sequence[Result], *changes: str) -> Finished:
        path = tmp_path / "tiny.yaml"
        path.write_text(CONFIG)
        return Finished(load_config(path, changes), tmp_path, results)

    return make


FAST = scored(fixed(5), area=0.2, loss=0.3)
STEADY = scored(of_percentile("running_quantile", 50), area=0.4, loss=0.1)


def test_the_steadier_candidate_that_is_too_slow_is_named(finished, capsys):
    assert report(finished([FAST, STEADY]), "text") == 0
    printed = capsys.readouterr().out
    assert "recommended: fixed 5" in printed
    assert "steadier, but slower: running_quantile p50: instability 0.100, mean training loss 0.405" in printed
    assert "race" not in printed


def test_each_step_along_the_front_is_named_fastest_first(finished, capsys):
    between = scored(fixed(1), area=0.3, loss=0.2)
    assert report(finished([STEADY, FAST, between]), "text") == 0
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("steadier")]
    assert [line.split(": ")[1] for line in steps] == ["fixed 1", "running_quantile p50"]


def test_failures_of_the_recommended_at_other_rates_are_told(finished, capsys):
    runs = [score_with(seed=seed, aulc=0.2, validation_loss=0.3, initial_loss=1.0) for seed in range(2)]
    runs.append(score_with(seed=0, multiplier=10.0, aulc=1.0, validation_loss=1.0, initial_loss=1.0, failed=True))
    assert report(finished([result(fixed(5), runs, 0.0)]), "text") == 0
    assert "note: fixed 5 failed in 1 of 3 runs, all at other learning rates" in capsys.readouterr().out
    assert report(finished([result(fixed(5), runs, 0.0)]), "json") == 0
    (one,) = json.loads(capsys.readouterr().out)["candidates"]
    assert (one["failed"], one["failed_at_any_rate"]) == (0, 1)


@pytest.mark.parametrize(
    ("candidate", "rates", "expected"),
    [
        (fixed(5), (0.0, 0.0), "note: fixed 5 clipped no step at any learning rate: no clipping does as well\n"),
        (
            of_percentile("running_quantile", 50),
            (0.0, 0.0),
            "note: running_quantile p50 clipped no step after its warm-up at any learning rate: no clipping may do as",
        ),
        (fixed(5), (0.0, 0.1), None),
        (Candidate("none", {"kind": "none"}), (0.0, 0.0), None),
    ],
)
def test_a_recommended_candidate_that_clipped_nowhere_is_told(finished, capsys, candidate, rates, expected):
    runs = [
        score_with(multiplier=multiplier, aulc=0.2, validation_loss=0.3, initial_loss=1.0, clip_rate=rate)
        for multiplier, rate in zip((1.0, 10.0), rates, strict=True)
    ]
    assert report(finished([result(candidate, runs, 0.0)]), "text") == 0
    printed = capsys.readouterr().out
    assert expected in printed if expected else "clipped no step" not in printed


def test_the_runner_up_is_left_out_where_there_is_none_and_the_candidate_none_is_spelled_out(finished, capsys):
    none = scored(Candidate("none", {"kind": "none"}), area=0.21, loss=0.4)
    assert report(finished([FAST]), "text") == 0
    assert "runner-up" not in capsys.readouterr().out
    assert report(finished([FAST, none]), "text") == 0
    assert "; runner-up: no clipping" in " ".join(capsys.readouterr().out.split())
    assert report(finished([none]), "text") == 0
    assert "recommended: no clipping: lowest instability" in capsys.readouterr().out


def test_the_steadiest_of_all_has_nothing_steadier_beside_it(finished, capsys):
    assert report(finished([scored(fixed(5), area=0.4, loss=0.1), STEADY]), "text") == 0
    assert "steadier, but" not in capsys.readouterr().out


def test_the_snippet_is_the_clip_section_as_python(finished, capsys):
    import autoclip

    sweep = finished([FAST], "clip.mode=value", "clip.on_nonfinite=raise")
    assert report(sweep, "text") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "clipper = " in line]
    model = __import__("torch").nn.Linear(2, 1)
    names: dict[str, Any] = {"autoclip": autoclip, "model": model}
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
    assert f"recommended: {name}: " in printed
    (row,) = [line for line in printed.splitlines() if line.startswith("│ ")]
    assert name in row
    assert f"{sweep.output_dir}/trials.csv" in printed.replace("\n", "")


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
    assert "+-" not in row
    assert "0/1 0/1" in row
    assert report(finished([FAST, alone], "sweep.race=true"), "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["share_of_steps"] == 0.4321
    assert [one["seeds"] for one in found["candidates"]] == [2, 1]


def test_a_single_seed_of_a_race_is_not_called_steadier(finished, capsys):
    lucky = scored(of_percentile("running_quantile", 10), area=0.1, loss=0.01, seeds=1)
    assert report(finished([FAST, lucky], "sweep.race=true"), "text") == 0
    assert "steadier" not in capsys.readouterr().out
