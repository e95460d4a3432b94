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
        (
            lambda place: (place / "a.csv").write_text("step,grad_norm\n1,2\n"),
            "1 finite norm above zero (median 2, largest 2): advice needs at least 20",
        ),
        (lambda place: write_run(place, metrics_of()) and (place / "report").touch(), "report is a file"),
        (
            lambda place: (place / "report.html").mkdir(),
            "report.html is not a file, and the page needs this name: move",
        ),
    ],
)
def test_what_cannot_be_reported_on_is_exit_code_2(tmp_path: Path, prepare, words: str) -> None:
    place = tmp_path / "given"
    place.mkdir()
    prepare(place)
    result = call("report", place)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not [path for path in tmp_path.rglob("*.html") if path.is_file()]


@pytest.mark.parametrize("name", ["seed-0/summary.json", "seed-0/config.yaml", "summary.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "seed-0", metrics_of())
    (tmp_path / name).write_text("{[")
    result = call("report", tmp_path)
    assert result.exit_code == 2
    assert str(tmp_path / name) in result.stderr
    assert "start over" not in result.stderr


def test_a_page_takes_no_place_but_a_pages(log: Path) -> None:
    norms = (log / "metrics.csv").read_bytes()
    result = call("suggest", log / "metrics.csv", "--html", log / "metrics.csv")
    assert (result.exit_code, (log / "metrics.csv").read_bytes()) == (2, norms)
    assert "metrics.csv exists already and autoclip did not write it" in result.stderr
    assert "choose another name" in result.stderr
    assert not (log / "metrics").exists()

    (log / "report.html").write_text("<!DOCTYPE html>\n<html><head><title>mine</title></head></html>")
    result = call("report", log)
    assert (result.exit_code, "mine" in (log / "report.html").read_text()) == (2, True)
    assert "move it away" in result.stderr
    assert not (log / "report").exists()


def test_a_page_takes_the_place_of_an_older_one(log: Path) -> None:
    page = log / "report.html"
    assert call("report", log).exit_code == 0
    text = page.read_text()
    page.write_text(text.replace("<h1>", "<h1>old "))
    assert call("report", log).exit_code == 0
    assert page.read_text() == text


def test_a_directory_that_cannot_be_written_to_is_one_line_without_a_temporary_name(log: Path) -> None:
    (log / "report").mkdir()
    for name in ("norms.png", "histogram.png", "clip_rate.png", "losses.png", "loss.png"):
        (log / "report" / name).mkdir()
    result = call("report", log)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert f"{log / 'report.html'} and its pictures in {log / 'report'} could not be written" in result.stderr
    assert ".tmp" not in result.stderr


def test_a_seed_without_steps_is_named(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"seed-{seed}", metrics_of(seed=seed), seed=seed)
    (tmp_path / "seed-1" / "metrics.jsonl").unlink()
    seeds = [{"seed": seed, "status": "failed" if seed == 4 else "finished"} for seed in range(5)]
    (tmp_path / "summary.json").write_text(json.dumps({"seeds": seeds}))
    told = "seed 1, seed 3: left out, no metrics.jsonl that a run wrote"
    result = call("report", tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'report.html'}\n")
    assert result.stderr.startswith(f"note: {told}")
    page = loaded(tmp_path / "report.html").text
    assert told in page
    assert "every run finished" not in page
    assert "seed 1 no steps" in page
    (note,) = json.loads(call("report", tmp_path, "-f", "json").stdout)["notes"]
    assert note.startswith(told)


NANS = "".join(f"{step},nan\n" for step in range(50, 110))


@pytest.mark.parametrize("poor", ["step,grad_norm\n1,2\n2,3\n", f"step,grad_norm\n2,nan\n{NANS}"])
def test_a_log_that_tells_too_little_does_not_hide_the_others(log: Path, poor: str) -> None:
    (log / "poor.csv").write_text(poor)
    told = "poor.csv [grad_norm]: "
    for words in ([log], [log / "poor.csv", log / "metrics.csv"]):
        result = call("suggest", *words, "--html", log.parent / "page.html")
        assert result.exit_code == 0
        assert f"no advice: {log}/{told}" in result.stderr
        assert "recommended: autoclip." in result.stdout
        assert told in loaded(log.parent / "page.html").text
        told_of = json.loads(call("suggest", *words, "-f", "json").stdout)
        (found,), (refused,) = told_of["suggestions"], told_of["refused"]
        assert found["source"] == f"{log / 'metrics.csv'} [grad_norm]"
        assert f"{log}/{told}{refused['reason']}" == f"{refused['source']}: {refused['reason']}"
    result = call("report", log, "-f", "json")
    (note,) = json.loads(result.stdout)["notes"]
    assert result.exit_code == 0
    assert told in note
    assert f"note: {note}" in result.stderr
    assert told in loaded(log / "report.html").text
    (log / "metrics.csv").write_text(poor.replace("\n2", "\n4"))
    for command in ("suggest", "report"):
        result = call(command, log)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 2
    result = call("suggest", log, "-f", "json")
    assert (result.exit_code, json.loads(result.stdout)["suggestions"]) == (2, [])
    assert len(json.loads(result.stdout)["refused"]) == 2


def test_report_is_told_the_columns_of_a_log(log: Path, tmp_path: Path) -> None:
    text = (log / "metrics.csv").read_text()
    (log / "metrics.csv").write_text(text.replace("step,loss,grad_norm", "at,loss,size"))
    assert call("report", log).exit_code == 2
    assert call("report", log, "--column", "size", "--step-column", "at").exit_code == 0
    assert "[size]" in loaded(log / "report.html").text
    run = write_run(tmp_path / "run", metrics_of())
    result = call("report", run, "--column", "loss")
    assert result.exit_code == 2
    assert "--column and --step-column are for logs" in result.stderr


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
