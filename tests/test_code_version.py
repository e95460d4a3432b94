import sys
from importlib import import_module, reload
from pathlib import Path

import pytest
import torch

from autoclip.lab.code_version import code_version, warn_of_other_code
from autoclip.lab.config import load_config
from autoclip.lab.example import Spirals
from autoclip.lab.experiment import run_experiment
from autoclip.policies import Fixed
from autoclip.sweeps.sweep import Sweep
from autoclip.version import __version__
from tests.sweeps import finish
from tests.tiny_task import TinyTask


def test_versions_and_the_files_of_the_users_classes_are_told():
    found = code_version(TinyTask, Fixed, Spirals)
    assert set(found) == {"autoclip", "torch", "tests.tiny_task:TinyTask"}
    assert (found["autoclip"], found["torch"]) == (__version__, torch.__version__)
    assert len(found["tests.tiny_task:TinyTask"]) == 64


def test_a_class_without_a_file_is_left_out():
    cls = type("Interactive", (), {"__module__": "__no_such_module__"})
    assert set(code_version(cls)) == {"autoclip", "torch"}


def test_an_edited_file_is_other_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "edited_task.py").write_text("class Task:\n    pass\n")
    module = import_module("edited_task")
    try:
        before = code_version(module.Task)
        (tmp_path / "edited_task.py").write_text("class Task:\n    x = 1\n")
        now = code_version(reload(module).Task)
    finally:
        del sys.modules["edited_task"]
    told = []
    warn_of_other_code(before, before, tmp_path, told.append)
    assert told == []
    warn_of_other_code(before, now, tmp_path, told.append)
    assert told == [f"warning: {tmp_path} was begun with other code: the file of edited_task:Task changed"]


def test_another_version_is_other_code_and_what_was_not_recorded_is_not(tmp_path, capsys):
    now = code_version(TinyTask)
    warn_of_other_code({}, now, tmp_path)
    assert capsys.readouterr().err == ""
    warn_of_other_code({**now, "autoclip": "0.0.9", "torch": "1.0"}, now, tmp_path)
    assert f"autoclip 0.0.9 is now {__version__}; torch 1.0 is now " in capsys.readouterr().err.replace("\n", " ")


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
TOLD = "begun with other code: the file of changing_task:{} changed"


@pytest.fixture
def changing(tmp_path, monkeypatch):
    """The file of a task and a policy in the working directory, beside the configuration of an experiment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("tiny.yaml").write_text(CONFIG)
    Path("changing_task.py").write_text(CHANGING)
    yield Path("changing_task.py")
    sys.modules.pop("changing_task", None)


def test_a_finished_seed_of_other_code_is_told(changing, capsys):
    out = Path("out")
    assert run_experiment(load_config(Path("tiny.yaml"), ["seeds=[0]"]), out, resume=False) == 0
    changing.write_text(CHANGING + "# a loss a hundred times as high\n")
    assert run_experiment(load_config(Path("tiny.yaml"), ["seeds=[1, 0]"]), out, resume=True) == 0
    assert capsys.readouterr().err.replace("\n", " ").count(TOLD.format("Changing")) == 1


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(("policies", "name"), [("[]", "Changing"), ("[{kind: 'changing_task:Own'}]", "Own")])
def test_a_sweep_that_goes_on_with_other_code_says_so(changing, capsys, policies, name):
    out = Path("out")
    out.mkdir()

    def swept(*changes):
        config = load_config(Path("tiny.yaml"), [f"sweep.policies={policies}", *changes])
        sweep = finish(Sweep(config, out, "sqlite:///study.db"))
        return [one.candidate.name for one in sweep.results()]

    first = swept()
    assert swept() == first
    assert "other code" not in capsys.readouterr().err
    changing.write_text(CHANGING + "# changed\n")
    assert swept("sweep.refine_trials=1")[:-1] == first
    told = capsys.readouterr().err.replace("\n", " ")
    assert "begun with other code" in told
    assert f"the file of changing_task:{name} changed" in told
