"""What a task returns, and where it is told that it is wrong."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from autoclip.errors import UsageError
from autoclip.lab.config import load_config
from autoclip.lab.experiment import make_task, run_experiment
from tests.tiny_task import TinyTask

ROOT = Path(__file__).parent.parent
CONFIG = """
name: tiny
task: {target: "tests.test_task:Wrong"}
optimizer: {kind: sgd, lr: 0.05}
steps: 3
"""


class Wrong(TinyTask):
    """Attributes and results of methods by name, in place of the right ones."""

    given: ClassVar[dict[str, Any]] = {}

    def __init__(self):
        super().__init__()
        for name, value in self.given.items():
            setattr(self, name, value if name in ("trivial_loss", "data_hash") else lambda *_, value=value: value)


@pytest.fixture
def configure(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def load(**given):
        monkeypatch.setattr(Wrong, "given", given)
        (tmp_path / "tiny.yaml").write_text(CONFIG)
        return load_config(tmp_path / "tiny.yaml")

    return load


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("trivial_loss", "x", "trivial_loss must be a finite float, or None, got 'x'"),
        ("trivial_loss", float("nan"), "trivial_loss must be a finite float, or None, got nan"),
        ("trivial_loss", True, "trivial_loss must be a finite float, or None, got True"),
        ("trivial_loss", torch.tensor(1.0), r"trivial_loss must be a finite float, or None, got tensor\(1\.\)"),
        ("data_hash", b"abc", "data_hash must be a text, or None, got b'abc'"),
    ],
)
def test_attributes_of_another_type_are_refused_where_the_task_is_made(configure, name, value, expected):
    with pytest.raises(UsageError, match=f"^tests.test_task:Wrong: {expected}$"):
        make_task(configure(**{name: value}))


@pytest.mark.parametrize("value", [None, 2, 0.5])
def test_a_trivial_loss_may_be_any_number_or_none(configure, value):
    assert make_task(configure(trivial_loss=value, data_hash=None)).trivial_loss == value


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model", None, "model() must return a torch.nn.Module, got None"),
        ("batches", None, "batches() must return an iterator, got None"),
        ("loss", 1.5, "loss() must return a 0-d tensor that depends on the model's parameters, got 1.5"),
        (
            "loss",
            torch.ones(2),
            "loss() must return a 0-d tensor that depends on the model's parameters, got tensor([1., 1.])",
        ),
        ("evaluate", None, "evaluate() must return a number, got None"),
        ("evaluate", torch.ones(2), "evaluate() must return a number, got tensor([1., 1.])"),
        (
            "describe",
            {"a": torch.tensor(1.0)},
            "describe() must return a dict of texts and finite numbers, got {'a': tensor(1.)}",
        ),
        ("lr_factor", -0.5, "lr_factor() must return a finite number of at least 0, got -0.5"),
        ("lr_factor", float("nan"), "lr_factor() must return a finite number of at least 0, got nan"),
        ("lr_factor", "1", "lr_factor() must return a finite number of at least 0, got '1'"),
        ("describe", [1], "describe() must return a dict of texts and finite numbers, got [1]"),
    ],
)
def test_what_a_method_must_not_return_is_named_with_the_task(configure, tmp_path, capsys, name, value, expected):
    assert run_experiment(configure(**{name: value}), tmp_path / "out", resume=False) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "stopped" in line]
    assert line == f"seed 0 stopped: tests.test_task:Wrong: {expected}"
    metrics = tmp_path / "out" / "seed-0" / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text()


@pytest.mark.parametrize("value", [1, 0.5, torch.tensor(0.5), torch.ones(1)])
def test_a_validation_loss_may_be_any_single_number(configure, tmp_path, value):
    config = configure(evaluate=value, describe={"facts": [1, "two"]})
    assert run_experiment(config, tmp_path / "out", resume=False) == 0
