import sys
from importlib import import_module, reload
from pathlib import Path

import pytest
import torch

from autoclip.errors import UsageError
from autoclip.lab.code_version import code_version, refuse_other_code
from autoclip.lab.example import Spirals
from autoclip.policies import Fixed
from autoclip.version import __version__
from tests.tiny_task import TinyTask


def test_versions_and_the_files_of_the_users_classes_are_told() -> None:
    found = code_version(TinyTask(), Fixed(1.0), Spirals())
    assert set(found) == {"autoclip", "torch", "tests.tiny_task:TinyTask"}
    assert (found["autoclip"], found["torch"]) == (__version__, torch.__version__)
    assert len(found["tests.tiny_task:TinyTask"]) == 64


def test_a_class_without_a_file_is_left_out() -> None:
    cls = type("Interactive", (), {"__module__": "__no_such_module__"})
    assert set(code_version(cls())) == {"autoclip", "torch"}


def test_an_edited_file_is_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "edited_task.py").write_text("class Task:\n    pass\n")
    module = import_module("edited_task")
    try:
        before = code_version(module.Task())
        (tmp_path / "edited_task.py").write_text("class Task:\n    x = 1\n")
        now = code_version(reload(module).Task())
    finally:
        del sys.modules["edited_task"]
    refuse_other_code(before, before, tmp_path)
    with pytest.raises(
        UsageError, match=r"begun with other code: the file of edited_task:Task changed\. Bring it back"
    ):
        refuse_other_code(before, now, tmp_path)
    monkeypatch.setenv("AUTOCLIP_ALLOW_CHANGED_CODE", "1")
    refuse_other_code(before, now, tmp_path)


def test_another_version_is_other_code_and_what_was_not_recorded_is_not(tmp_path: Path) -> None:
    now = code_version(TinyTask())
    refuse_other_code({}, now, tmp_path)
    with pytest.raises(UsageError, match=r"autoclip 0\.0\.9 is now .*; torch 1\.0 is now "):
        refuse_other_code({**now, "autoclip": "0.0.9", "torch": "1.0"}, now, tmp_path)
