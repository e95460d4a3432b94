"""The wheel in an empty environment, as others get it; `make package` builds and installs it, and runs this."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BIN = ROOT / ".package" / "empty" / "bin"
PROGRAM = Path(__file__).with_name("typed_program.py")
MISTAKES = """
import torch
import autoclip

model = torch.nn.Linear(2, 1)
autoclip.Clipper(model, 1.0)
autoclip.Clipper(model, mode="norms")
autoclip.Clipper(model).step(loss="0.5")
autoclip.Cliper(model)
autoclip.attach(torch.optim.SGD(model.parameters()), scop="global")
"""
CHECKERS = {
    "mypy": (
        *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".package" / "mypy")),
        *("--python-executable", str(BIN / "python")),
    ),
    "pyright": (sys.executable, "-m", "pyright", "--pythonpath", str(BIN / "python")),
}
every_checker = pytest.mark.parametrize("checker", CHECKERS)


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in a folder outside of the checkout, which is on no path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    (wheel,) = (ROOT / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"autoclip", "autoclip_tuner"}
    assert "autoclip/py.typed" in names
    assert {name for name in names if name.endswith(".py")} == {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "autoclip").rglob("*.py")
    }


def test_it_has_the_version_of_the_checkout(tmp_path: Path) -> None:
    version = run(BIN / "autoclip", "--version", folder=tmp_path).stdout
    written = (ROOT / "autoclip" / "version.py").read_text(encoding="utf-8")
    assert f'__version__ = "{version.split()[1]}"' in written
    assert run(BIN / "autoclip", "doctor", folder=tmp_path).returncode == 0


def test_the_first_commands_work(tmp_path: Path) -> None:
    for command in (
        ["init"],
        ["run", "experiment.yaml"],
        ["run", "experiment.yaml", "--resume"],
        ["suggest", "runs/experiment/seed-0"],
    ):
        process = run(BIN / "autoclip", *command, folder=tmp_path)
        assert process.returncode == 0, f"{command}: {process.stderr}"
    assert len((tmp_path / "runs/experiment/seed-2/metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 1000


def test_what_needs_an_extra_says_which(tmp_path: Path) -> None:
    run(BIN / "autoclip", "init", folder=tmp_path)
    process = run(BIN / "autoclip", "sweep", "experiment.yaml", folder=tmp_path)
    assert process.returncode == 2
    assert process.stderr == "a sweep needs optuna: pip install 'autoclip-tuner[sweep,plot]'\n"


@every_checker
def test_a_typed_program_has_no_fault(tmp_path: Path, checker: str) -> None:
    process = run(*CHECKERS[checker], PROGRAM, folder=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_typed_program_runs(tmp_path: Path) -> None:
    code = "import sys, pathlib, typed_program; typed_program.main(pathlib.Path(sys.argv[1]))"
    process = run(
        BIN / "python",
        "-c",
        f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); {code}",
        tmp_path,
        folder=tmp_path,
    )
    assert process.returncode == 0, process.stderr


@every_checker
def test_mistakes_are_found_before_the_program_runs(tmp_path: Path, checker: str) -> None:
    (tmp_path / "mistakes.py").write_text(MISTAKES, encoding="utf-8")
    process = run(*CHECKERS[checker], tmp_path / "mistakes.py", folder=tmp_path)
    assert process.returncode == 1, process.stdout + process.stderr
    for line in (6, 7, 8, 9, 10):
        assert f"mistakes.py:{line}:" in process.stdout, process.stdout
