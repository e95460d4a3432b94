import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoclip.errors import RunError, UsageError
from autoclip.lab.clip_section import from_config
from autoclip.lab.config import load_config
from autoclip.lab.experiment import Interrupt
from autoclip.records import ClipRecord
from autoclip.sweeps import guard, script
from autoclip.sweeps.scoring import aulc, read_run, score
from autoclip.sweeps.script import run_script

ROOT = Path(__file__).parent.parent
CONFIG = """
name: mine
steps: 30
threads: 3
clip: {policy: {kind: fixed, threshold: 2.0}}
sweep:
  command: [python, train.py, "{clip_config}", "{run_dir}", "{seed}", "{lr_multiplier}"]
"""
# Losses fall from 3 to about 1; no torch, so that it starts in no time.
SCRIPT = """
import json, math, os, pathlib, sys, time
from autoclip.records import ClipRecord
from autoclip.sinks import JSONLSink
clip_config, run_dir, seed, multiplier = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])

def losses(steps=30):
    return [1 + 2 * 0.9**step for step in range(steps)]

def log(losses, norm=5.0):
    with JSONLSink(run_dir) as sink:
        for step, loss in enumerate(losses):
            finite = math.isfinite(norm)
            sink.log(ClipRecord(step, "active", norm, 2.0, 0.4, finite, not finite, finite, loss))

def summarise(**values):
    (run_dir / "summary.json").write_text(json.dumps(values))
"""
RESULT = "log(losses())\n"


class OnceThere:
    """An interrupt that comes when a file is there."""

    def __init__(self, path):
        self.path = path

    @property
    def asked(self):
        return self.path.exists()


@pytest.fixture(autouse=True)
def _work_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def configure(*overrides):
    Path("mine.yaml").write_text(CONFIG, encoding="utf-8")
    return load_config(Path("mine.yaml"), overrides)


def run(body, *overrides, command=None, interrupt=None, seed=4, multiplier=3):
    Path("train.py").write_text(SCRIPT + body, encoding="utf-8")
    config = configure(*overrides)
    directory = Path("runs/one")
    run_script(
        config,
        command or config.sweep.command,
        seed=seed,
        multiplier=multiplier,
        directory=directory,
        interrupt=interrupt or Interrupt(),
    )
    return directory


def summary(directory):
    return json.loads((directory / "summary.json").read_text())


def failure(body, *overrides, **arguments):
    with pytest.raises(RunError) as error:
        run(body, *overrides, **arguments)
    own = Path("runs/one/summary.json")
    assert not own.exists() or "status" not in own.read_text()
    return str(error.value)


def test_the_directory_of_a_script_that_only_writes_metrics_is_a_run_directory():
    directory = run(RESULT)
    losses = [1 + 2 * 0.9**step for step in range(30)]
    found = summary(directory)
    assert 0 < found.pop("seconds") < 20
    assert found == {
        "status": "finished",
        "steps": 30,
        "planned_steps": 30,
        "validation_loss": pytest.approx(sum(losses[-20:]) / 20),
        "initial_validation_loss": 3.0,
        "trivial_loss": None,
        "name": "mine",
        "seed": 4,
    }
    figures = score(read_run(directory), 3, 4)
    assert not figures.failed
    assert figures.clip_rate == 1.0
    assert aulc(read_run(directory)) == pytest.approx(sum(losses) / 30)


def test_the_script_finds_what_the_placeholders_promise():
    directory = run(
        RESULT + "(run_dir / 'seen.json').write_text(json.dumps([sys.argv[1:], os.getcwd(), sys.executable, "
        "os.environ['OMP_NUM_THREADS'], sys.stdin.read()]))\nprint('out', flush=True)\nprint('err', file=sys.stderr)\n"
    )
    where = directory.resolve()
    assert json.loads((directory / "seen.json").read_text()) == [
        [f"{where}/clip.yaml", str(where), "4", "3.0"],
        os.getcwd(),  # noqa: PTH109 - the script writes it so
        sys.executable,
        "3",
        "",
    ]
    assert (directory / "output.txt").read_text() == "out\nerr\n"
    assert repr(from_config(directory / "clip.yaml")["policy"]) == "Fixed(threshold=2.0)"


def test_threads_that_are_set_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    directory = run(RESULT + "print(os.environ['OMP_NUM_THREADS'])\n")
    assert (directory / "output.txt").read_text() == "7\n"


def test_the_losses_of_the_script_are_taken_over_and_what_else_it_wrote_stays():
    directory = run(
        RESULT + "summarise(validation_loss=0.5, initial_validation_loss=2, trivial_loss=2.25, accuracy=0.75, "
        "worst=float('nan'), status='mine', steps=-1)\n"
    )
    found = summary(directory)
    assert (found["validation_loss"], found["initial_validation_loss"], found["trivial_loss"]) == (0.5, 2, 2.25)
    assert (found["accuracy"], found["worst"], found["status"], found["steps"]) == (0.75, None, "finished", 30)
    assert read_run(directory).trivial_loss == 2.25


def test_an_initial_validation_loss_that_is_not_finite_is_that_of_the_first_step():
    assert summary(run(RESULT + "summarise(initial_validation_loss=None)"))["initial_validation_loss"] == 3.0


def test_a_single_batch_that_was_skipped_is_no_divergence_even_as_the_last():
    found = summary(run("log([*losses(29), math.nan]); summarise(validation_loss=1.5)"))
    assert (found["status"], found["validation_loss"]) == ("finished", 1.5)


def test_a_script_that_fails_with_finite_losses_has_failed():
    with pytest.raises(RunError, match="ended with exit code 1"):
        run("log(losses(9)); raise FloatingPointError('something else')")


@pytest.mark.parametrize(
    ("body", "validation", "steps"),
    [
        (RESULT + "summarise(validation_loss=float('nan'))", None, 30),
        (RESULT + "summarise(validation_loss=None)", None, 30),
        (RESULT + "summarise(validation_loss=float('inf'), initial_validation_loss=2.0)", None, 30),
        ("log([*losses(10), *[math.nan] * 20])", None, 30),
        ("log([*losses(10), *[math.inf] * 20]); summarise(validation_loss=1.5)", 1.5, 30),
        ("log([*losses(9), math.nan]); raise FloatingPointError('the loss is NaN')", None, 10),
        ("log([*losses(9), math.nan])", None, 10),
        ("log([*losses(9), math.nan, 1.0])", None, 11),
        ("log([math.nan]); summarise(initial_validation_loss=3)", None, 1),
    ],
)
def test_a_run_that_diverged(body, validation, steps):
    directory = run(body)
    found = summary(directory)
    assert (found["status"], found["validation_loss"], found["steps"]) == ("diverged", validation, steps)
    assert read_run(directory).failed
    assert aulc(read_run(directory)) <= 3


def test_a_loss_that_is_not_finite_in_the_middle_is_left_to_the_script():
    found = summary(run("log([*losses(12), math.nan, *losses(17)])"))
    assert (found["status"], found["steps"]) == ("finished", 30)
    finite = [1 + 2 * 0.9**step for step in (10, 11, *range(17))]
    assert found["validation_loss"] == pytest.approx(sum(finite) / 19)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", "the script ended without writing runs/one/metrics.jsonl: give the script's Clipper sinks=["),
        ("log([])\n(run_dir / 'metrics.jsonl').touch()", "runs/one/metrics.jsonl is empty, the script took no step: "),
        ("log([None] * 30)", "runs/one/metrics.jsonl:1 has no loss: the script must call clipper.step(loss=loss)"),
        ("log([1.0, None])", "runs/one/metrics.jsonl:2 has no loss: "),
        ("log([1.0] * 31)", "has 31 lines, more than steps=30: `steps` in the configuration must be the number of"),
        ("log([1.0] * 29)", "has 29 lines, fewer than steps=30, and all losses are finite: `steps` in the"),
        ("log([math.nan] * 30)", "runs/one has no finite loss from before the first update"),
        ("log([None] * 30, norm=math.nan)", "runs/one has no finite loss from before the first update"),
        ("(run_dir / 'metrics.jsonl').write_text('epoch 1')", "runs/one/metrics.jsonl:1 is not a line of metrics: "),
        ("(run_dir / 'metrics.jsonl').write_text('5')", "runs/one/metrics.jsonl:1 is not a line of metrics: "),
        (
            'log([1.0])\nopen(run_dir / "metrics.jsonl", "a").write(\'{"step": 1}\')',
            "runs/one/metrics.jsonl:2 is not a line of metrics: ",
        ),
        (
            "log([1.0, 2.0])\nlines = (run_dir / 'metrics.jsonl').read_text()\n"
            "(run_dir / 'metrics.jsonl').write_text(2 * lines)",
            "runs/one/metrics.jsonl:3 must be of step 2, got 0: ",
        ),
        (RESULT + "(run_dir / 'summary.json').write_text('{')", "runs/one/summary.json, written by the script, is not"),
        (
            RESULT + "(run_dir / 'summary.json').write_text('[1]')",
            "runs/one/summary.json, written by the script, must be a JSON object, got [1]",
        ),
        (
            RESULT + "summarise(trivial_loss='2')",
            "runs/one/summary.json, written by the script: trivial_loss must be a number or null, got '2'",
        ),
        (RESULT + "summarise(validation_loss=True)", "validation_loss must be a number or null, got True"),
    ],
)
def test_what_a_script_must_do_is_told(body, expected):
    assert expected in failure(body)


def test_a_script_that_fails_is_named_with_its_last_words():
    message = failure("print('a'); print(); print('seed', seed, flush=True); sys.exit(9)")
    where = Path("runs/one").resolve()
    assert message == (
        f"python train.py {where}/clip.yaml {where} 4 3.0 ended with exit code 9; its output is in runs/one/output.txt "
        f"and ends with\n    a\n    seed 4"
    )
    message = failure("raise RuntimeError('broken')")
    assert message.endswith("RuntimeError: broken")
    assert len(message.splitlines()) <= 1 + script.SHOWN_LINES
    message = failure("print('x' * 10**6); print('last'); sys.exit(1)")
    assert message.endswith("\n    last")
    assert len(message) < 1000
    assert "was ended by SIGKILL; its output is in" in failure("os.kill(os.getpid(), 9)")


def test_a_program_that_is_not_there_or_cannot_be_run():
    required = ["{clip_config}", "{seed}", "{run_dir}"]
    with pytest.raises(UsageError, match=r"sweep\.command: found no program 'no-such-program' that can be run"):
        run("", command=["no-such-program", *required])
    Path("plain.txt").write_text("echo")
    with pytest.raises(UsageError, match=r"found no program '\./plain\.txt'"):
        run("", command=["./plain.txt", *required])
    Path("plain.txt").chmod(0o755)
    message = failure("", command=["./plain.txt", *required])
    assert "could not be started" in message
    assert "Exec format error" in message


def test_a_finished_run_is_left_as_it_is():
    directory = run(RESULT)
    before = {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}
    run("raise RuntimeError")
    assert {path.name: path.stat().st_mtime_ns for path in directory.iterdir()} == before


def test_a_diverged_run_is_left_as_it_is():
    directory = run("log([1.0, math.nan])")
    run("raise RuntimeError")
    assert summary(directory)["status"] == "diverged"


def test_a_run_of_other_steps_begins_again():
    run(RESULT + "summarise(validation_loss=9.0)")
    found = summary(run("log(losses(10))", "steps=10"))
    assert (found["steps"], found["initial_validation_loss"]) == (10, 3.0)
    assert found["validation_loss"] < 3  # not that of the run before


def test_a_run_of_another_clip_section_is_not_mixed_in():
    directory = run(RESULT)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(UsageError, match=r"begun with another configuration: clip\.policy\.threshold: 2\.0 -> 3\.0"):
        run(RESULT, "clip.policy.threshold=3")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


@pytest.mark.parametrize("left", ['{"validation_loss": 1', '{"validation_loss": 7.0}'])
def test_a_run_that_was_cut_short_begins_again_with_the_files_that_it_left(left):
    directory = Path("runs/one")
    failure("(run_dir / 'checkpoint').write_text('5'); sys.exit(1)")
    (directory / "summary.json").write_text(left)
    found = summary(run("assert (run_dir / 'checkpoint').read_text() == '5'\n" + RESULT))
    assert found["validation_loss"] < 3


def test_a_disk_that_refuses_is_one_message():
    Path("runs").write_text("")
    with pytest.raises(RunError, match="cannot run the script into runs/one: "):
        run(RESULT)


def test_an_interrupt_ends_the_script_politely_and_leaves_no_summary():
    body = (
        "import signal\ndef leave(*_):\n    (run_dir / 'left').touch()\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\nlog(losses(30))\ntime.sleep(60)\n"
    )
    began = time.monotonic()
    directory = run(body, interrupt=OnceThere(Path("runs/one/metrics.jsonl")))
    assert time.monotonic() - began < 15
    assert (directory / "left").exists()
    assert not (directory / "summary.json").exists()
    assert summary(run(RESULT))["status"] == "finished"


def test_a_script_does_not_outlive_a_worker_that_is_killed(tmp_path):
    Path("train.py").write_text(
        SCRIPT + "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for tick in range(600):\n    (run_dir / 'tick').write_text(f'{os.getpid()} {tick}')\n    time.sleep(0.05)\n"
    )
    configure()
    worker = """
from pathlib import Path
from autoclip.lab.config import load_config
from autoclip.sweeps.script import run_script
class Never:
    asked = False
config = load_config(Path("mine.yaml"))
run_script(config, config.sweep.command, seed=0, multiplier=1, directory=Path("runs/one"), interrupt=Never())
"""
    process = subprocess.Popen([sys.executable, "-c", worker], env={**os.environ, "PYTHONPATH": str(ROOT)})
    tick = Path("runs/one/tick")
    deadline = time.monotonic() + 30
    while not tick.exists() or not tick.read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.0)
    last = tick.read_text()
    time.sleep(0.5)
    assert tick.read_text() == last
    assert not Path(f"/proc/{last.split()[0]}").exists()


def test_grace_and_keys_are_as_documented():
    assert guard.GRACE_SECONDS == 10
    assert "SIGKILL 10 seconds later" in " ".join(run_script.__doc__.split())
    assert {"step", *script.OF_A_LINE} < ClipRecord(*[0] * 8).as_json().keys()
