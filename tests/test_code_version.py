import sys
from collections.abc import Iterator
from importlib import import_module, reload
from pathlib import Path

import pytest
import torch

from autoclip.errors import UsageError
from autoclip.lab.code_version import code_version, refuse_other_code
from autoclip.lab.config import load_config
from autoclip.lab.example import Spirals
from autoclip.lab.experiment import run_experiment
from autoclip.policies import Fixed
from autoclip.sweep.sweep import Sweep
from autoclip.version import __version__
from tests.sweeps import finish
from tests.tiny_task import TinyTask


def test_versions_and_the_files_of_the_users_classes_are_told() -> None:
    found = code_version(TinyTask, Fixed, Spirals)
    assert set(found) == {"autoclip", "torch", "tests.tiny_task:TinyTask"}
    assert (found["autoclip"], found["torch"]) == (__version__, torch.__version__)
    assert len(found["tests.tiny_task:TinyTask"]) == 64


def test_a_class_without_a_file_is_left_out() -> None:
    cls = type("Interactive", (), {"__module__": "__no_such_module__"})
    assert set(code_version(cls)) == {"autoclip", "torch"}


def test_an_edited_file_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "edited_task.py").write_text("class Task:\n    pass\n")
    module = import_module("edited_task")
    try:
        before = code_version(module.Task)
        (tmp_path / "edited_task.py").write_text("class Task:\n    x = 1\n")
        now = code_version(reload(module).Task)
    finally:
        del sys.modules["edited_task"]
    refuse_other_code(before, before, tmp_path)
    with pytest.raises(UsageError, match=r"begun with other code: the file of edited_task:Task changed\. Restore it"):
        refuse_other_code(before, now, tmp_path)
    monkeypatch.setenv("AUTOCLIP_ALLOW_CHANGED_CODE", "1")
    refuse_other_code(before, now, tmp_path)


def test_another_version_is_other_code_and_what_was_not_recorded_is_not(tmp_path: Path) -> None:
    now = code_version(TinyTask)
    refuse_other_code({}, now, tmp_path)
    with pytest.raises(UsageError, match=r"autoclip 0\.0\.9 is now .*; torch 1\.0 is now "):
        refuse_other_code({**now, "autoclip": "0.0.9", "torch": "1.0"}, now, tmp_path)


CONFIG = """
name: tiny
task: {target: "changing_task:Changing"}
optimizer: {kind: sgd, lr: 0.05}
steps: 8
sweep: {none: false, thresholds: [1.0], percentiles: [], seeds: [0], lr_multipliers: [1]}
"""
CHANGING = """
from autoclip.policies import RunningQuantile
from tests.tiny_task import TinyTask

class Changing(TinyTask):
    pass

class Own(RunningQuantile):
    pass
"""
REFUSED = r"begun with other code: .*the file of changing_task:{} changed.*AUTOCLIP_ALLOW_CHANGED_CODE=1"


@pytest.fixture
def changing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a task and a policy in the working directory, beside the configuration of an experiment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("tiny.yaml").write_text(CONFIG)
    Path("changing_task.py").write_text(CHANGING)
    yield Path("changing_task.py")
    sys.modules.pop("changing_task", None)


def test_a_finished_seed_of_other_code_is_not_put_beside_new_ones(changing, monkeypatch):
    out = Path("out")
    assert run_experiment(load_config(Path("tiny.yaml"), ["seeds=[0]"]), out, resume=False) == 0
    changing.write_text(CHANGING + "# a loss a hundred times as high\n")
    more = load_config(Path("tiny.yaml"), ["seeds=[1, 0]"])
    with pytest.raises(UsageError, match=REFUSED.format("Changing")):
        run_experiment(more, out, resume=True)
    assert not (out / "seed-1" / "metrics.jsonl").exists()
    monkeypatch.setenv("AUTOCLIP_ALLOW_CHANGED_CODE", "1")
    assert run_experiment(more, out, resume=True) == 0


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(("policies", "name"), [("[]", "Changing"), ("[{kind: 'changing_task:Own'}]", "Own")])
def test_a_sweep_is_not_continued_with_other_code(changing, monkeypatch, policies, name):
    out = Path("out")
    out.mkdir()

    def swept(database: str, *changes: str) -> list[str]:
        config = load_config(Path("tiny.yaml"), [f"sweep.policies={policies}", *changes])
        sweep = finish(Sweep(config, out, f"sqlite:///{database}.db"))
        return [one.candidate.name for one in sweep.results()]

    first = swept("study")
    assert swept("study") == first
    changing.write_text(CHANGING + "# changed\n")
    with pytest.raises(UsageError, match=REFUSED.format(name)):
        swept("study", "sweep.refine_trials=1")
    with pytest.raises(UsageError, match=REFUSED.format("Changing")):  # the runs are reused by a study that is new
        swept("another")
    monkeypatch.setenv("AUTOCLIP_ALLOW_CHANGED_CODE", "1")
    assert swept("study", "sweep.refine_trials=1")[:-1] == first
