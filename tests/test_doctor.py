import platform
import sys
import tomllib
import types
from pathlib import Path

import torch

import autoclip
from autoclip.doctor import (
    DISTRIBUTION,
    OPTIONAL,
    Row,
    examine,
    imported_package,
    installed_version,
    optional_packages,
    same_version,
    torch_rows,
    ways_in,
)

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def by_name(rows: list[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


def distribution(folder: Path, name: str, version: str) -> None:
    """What pip leaves behind when it installs a distribution."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


def test_the_optional_packages_are_those_of_the_project():
    assert PROJECT["name"] == DISTRIBUTION
    extras = {extra: needs for extra, needs in PROJECT["optional-dependencies"].items() if extra not in ("all", "dev")}
    assert {need.split(">=")[0]: extra for extra, needs in extras.items() for need in needs} == OPTIONAL


def test_it_tells_the_versions(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Model {index}")
    rows = by_name(examine())
    assert rows["python"].value.startswith(platform.python_version())
    assert rows["autoclip"].value.startswith(autoclip.__version__)
    assert rows["torch"].value == torch.__version__
    assert f"torch uses {torch.get_num_threads()} threads" in rows["device cpu"].value
    assert rows["device cuda:1"].value == "Model 1"
    assert rows["imported package"].ok
    assert rows["import name"].ok
    monkeypatch.setitem(sys.modules, "torch", None)
    (row,) = torch_rows()
    assert (row.ok, row.value.partition(":")[0]) == (False, "cannot be imported")


def test_the_other_distribution_of_the_same_name_is_found(tmp_path, monkeypatch):
    distribution(tmp_path, "autoclip", "0.2.1")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    row = by_name(examine())["import name"]
    assert not row.ok
    assert "0.2.1" in row.value
    assert row.advice == "pip uninstall autoclip autoclip-tuner, then pip install autoclip-tuner"


def test_a_package_that_was_written_over_is_another_one():
    def package(file, **names):
        module = types.ModuleType("autoclip")
        vars(module).update(names, __file__=file)
        return imported_package(module)

    assert imported_package(autoclip).ok
    without_names = package(autoclip.__file__)
    assert not without_names.ok
    assert "force-reinstall" in without_names.advice
    elsewhere = package("/elsewhere/autoclip/__init__.py", POLICIES=autoclip.POLICIES)
    assert not elsewhere.ok
    assert "/elsewhere" in elsewhere.value


def test_the_installed_version_is_the_imported_one():
    for installed, ok, text in (
        (None, True, "not installed"),
        ("0.1.0", True, "0.1.0"),
        ("0.0.9", False, "0.0.9 is installed, but version 0.1.0"),
    ):
        row = same_version(installed, "0.1.0")
        assert (row.ok, bool(row.advice)) == (ok, not ok)
        assert text in row.value


def test_an_optional_package_is_shown_with_its_version_or_with_what_installs_it(tmp_path, monkeypatch):
    distribution(tmp_path, "optuna", "5.1.2")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    rows = by_name(list(optional_packages()))
    assert rows["optuna"].value == "5.1.2"
    assert rows["wandb"].value == "not installed (extra: wandb)"
    assert all(row.ok for row in rows.values())
    assert installed_version("wandb") is None


def test_the_engines_that_are_found_are_named_with_the_way_in(tmp_path, monkeypatch):
    distribution(tmp_path, "deepspeed", "0.19.8")
    distribution(tmp_path, "verl", "0.8.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert [(row.name, row.value, row.ok) for row in ways_in()] == [
        ("way into deepspeed", "autoclip.integrations.deepspeed.attach(engine)", True),
        ("way into verl", "autoclip.Tuner()", True),
    ]
