import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from autoclip.errors import RunError, UsageError
from autoclip.lab.config import load_config
from autoclip.policies import Policy
from autoclip.report.sweep_text import report
from autoclip.sweeps.job import train
from autoclip.sweeps.study import KeyedStudy
from autoclip.sweeps.sweep import REFERENCE, Sweep
from tests.sweeps import finish

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:non-finite gradient norm"),
]

ROOT = Path(__file__).parent.parent
CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.5, momentum: 0.9}
steps: 12
clip: {on_nonfinite: propagate, policy: {kind: running_quantile, warmup_steps: 5}}
sweep:
  thresholds: [0.1, 1.0]
  percentiles: []
  seeds: [0, 1]
  lr_multipliers: [0.2, 1]
"""
WIDE = ("steps=40", "sweep.percentiles=[10, 50, 90]", "sweep.kinds=[running_quantile]", "sweep.seeds=[0, 1, 2, 3]")


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def configure(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return lambda *changes: load_config(path, changes)


def trials(out, name="tiny"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{out / 'study.db'}").get_trials(deepcopy=False)


def swept(config, out):
    """A sweep in this process, without workers."""
    out.mkdir(exist_ok=True)
    return finish(Sweep(config, out, f"sqlite:///{out / 'study.db'}"))


def test_where_every_candidate_fails_nothing_is_recommended(configure, tmp_path, capsys):
    sweep = swept(configure("task.args={nan_from: 3}"), tmp_path / "out")
    assert report(sweep, "text") == 1
    assert "every candidate failed" in capsys.readouterr().out
    assert report(sweep, "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["recommended"], found["picks"]) == (None, None)
    assert {one["instability"] for one in found["candidates"]} == {1.0}
    assert {one["failed"] for one in found["candidates"]} == {2}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"trials.csv", "pareto.png"} <= names
    assert "recommended.yaml" not in names
    assert not sweep.trials.optuna.best_trials


def test_without_thresholds_the_reference_comes_from_a_grid_of_its_own(configure, tmp_path):
    sweep = swept(configure("sweep.thresholds=[]", "sweep.lr_multipliers=[1]"), tmp_path / "out")
    trained = {trial.user_attrs["candidate"] for trial in trials(tmp_path / "out", "tiny: runs")}
    assert trained == {"fixed 1", "fixed 5", "fixed 10", "none"}
    assert [trial.user_attrs["key"] for trial in trials(tmp_path / "out")] == ["none"]
    assert [one.candidate.name for one in sweep.results()] == ["none"]


def test_the_reference_stays_frozen(configure, tmp_path):
    sweep = swept(configure(), tmp_path / "out")
    before = sweep.reference({})
    sweep.trials.optuna.set_user_attr(REFERENCE, 0.125)
    again = swept(configure(), tmp_path / "out")
    assert again.reference({}) == 0.125 != before


def test_a_task_without_a_finite_loss_at_the_beginning_is_one_error(configure, tmp_path, monkeypatch):
    from tests.tiny_task import TinyTask

    out, calls, evaluate = tmp_path / "out", [], TinyTask.evaluate

    def late(self, model):
        calls.append(model)
        return evaluate(self, model) if model in calls[:-1] else float("inf")

    monkeypatch.setattr(TinyTask, "evaluate", late)
    with pytest.raises(RunError, match=r"seed-0 has no finite validation loss from before the first step"):
        swept(configure(), out)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: tiny\nlater: 1\n", r"unknown key.*"),
        ("name: [tiny\n", r"must be valid YAML.*"),
    ],
)
def test_a_sweep_begun_by_another_version_is_refused(configure, tmp_path, text, told):
    swept(configure("sweep.thresholds=[1.0]", "sweep.none=false", "sweep.seeds=[0]"), tmp_path / "out")
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    study.set_user_attr("configuration", text)
    with pytest.raises(
        UsageError, match=rf"begun by another version of autoclip.*{told}choose another --output-dir"
    ) as met:
        swept(configure(), tmp_path / "out")
    assert "\n" not in str(met.value)


def test_an_error_in_the_task_ends_the_sweep_and_the_candidate_is_tried_again(configure, tmp_path, monkeypatch):
    from tests.tiny_task import TinyTask

    out = tmp_path / "out"
    with monkeypatch.context() as broken:
        broken.setattr(TinyTask, "evaluate", lambda self, model: 1 / 0)
        with pytest.raises(RunError, match="ZeroDivisionError"):
            swept(configure(), out)
    sweep = swept(configure(), out)
    assert {trial.state for trial in trials(out, "tiny: runs")} == {TrialState.COMPLETE}
    assert [one.candidate.name for one in sweep.results()] == ["fixed 0.1", "fixed 1", "none"]


def test_a_race_recommends_what_the_full_grid_does_with_at_most_half_of_the_steps(configure, tmp_path, capsys):
    full = swept(configure(*WIDE), tmp_path / "full")
    race = swept(configure(*WIDE, "sweep.race=true"), tmp_path / "race")
    assert full.share_of_steps() <= 1
    assert race.share_of_steps() <= 0.5
    seeds = {one.candidate.name: one.seeds for one in race.results()}
    assert list(seeds) == [one.candidate.name for one in full.results()]
    assert min(seeds.values()) == 1
    assert max(seeds.values()) == 4
    first = {trial.user_attrs["candidate"] for trial in trials(race.output_dir, "tiny: runs")[: len(seeds)]}
    assert first == set(seeds), "every candidate has the first seed before any has a second"
    recommended = []
    for sweep in (full, race):
        assert report(sweep, "json") == 0
        recommended.append(json.loads(capsys.readouterr().out)["recommended"])
    assert recommended[0] == recommended[1]
    assert seeds[recommended[1]] == 4
    assert report(race, "text") == 0
    printed = capsys.readouterr().out
    assert f"the race took {race.share_of_steps():.0%} of the full grid's training steps" in printed
    # The same runs are the same in both.
    for path in race.output_dir.glob("runs/*/*/*/metrics.jsonl"):
        assert path.read_bytes() == (full.output_dir / path.relative_to(race.output_dir)).read_bytes()


def test_a_race_continues_where_it_was_left(configure, tmp_path):
    config = configure(*WIDE, "sweep.race=true")
    whole = swept(config, tmp_path / "whole")
    out = tmp_path / "parts"
    out.mkdir()
    ended = 0
    for _ in range(100):
        part = Sweep(config, out, f"sqlite:///{out / 'study.db'}")
        if part.is_done():
            break
        job = part.next_job(())
        assert job is not None
        part.finish(job, train(job))
        ended += 1
    assert ended == len(trials(whole.output_dir, "tiny: runs"))
    assert [(one.candidate.name, one.scores) for one in untimed(part)] == [
        (one.candidate.name, one.scores) for one in untimed(whole)
    ]


def untimed(sweep):
    return [replace(one, scores=tuple(replace(score, seconds=0.0) for score in one.scores)) for one in sweep.results()]


def test_refinements_follow_the_grid_and_lie_within_their_bounds(configure, tmp_path):
    changes = ("sweep.percentiles=[50]", "sweep.kinds=[running_quantile]", "sweep.seeds=[0]")
    grid = swept(configure(*changes), tmp_path / "out")
    assert grid.is_done()
    sweep = swept(configure(*changes, "sweep.refine_trials=6"), tmp_path / "out")
    found = trials(tmp_path / "out")
    assert [trial.user_attrs["key"] for trial in found] == [
        *grid.candidates,
        *(f"refinement {number}" for number in range(1, 7)),
    ]
    for number, trial in enumerate(found[4:], 1):
        policy = trial.user_attrs["policy"]
        assert policy["kind"] == trial.params["form"]
        assert trial.user_attrs["candidate"].endswith(f"(refined {number})")
        if policy["kind"] == "fixed":
            assert 0.01 <= policy["threshold"] <= 10
            assert policy["threshold"] == pytest.approx(trial.params["threshold"], rel=1e-3)
        else:
            assert 1 <= policy["percentile"] <= 99.9
            assert policy["warmup_steps"] == 5
    assert len({json.dumps(trial.user_attrs["policy"]) for trial in found}) == len(found)
    assert [one.candidate.name for one in sweep.results()][4:] == [trial.user_attrs["candidate"] for trial in found[4:]]
    # What the grid found is where the sampler starts from.
    assert [trial.params.get("form") for trial in found[:4]] == ["fixed", "fixed", None, "running_quantile"]
    assert found[3].params["percentile"] == 50
    assert report(sweep, "text") == 0
    assert len((tmp_path / "out" / "trials.csv").read_text().splitlines()) == 1 + 10
    # Fewer refinements than there are is no change.
    assert swept(configure(*changes, "sweep.refine_trials=2"), tmp_path / "out").is_done()


def test_a_lost_refinement_goes_on_with_the_value_that_was_proposed(configure, tmp_path, monkeypatch):
    changes = ("sweep.percentiles=[50]", "sweep.kinds=[running_quantile]", "sweep.seeds=[0]", "sweep.refine_trials=1")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(KeyedStudy, "tell", killed)
        with pytest.raises(KeyboardInterrupt):
            swept(configure(*changes), tmp_path / "out")
    lost = trials(tmp_path / "out")[4]
    assert lost.state == TrialState.RUNNING
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/*/*/metrics.jsonl")}
    swept(configure(*changes), tmp_path / "out")
    again = trials(tmp_path / "out")[4]
    assert len(trials(tmp_path / "out")) == 5
    assert (again.state, again.params) == (TrialState.COMPLETE, lost.params)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "its finished runs were read, not repeated"
    assert len(list((tmp_path / "out").glob("runs/*/*/*/metrics.jsonl"))) == len(before)


def test_a_candidate_whose_runs_are_finished_is_completed_by_the_next_command(configure, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Sweep, "settle", lambda self: None)
        assert not swept(configure(), tmp_path / "out").is_done()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/*/*/metrics.jsonl")}
    assert swept(configure(), tmp_path / "out").is_done()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_without_thresholds_and_percentiles_there_is_nothing_to_refine(configure, tmp_path):
    with pytest.raises(UsageError, match="no thresholds and no percentiles to refine"):
        swept(configure("sweep.thresholds=[]", "sweep.refine_trials=1"), tmp_path / "out")


def test_finished_runs_keep_no_checkpoints(configure, tmp_path):
    swept(configure(), tmp_path / "out")
    directories = list((tmp_path / "out").glob("runs/*/*/seed-*"))
    assert len(directories) == 3 * 2 * 2
    for directory in directories:
        names = {path.name for path in directory.iterdir()}
        assert names == {"config.yaml", "metrics.jsonl", "layers.jsonl", "summary.json"}


def test_a_refinement_after_a_race_is_measured_as_the_finalists_were(configure, tmp_path):
    changes = ("sweep.race=true", "sweep.refine_trials=1", "sweep.kinds=[running_quantile]", "sweep.percentiles=[50]")
    sweep = swept(configure(*changes), tmp_path / "out")
    *grid, refined = sweep.results()
    assert refined.seeds == max(one.seeds for one in grid)


@pytest.mark.slow
def test_a_script_is_swept_like_a_task(configure, tmp_path):
    config = configure(
        "task=null",
        "optimizer=null",
        "steps=60",
        "clip.policy={kind: running_quantile, warmup_steps: 2}",
        "sweep.seeds=[0]",
        "sweep.none=false",
        "sweep.thresholds=[1.0]",
        "sweep.lr_multipliers=[1, 3]",
        "sweep.command=[python, experiments/train_script.py, --steps=60, --clip-config, '{clip_config}', "
        "--output-dir, '{run_dir}', --seed, '{seed}', --lr-multiplier, '{lr_multiplier}']",
    )
    sweep = swept(config, tmp_path / "out")
    assert [one.candidate.name for one in sweep.results()] == ["fixed 1"]
    runs = sorted(path.relative_to(tmp_path / "out" / "runs") for path in tmp_path.glob("out/runs/*/*/*/metrics.jsonl"))
    assert [str(path.parent) for path in runs] == ["fixed-1/lr-x1/seed-0", "fixed-1/lr-x3/seed-0"]
    rates = [json.loads((tmp_path / "out" / "runs" / path).read_text().splitlines()[0])["lr"] for path in runs]
    assert rates[1] == pytest.approx(3 * rates[0])
    assert report(sweep, "text") == 0


class TwiceTheLast(Policy):
    """A policy of a user's own."""

    def _start(self, warmup_norms):
        self.latest = warmup_norms[-1]

    def _threshold(self):
        return 2 * self.latest

    def _observe(self, norm, loss):
        self.latest = norm


def test_a_policy_of_ones_own_is_a_candidate(configure, tmp_path, capsys):
    own = "sweep.policies=[{kind: 'tests.test_sweep:TwiceTheLast', warmup_steps: 2}]"
    changes = ("sweep.none=false", "sweep.thresholds=[5.0]", "sweep.seeds=[0]", "sweep.lr_multipliers=[1]", "steps=60")
    sweep = swept(configure(own, *changes, "optimizer.lr=0.05"), tmp_path / "out")
    name = "tests.test_sweep:TwiceTheLast(warmup_steps=2)"
    assert [one.candidate.name for one in sweep.results()] == ["fixed 5", name]
    assert 0 < sweep.results()[1].clip_rate < 1
    assert 0 < sweep.results()[1].mean_coefficient < 1
    assert report(sweep, "text") == 0
    assert name in capsys.readouterr().out
