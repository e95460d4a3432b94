import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from typer.testing import CliRunner

import autoclip
from autoclip.cli import app
from autoclip.errors import RunError, UsageError
from autoclip.lab.config import load_config
from autoclip.sweeps.clusters import asked_for, make_engine
from autoclip.sweeps.driver import run_sweep
from autoclip.sweeps.engine import GivenExecutor, ProcessPool, results
from tests.forked import forked_workers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:non-finite gradient norm"),
]

ROOT = Path(__file__).parent.parent
CONFIG = """
name: tiny
task: {target: "tests.tiny_task:TinyTask"}
optimizer: {kind: sgd, lr: 0.5, momentum: 0.9}
steps: 150
checkpoint_every: 40
clip: {on_nonfinite: propagate, policy: {kind: running_quantile, warmup_steps: 5}}
sweep:
  thresholds: [0.1, 1.0]
  percentiles: [50]
  kinds: [running_quantile]
  policies: [{kind: loss_aware_quantile, cut: 0.7}]
  seeds: [0, 1]
  lr_multipliers: [0.2, 1]
"""
NAMES = ["fixed 0.1", "fixed 1", "none", "running_quantile p50", "loss_aware_quantile(cut=0.7)"]
GRID = NAMES[:2]
FOLDERS = dict(
    zip(NAMES, ["fixed-0.1", "fixed-1", "none", "running_quantile-p50", "loss_aware_quantile-cut-0.7-"], strict=True)
)
QUICK = ("steps=12", "sweep.policies=[]", "sweep.percentiles=[]")


def command(config, out, *options):
    return [sys.executable, "-m", "autoclip", "sweep", str(config), "--output-dir", str(out), *options]


def call(*arguments):
    return CliRunner().invoke(app, ["sweep", *arguments])


def trials(out, name="tiny"):
    with suppress(KeyError):  # the study is not there yet
        return optuna.load_study(study_name=name, storage=f"sqlite:///{out / 'study.db'}").get_trials(deepcopy=False)
    return []


def complete(out, name="tiny"):
    done = [trial for trial in trials(out, name) if trial.state == TrialState.COMPLETE]
    found = {trial.user_attrs["key"]: trial for trial in done}
    assert len(found) == len(done), f"something was done twice: {Counter(one.user_attrs['key'] for one in done)}"
    return found


def until(condition, process):
    deadline = time.monotonic() + 120
    while True:
        found = condition()
        if found:
            return found
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def lives(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_at_work(out, parent, *, all_of_them):
    """Kill a worker in the middle of a run, or the whole process group; return the workers there were."""

    def at_work():
        begun = [path for path in metrics(out) if not (path.parent / "summary.json").exists()]
        pids = forked_workers(parent.pid)
        return pids if begun and len(pids) == 2 else []

    pids = until(at_work, parent)
    if all_of_them:
        os.killpg(parent.pid, signal.SIGKILL)
    else:
        os.kill(pids[0], signal.SIGKILL)
    return pids


def metrics(out):
    return list(out.glob("runs/*/*/*/metrics.jsonl"))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@dataclass
class Swept:
    """A sweep that ended well, with what was seen on the way."""

    out: Path
    printed: str
    errors: str
    seen: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def quiet(config_file, tmp_path_factory):
    """One worker, undisturbed."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    done = subprocess.run(command(config_file, out), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Swept(out, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def disturbed(config_file, tmp_path_factory):
    """Two workers: Ctrl-C, then the whole process group killed, then one worker killed; finished at last."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("finds the workers in Linux's /proc")
    out = tmp_path_factory.mktemp("disturbed") / "out"
    seen = {}
    running = []

    def start(seconds_per_batch):
        process = subprocess.Popen(
            command(config_file, out, "--workers", "2", "-f", "json"),
            cwd=ROOT,
            env=os.environ | {"TINY_TASK_SECONDS": str(seconds_per_batch)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        return process

    try:
        process = start(0.01)
        until(lambda: len(metrics(out)) > 4, process)  # two for a run: a third run began, so one ended
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        seen["interrupt"] = (*process.communicate(timeout=60), process.returncode)
        seen["after the interrupt"] = {
            "complete": set(complete(out, "tiny: runs")),
            "results": set(complete(out)),
            "steps": {path.parent: path.read_text().count("\n") for path in metrics(out)},
        }

        process = start(0.01)
        seen["group"] = kill_at_work(out, process, all_of_them=True)
        process.communicate()
        seen["after the kill"] = {trial.state.name for trial in trials(out, "tiny: runs")}

        process = start(0.002)
        seen["killed"] = kill_at_work(out, process, all_of_them=False)
        # A killed process stays in /proc for a moment.
        living = lambda: [pid for pid in forked_workers(process.pid) if pid not in seen["killed"]]  # noqa: E731
        until(lambda: len(living()) == 2, process)
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        yield Swept(out, printed, errors, seen)
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_the_output_directory_holds_all_that_was_promised(quiet):
    names = {path.name for path in quiet.out.iterdir()}
    picks = {"recommended.yaml", "fastest.yaml", "steadiest.yaml", "balanced.yaml"}
    promised = {"runs", "study.db", "sweep.yaml", "trials.csv", "pareto.png", *picks}
    assert names == promised
    assert (quiet.out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (quiet.out / "runs").iterdir()} == set(FOLDERS.values())
    for folder in FOLDERS.values():
        for rate in ("lr-x0.2", "lr-x1"):
            for seed in (0, 1):
                assert (quiet.out / "runs" / folder / rate / f"seed-{seed}" / "summary.json").exists()


def test_the_table_and_the_csv_name_every_candidate(quiet):
    rows = (quiet.out / "trials.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["candidate", *NAMES]
    table, _, rest = quiet.printed.partition("* on the Pareto front")
    for name in NAMES:
        assert f"\n{name} " in table
        assert name in quiet.errors, "each is named when it is finished"
    assert "fixed 0.1 *" in table
    assert "recommended: fixed 0.1, the balanced pick" in rest
    assert "autoclip.Clipper(model, autoclip.Fixed(threshold=0.1), on_nonfinite='propagate')" in rest
    assert "note: fixed 0.1 clipped every step" in rest
    assert "Traceback" not in quiet.errors
    assert "Warning" not in quiet.errors


def test_the_recommended_section_runs_when_it_is_pasted_into_the_configuration(quiet, tmp_path):
    recommended = yaml.safe_load((quiet.out / "recommended.yaml").read_text())
    assert list(recommended) == ["clip"]
    path = tmp_path / "better.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(CONFIG) | recommended | {"steps": 5}))
    clip = load_config(path).clip
    assert (clip.on_nonfinite, clip.policy.kind) == ("propagate", "fixed")
    done = CliRunner().invoke(app, ["run", str(path), "--output-dir", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "threshold=0.1" in json.loads((tmp_path / "out" / "seed-0" / "summary.json").read_text())["policy"]


@pytest.mark.parametrize("which", ["quiet", "disturbed"])
def test_every_candidate_is_finished_exactly_once(which, request):
    out = request.getfixturevalue(which).out
    assert set(complete(out, "tiny: runs")) == {f"{name}, seed {seed}" for name in NAMES for seed in (0, 1)}
    assert set(complete(out)) == set(NAMES)
    assert {name: trial.params["candidate"] for name, trial in complete(out).items()} == {name: name for name in NAMES}
    assert {trial.state.name for trial in trials(out)} == {"COMPLETE"}


def test_workers_kills_and_interrupts_do_not_change_a_single_value(quiet, disturbed):
    def values(out):
        return {name: trial.values for name, trial in complete(out).items()}

    assert values(disturbed.out) == values(quiet.out)

    def figures(out):  # all columns but the seconds
        return [row.split(",")[:-2] for row in (out / "trials.csv").read_text().splitlines()]

    assert figures(disturbed.out) == figures(quiet.out)
    assert (disturbed.out / "recommended.yaml").read_text() == (quiet.out / "recommended.yaml").read_text()
    for path in metrics(quiet.out):
        assert (disturbed.out / path.relative_to(quiet.out)).read_bytes() == path.read_bytes()


def test_an_interrupt_exits_130_and_completes_nothing_falsely(disturbed):
    printed, errors, code = disturbed.seen["interrupt"]
    assert code == 130, errors
    assert f"interrupted; the same command continues in {disturbed.out}" in errors
    assert "Traceback" not in errors
    assert not printed
    after = disturbed.seen["after the interrupt"]
    assert not after["results"]
    assert 1 <= len(after["complete"]) < 2 * len(NAMES)
    for key in after["complete"]:
        name, _, seed = key.partition(", ")
        folder = disturbed.out / "runs" / FOLDERS[name]
        runs = folder.glob(f"*/{seed.replace(' ', '-')}/metrics.jsonl")
        assert [after["steps"][path.parent] for path in runs] == [150] * 2
    assert any(steps < 150 for steps in after["steps"].values()), "it came too late"


def test_a_killed_process_group_leaves_only_finished_trials(disturbed):
    assert disturbed.seen["after the kill"] == {"COMPLETE"}


def test_no_worker_outlives_a_killed_process_group_or_a_killed_worker(disturbed):
    assert not any(map(lives, disturbed.seen["group"] + disturbed.seen["killed"]))


def test_json_is_the_only_thing_on_the_standard_output(quiet, disturbed):
    def refused(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(disturbed.printed, parse_constant=refused)
    assert [one["candidate"] for one in found["candidates"]] == NAMES
    assert found["recommended"] == "fixed 0.1"
    assert found["candidates"][0]["policy"] == {"kind": "fixed", "threshold": 0.1}
    assert [one["candidate"] for one in found["candidates"] if one["pareto"]] == ["fixed 0.1"]
    for one in found["candidates"]:
        assert [one["convergence"], one["instability"]] == complete(quiet.out)[one["candidate"]].values


@dataclass
class Measured:
    """One run, measured anew from its files."""

    area: float
    bounded: float
    initial: float
    failed: bool


def measured(directory):
    summary = json.loads((directory / "summary.json").read_text())
    initial = summary["initial_validation_loss"]
    total = 0.0
    count = 0
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        loss = json.loads(line)["loss"]
        total += initial if loss is None or loss > initial else loss
        count += 1
    total += initial * (150 - count)
    final = summary["validation_loss"]
    bad = summary["status"] == "diverged" or final is None
    return Measured(
        area=total / 150,
        bounded=initial if final is None or final > initial else final,
        initial=initial,
        failed=bad or final > 0.95 * summary["trivial_loss"],
    )


def runs_of(out, name):
    folder = out / "runs" / FOLDERS[name]
    return {rate: [measured(folder / rate / f"seed-{seed}") for seed in (0, 1)] for rate in ("lr-x0.2", "lr-x1")}


def test_the_values_are_those_of_the_formulas(quiet):
    grid = [runs for name in GRID for runs in runs_of(quiet.out, name).values()]
    reference = min(sum(run.bounded for run in runs) / 2 for runs in grid)
    for name, trial in complete(quiet.out).items():
        runs = runs_of(quiet.out, name)
        convergence, instability = trial.values
        assert convergence == pytest.approx(sum(run.area for run in runs["lr-x1"]) / 2, rel=1e-12)
        shares = [
            1.0 if run.failed else (run.bounded - reference) / (run.initial - reference)
            for seeds in runs.values()
            for run in seeds
        ]
        assert instability == pytest.approx(fmean(shares), abs=1e-9), name  # to which it is rounded
        assert len(shares) == 4
    assert 0 < reference < 0.5


def test_a_candidate_that_diverges_is_infeasible_with_finite_values(quiet):
    done = complete(quiet.out)
    folder = quiet.out / "runs" / "none" / "lr-x1"
    for seed in (0, 1):
        assert json.loads((folder / f"seed-{seed}" / "summary.json").read_text())["status"] == "diverged"
    for name, trial in done.items():
        assert all(map(isfinite, trial.values))
        failed = sum(run.failed for run in runs_of(quiet.out, name)["lr-x1"])
        assert trial.constraints == {"diverged": failed}
    assert done["none"].constraints["diverged"] == 2
    assert done["fixed 0.1"].constraints["diverged"] == 0
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{quiet.out / 'study.db'}")
    assert [trial.params["candidate"] for trial in study.best_trials] == ["fixed 0.1"]


def test_a_finished_sweep_reports_again_without_training(quiet):
    before = {path: path.stat().st_mtime_ns for path in metrics(quiet.out)}
    (quiet.out / "trials.csv").unlink()
    done = call(str(quiet.out / "sweep.yaml"), "--output-dir", str(quiet.out), "--workers", "3")
    assert done.exit_code == 0, done.output
    assert "recommended: fixed 0.1" in done.output
    assert (quiet.out / "trials.csv").exists()
    assert {path: path.stat().st_mtime_ns for path in metrics(quiet.out)} == before


def test_a_changed_configuration_is_refused_with_the_difference(quiet, config_file):
    before = (quiet.out / "sweep.yaml").read_bytes()
    for change, expected in (
        ("optimizer.lr=0.25", "optimizer.lr: 0.5 -> 0.25"),
        ("sweep.thresholds=[0.1,1.0,3.0]", "sweep.thresholds: [0.1, 1.0] -> [0.1, 1.0, 3.0]"),
        ("sweep.seeds=[0,1,2]", "sweep.seeds: [0, 1] -> [0, 1, 2]"),
    ):
        done = call(str(config_file), change, "--output-dir", str(quiet.out))
        assert done.exit_code == 2, done.output
        assert expected in done.output
        assert "--output-dir" in done.output
    assert (quiet.out / "sweep.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["sweep=null"], "no sweep section"),
        (["sweep.thresholds=[]", "sweep.kinds=[]", "sweep.refine_trials=2"], "no thresholds and no percentiles"),
        (["sweep.policies=[{kind: none}]"], "two candidates are the same: none"),
        (["task.target=tests.no_such_module:Task"], "no_such_module"),
        (["device=cuda:999"], "cuda:999"),
        (["sweep.kinds=[fixed]"], "must be one of"),
        (["--workers", "0"], "workers"),
    ],
)
def test_what_cannot_be_swept_exits_2_and_leaves_no_runs(config_file, tmp_path, changes, expected):
    done = call(str(config_file), *changes, "--output-dir", str(tmp_path / "out"))
    assert done.exit_code == 2, done.output
    assert expected in done.output
    assert not metrics(tmp_path / "out")


def test_a_storage_that_cannot_be_opened_exits_2(config_file, tmp_path):
    for url in ("nonsense://x/y", f"sqlite:///{tmp_path}/no/such/folder/study.db"):
        done = call(str(config_file), "--output-dir", str(tmp_path / "out"), "--storage", url)
        assert done.exit_code == 2, done.output
        assert f"cannot open the storage {url}" in done.output


def test_an_output_directory_that_is_a_file_is_one_line(config_file, tmp_path):
    (tmp_path / "file").write_text("")
    done = call(str(config_file), "--output-dir", str(tmp_path / "file"))
    assert (done.exit_code, done.output) == (2, f"{tmp_path / 'file'} is a file; --output-dir needs a directory\n")


def test_an_output_directory_that_cannot_be_written_exits_2(config_file):
    done = call(str(config_file), "--output-dir", "/dev/null/x")
    assert done.exit_code == 2
    assert done.output == "cannot write into /dev/null/x: Not a directory; choose another --output-dir\n"


def test_a_worker_that_fails_ends_the_command_with_exit_code_1(config_file, tmp_path):
    done = call(str(config_file), *QUICK, "task.args={fail_at: 3}", "--output-dir", str(tmp_path / "out"))
    assert done.exit_code == 1, done.output
    assert "RuntimeError: the task broke" in done.output
    assert "Traceback" not in done.output


def test_workers_do_not_outlive_a_command_that_is_killed(config_file, tmp_path):
    if not Path("/proc/self/stat").exists():
        pytest.skip("finds the workers in Linux's /proc")
    process = subprocess.Popen(
        command(config_file, tmp_path / "out", "steps=20000", "--workers", "2"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        until(lambda: len(metrics(tmp_path / "out")) >= 2, process)
        workers = forked_workers(process.pid)
        assert len(workers) == 2
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 30
        while any(map(lives, workers)):
            assert time.monotonic() < deadline, "a worker goes on"
            time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("engine", "package", "extra"), [("slurm", "submitit", "slurm"), ("tcp://127.0.0.1:1", "distributed", "dask")]
)
def test_an_engine_that_is_not_installed_is_one_line(config_file, tmp_path, monkeypatch, engine, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    done = call(str(config_file), "--output-dir", str(tmp_path), "--engine", engine)
    assert (done.exit_code, done.output.count("\n")) == (2, 1), done.output
    assert done.output.endswith(f"pip install 'autoclip-tuner[sweep,plot,{extra}]'\n")


def test_a_command_that_is_no_program_exits_2(tmp_path):
    path = tmp_path / "script.yaml"
    command_line = ["no-such-program", "{clip_config}", "{seed}", "{run_dir}"]
    path.write_text(yaml.safe_dump({"name": "script", "steps": 5, "sweep": {"command": command_line}}))
    done = subprocess.run(command(path, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "found no program 'no-such-program'" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_sweep_asks_for_a_sweep_section(config_file, tmp_path):
    config = load_config(config_file).model_copy(update={"sweep": None})
    with pytest.raises(UsageError, match=r"add `sweep: \{\}`"):
        run_sweep(config, tmp_path / "out", engine=lambda: ProcessPool(1), storage=None, load_report=lambda: len)
    assert not (tmp_path / "out").exists()


class Broken(Executor):
    """An executor whose workers are gone."""

    def submit(self, function, /, *arguments, **named):
        future = Future()
        future.set_exception(ConnectionError("nobody there"))
        return future


def test_any_executor_trains_and_the_result_is_what_the_command_prints(tmp_path, disturbed):
    with ThreadPoolExecutor(2) as executor:
        found = autoclip.sweep(yaml.safe_load(CONFIG), tmp_path / "out", executor=executor)
    seconds = {"share_of_steps"}
    assert found.keys() == json.loads(disturbed.printed).keys()
    assert {name: value for name, value in found.items() if name not in seconds} == {
        name: value for name, value in json.loads(disturbed.printed).items() if name not in seconds
    }


def environment(job):
    time.sleep(0.3)  # so that the other worker gets one too
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Numbered:
    key: int


def test_each_worker_sees_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    config = load_config(ROOT / "configs" / "sweep_corrupted_digits.yaml")
    numbers = iter(range(4))
    with closing(make_engine(asked_for(config, None, None), config, Path())) as pool:
        assert pool.at_once == 2
        jobs = results(pool, environment, lambda _: next(map(Numbered, numbers), None))
        assert {ended[1] for ended in jobs if ended is not None} == {"5", "7"}


def test_an_executor_that_cannot_reach_its_workers_is_one_error(config_file, tmp_path):
    engine = GivenExecutor(Broken(), at_once=1)
    with pytest.raises(RunError, match=r"seed 0 failed on its worker: ConnectionError: nobody there"):
        run_sweep(load_config(config_file), tmp_path, engine=lambda: engine, storage=None, load_report=reported)


def reported():
    return lambda sweep: 0 if sweep.is_done() else 1


def test_the_database_is_whole_after_everything(disturbed):
    with sqlite3.connect(disturbed.out / "study.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
