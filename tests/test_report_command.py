import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoclip.cli import app
from tests.report_runs import loaded, metrics_of, write_run, write_sweep

ROOT = Path(__file__).parent.parent


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    rows = [f"{line['step']},{line['loss']},{line['total_norm']}" for line in metrics_of()]
    (folder / "metrics.csv").write_text("\n".join(["step,loss,grad_norm", *rows]))
    return folder


def call(*arguments: str | Path):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_report_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "seed-0", metrics_of())
    result = call("report", run)
    assert (result.exit_code, result.stdout) == (0, f"{run / 'report.html'}\n")
    assert len(loaded(run / "report.html").images) == 4
    assert len(list((run / "report").glob("*.png"))) == 4


def test_report_as_json_names_what_was_written(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"fixed 1": ({"kind": "fixed", "threshold": 1.0}, 1.0, False)})
    found = json.loads(call("report", tmp_path, "-f", "json").stdout)
    assert found["kind"] == "sweep"
    assert Path(found["report"]) == tmp_path / "report.html"
    assert [Path(one).name for one in found["pictures"]] == ["pareto.png", "losses.png", "learning_rates.png"]
    assert all(Path(one).is_file() for one in found["pictures"])


def test_report_of_logs(log: Path) -> None:
    assert call("report", log).exit_code == 0
    page = loaded(log / "report.html")
    assert page.text.startswith("logs logs Gradient norms of")
    assert len(page.images) == 4
    assert call("report", log).exit_code == 0  # its own pictures are not taken for logs


def test_a_table_named_metrics_that_is_not_ours_is_a_log(tmp_path: Path) -> None:
    lines = [json.dumps({"step": line["step"], "grad_norm": line["total_norm"]}) for line in metrics_of()]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert json.loads(call("report", tmp_path, "-f", "json").stdout)["kind"] == "trace"


def test_suggest_writes_a_page_beside_what_it_prints(log: Path) -> None:
    page = log.parent / "norms.html"
    result = call("suggest", log / "metrics.csv", "--html", page)
    assert result.exit_code == 0
    assert "recommended: autoclip.RunningQuantile" in result.stdout
    assert f"wrote {page}" in result.stderr
    assert len(loaded(page).images) == len(list((log.parent / "norms").glob("*.png"))) == 4
    json.loads(call("suggest", log / "metrics.csv", "--html", page, "-f", "json").stdout)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda place: None, "holds nothing to report on; looked for a run directory (metrics.jsonl)"),
        (lambda place: (place / "config.yaml").write_text("name: x"), "has not taken a step yet"),
        (lambda place: (place / "sweep.yaml").write_text("name: x"), "has not finished"),
        (lambda place: place.rmdir(), "does not exist; a report needs a directory"),
        (lambda place: (place.rmdir(), place.touch()), "is a file; a report needs a directory"),
        (lambda place: (place / "a.csv").write_text("step,grad_norm\n1,2\n"), "too few to tell anything"),
        (lambda place: write_run(place, metrics_of()) and (place / "report").touch(), "report is a file"),
    ],
)
def test_what_cannot_be_reported_on_is_exit_code_2(tmp_path: Path, prepare, words: str) -> None:
    place = tmp_path / "given"
    place.mkdir()
    prepare(place)
    result = call("report", place)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize("name", ["summary.json", "config.yaml"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "seed-0", metrics_of())
    (run / name).write_text("{[")
    result = call("report", run)
    assert result.exit_code == 1
    assert str(run / name) in result.stderr


@pytest.mark.parametrize("name", ["page", "no/such/folder/page.html", "."])
def test_a_page_needs_a_name_and_a_folder(log: Path, name: str) -> None:
    result = call("suggest", log / "metrics.csv", "--html", log.parent / name)
    assert result.exit_code == 2
    assert "--html" in result.stderr


@pytest.mark.parametrize("command", [["report", "{run}"], ["suggest", "{run}/metrics.jsonl", "--html", "{run}/a.html"]])
def test_without_matplotlib_the_extra_is_named(tmp_path: Path, command: list[str]) -> None:
    run = write_run(tmp_path / "seed-0", metrics_of())
    arguments = [part.replace("{run}", str(run)) for part in command]
    code = "import sys; sys.modules['matplotlib'] = None; from autoclip.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "pip install 'autoclip-tuner[plot]'" in result.stderr
    assert not list(tmp_path.rglob("*.html"))
