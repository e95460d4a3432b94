import json
import re

import pytest

from autoclip.errors import RunError, UsageError
from autoclip.lab.config import load_config
from autoclip.lab.experiment import Interrupt, run_experiment, run_seeds
from autoclip.lab.run_summary import findings, read_summary, table
from autoclip.policies import POLICIES
from tests.test_experiment import CONFIG, ROOT
from tests.tiny_task import TinyTask


@pytest.fixture
def configure(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return lambda *overrides: load_config(tmp_path / "tiny.yaml", ["seeds=[0]", *overrides])


def row(printed):
    (line,) = [line for line in printed.splitlines() if " finished " in line]
    return line


@pytest.mark.parametrize("kind", POLICIES)
def test_the_table_shows_the_threshold_of_every_policy(configure, tmp_path, capsys, kind):
    needed = ", threshold: 1.0" if kind == "fixed" else ", multiple: 2" if kind == "center_multiple" else ""
    config = configure(f"clip.policy={{kind: {kind}{needed}, warmup_steps: 5}}")
    assert run_experiment(config, tmp_path / "out", resume=False) == 0
    assert re.search(rf"  {'none' if kind == 'none' else '[0-9.e+-]+'}$", row(capsys.readouterr().out))


@pytest.mark.parametrize(("threshold", "shown"), [(None, "none"), (0.123456, "0.1235")])
@pytest.mark.parametrize(("rate", "clipped", "left"), [(0.25, "25.0%", "75.0%"), (None, "-", "-")])
def test_the_columns_of_the_table_are_in_line(tmp_path, threshold, shown, rate, clipped, left):
    seed = {"seed": 7, "status": "finished", "steps": 3, "validation_loss": 0.5, "clip_rate": rate, "skipped_steps": 0}
    seed |= {} if rate is None else {"mean_coefficient": 0.75}  # not in the summaries of before it was kept
    failed = {**seed, "seed": 8, "status": "failed", "threshold": None}
    total = {"name": "x", "policy": "P()", "seeds": [{**seed, "threshold": threshold}, failed]}
    lines = table(total, tmp_path).splitlines()
    assert lines[0] == f"x: P(), in {tmp_path}/seed-N"
    assert lines[2].split()[4:] == [clipped, left, "0", shown]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    "damaged",
    [
        '{"status": "diverged"}',
        '{"steps": "x"}',
        '{"steps": 20}',
        '{"status": "finished", "steps": 20, "validation_loss": "low", "clip_rate": 0.5, "skipped_steps": 0, '
        '"threshold": null}',
        '{"status": "finished", "steps": 20, "validation_loss": 1, "clip_rate": 0.5, "skipped_steps": 0, '
        '"threshold": {"a": 1.0}}',
    ],
)
def test_a_summary_that_lacks_what_is_read_of_it_is_one_error(configure, tmp_path, damaged):
    out = tmp_path / "out"
    assert run_experiment(configure(), out, resume=False) == 0
    (out / "seed-0" / "summary.json").write_text(damaged)
    with pytest.raises(RunError, match=r"seed-0/summary\.json is damaged \(.*\); move it away"):
        run_experiment(configure(), out, resume=True)
    (out / "seed-0" / "summary.json").unlink()
    assert run_experiment(configure(), out, resume=True) == 0


def test_there_is_no_summary_before_the_first_end(tmp_path):
    assert read_summary(tmp_path) == {}


def test_steps_reduced_to_where_a_run_was_interrupted_finish_it(configure, tmp_path, capsys, monkeypatch):
    out, interrupt, loss = tmp_path / "out", Interrupt(), TinyTask.loss

    def interrupted(self, model, batch):
        interrupt.asked = int(batch["index"]) == 11
        return loss(self, model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(TinyTask, "loss", interrupted)
        run_seeds(configure(), out, resume=False, interrupt=interrupt)
    before = read_summary(out / "seed-0")
    assert (before["status"], before["steps"], before["validation_loss"]) == ("interrupted", 12, None)
    last = json.loads((out / "seed-0" / "metrics.jsonl").read_text().splitlines()[-1])
    assert before["threshold"] == last["threshold"]
    assert run_experiment(configure("steps=12"), out, resume=True) == 0
    assert " finished " in capsys.readouterr().out
    found = read_summary(out / "seed-0")
    assert (found["status"], found["steps"]) == ("finished", 12)
    assert found["validation_loss"] is not None
    assert (found["threshold"], found["clip_rate"]) == (before["threshold"], before["clip_rate"])


def test_metrics_without_a_configuration_are_not_overwritten(configure, tmp_path):
    metrics = tmp_path / "out" / "seed-0" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"step": 0}\n')
    with pytest.raises(UsageError, match=r"seed-0/metrics.jsonl would be replaced, but no run of autoclip was begun"):
        run_experiment(configure(), tmp_path / "out", resume=False)
    assert metrics.read_text() == '{"step": 0}\n'


def test_the_clip_rate_of_the_default_is_told_with_what_is_usual(configure, tmp_path, capsys):
    default = configure("clip.policy={kind: probing_quantile}", "seeds=[0, 1]")
    assert run_experiment(default, tmp_path / "out", resume=False) == 0
    told = json.loads((tmp_path / "out" / "summary.json").read_text())["findings"][0]["text"]
    assert told.startswith("the default clips 10 to 40% of the steps in a healthy training; here ")
    assert told in capsys.readouterr().out.splitlines()
    assert run_experiment(configure(), tmp_path / "other", resume=False) == 0
    assert json.loads((tmp_path / "other" / "summary.json").read_text())["findings"] == []
    assert "the default clips" not in capsys.readouterr().out


def test_lines_that_somebody_changed_have_no_clip_rate_to_tell(configure, tmp_path):
    config = configure("clip.policy={kind: probing_quantile}")
    summary = {"seed": 0, "status": "finished", "steps": 5}
    assert findings(config, [summary], tmp_path) == []
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "metrics.jsonl").write_text('{"step": 0}\n')
    assert findings(config, [summary], tmp_path) == []
    assert findings(config, [{"seed": 0, "status": "failed"}], tmp_path) == []
