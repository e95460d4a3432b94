"""Logs and run directories by somebody else: nothing in them becomes markup, leads elsewhere or is waited for."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoclip.cli import app
from autoclip.errors import RunError, UsageError
from autoclip.report.writing import write_report
from tests.report_runs import Page, metrics_of, write_run, write_sweep

NASTY = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"' & javascript:alert(1) \x1b[2J\u202e"
ALLOWED = {
    *("html", "head", "meta", "title", "link", "style", "body", "h1", "h2", "p", "div", "table", "thead", "tbody"),
    *("tr", "th", "td", "ul", "li", "b", "figure", "figcaption", "img", "details", "summary", "pre"),
}
DEEP = "[" * 200_000

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's, of characters that its font lacks


def checked(path: Path) -> Page:
    """A page that holds no markup of anybody else's."""
    text = path.read_text()
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= ALLOWED
    styles = text.split("<style>")[1:]
    assert len(styles) == 1
    assert "alert" not in styles[0].split("</style>")[0]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "link" or attributes["href"] == "data:,"
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/png;base64,")
        assert set(attributes) <= {
            *("lang", "charset", "http-equiv", "content", "name", "rel", "href", "class", "alt", "src"),
            *("width", "height", "data-name"),
        }
    return page


def nasty_run(directory: Path) -> Path:
    """A run directory whose every text is nasty."""
    write_run(directory, metrics_of(60))
    summary = json.loads((directory / "summary.json").read_text())
    summary |= dict.fromkeys(("name", "policy", "device", "precision", "data_hash", "status", "seed"), NASTY)
    summary |= {"task": {NASTY: NASTY}, "versions": {NASTY: NASTY}}
    (directory / "summary.json").write_text(json.dumps(summary))
    layers = [{"step": step, "norms": {f"{NASTY}.{n}.weight": 1.0 / (n + 1) for n in range(3)}} for step in (0, 9)]
    (directory / "layers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in layers))
    quoted = json.dumps(NASTY)
    (directory / "config.yaml").write_text(f"name: {quoted}\nclip: {{mode: {quoted}, policy: {{kind: {quoted}}}}}\n")
    return directory


def test_a_run_whose_texts_are_markup(tmp_path: Path) -> None:
    nasty_run(tmp_path / "a")
    write_report(tmp_path / "a")
    page = checked(tmp_path / "a" / "report.html")
    assert "alert(1)" in page.text, "it is shown, as text"


def test_seeds_and_failures_whose_texts_are_markup(tmp_path: Path) -> None:
    out = tmp_path / "x<script>alert(1)<"
    nasty_run(out / "seed-0")
    nasty_run(out / "seed-<script>alert(1)<")
    total = {"name": NASTY, "policy": NASTY, "seeds": [{"seed": NASTY, "status": "failed", "error": NASTY}]}
    (out / "summary.json").write_text(json.dumps(total))
    write_report(out)
    assert "alert(1)" in checked(out / "report.html").text
    for picture in (out / "report").iterdir():
        assert picture.name.isprintable()
        assert not set(picture.name) & set("<>\"'&")


def test_a_sweep_whose_candidates_are_markup(tmp_path: Path) -> None:
    policy = {"kind": NASTY, NASTY: NASTY}
    write_sweep(tmp_path, {NASTY: (policy, 1.0, False), "b": (policy, 2.0, False)}, multipliers=(1,))
    (tmp_path / "sweep.yaml").write_text(f"name: {json.dumps(NASTY)}\n")
    (tmp_path / "recommended.yaml").write_text(NASTY)
    write_report(tmp_path)
    assert "alert(1)" in checked(tmp_path / "report.html").text


@pytest.mark.parametrize("name", ["x<script>alert(1)<.jsonl", "x\" onerror='alert(1).jsonl", "\udcff\udcfe.jsonl"])
def test_a_log_whose_name_and_column_are_markup(tmp_path: Path, name: str) -> None:
    rows = [{"step": step, f"{NASTY}/grad_norm": 1.0 + step % 7} for step in range(300)]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(app, ["suggest", str(tmp_path / "logs"), "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "alert" in result.output
    assert not any(ord(character) < 32 and character != "\n" for character in result.output), "a terminal would obey"
    checked(tmp_path / "page.html")
    write_report(tmp_path / "logs")
    checked(tmp_path / "logs" / "report.html")


def test_a_report_follows_no_link_that_it_finds(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    run = write_run(tmp_path / "a", metrics_of(40))
    for name in ("report.html", f"report.html.{os.getpid()}.tmp"):
        (run / name).symlink_to(outside / "kept")
    write_report(run)
    assert (outside / "kept").read_text() == "kept"
    assert not (run / "report.html").is_symlink()

    other = write_run(tmp_path / "b", metrics_of(40))
    (other / "report").symlink_to(outside)
    with pytest.raises(UsageError, match="report is a link"):
        write_report(other)
    assert [path.name for path in outside.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "config.yaml", "layers.jsonl"])
def test_a_pipe_in_a_run_directory_is_not_waited_for(tmp_path: Path, name: str) -> None:
    run = nasty_run(tmp_path / "a")
    (run / name).unlink()
    os.mkfifo(run / name)
    try:
        write_report(run)
    except (UsageError, RunError) as error:
        complaint = str(error)
    else:
        complaint = name
        assert name == "layers.jsonl"
    assert name in complaint


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "config.yaml", "layers.jsonl"])
def test_nesting_without_end_in_a_run_directory_is_no_traceback(tmp_path: Path, name: str) -> None:
    run = nasty_run(tmp_path / "a")
    text = {"metrics.jsonl": '{"step": 0, "x": ' + DEEP, "config.yaml": "a: " + DEEP}.get(name, DEEP)
    (run / name).write_text(text)
    result = CliRunner().invoke(app, ["report", str(run)])
    assert result.exit_code in (0, 1, 2)
    assert isinstance(result.exception, SystemExit | None)
    assert "Traceback" not in result.output


def test_a_configuration_that_explodes_is_not_unfolded_by_a_report(tmp_path: Path) -> None:
    run = nasty_run(tmp_path / "a")
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    (run / "config.yaml").write_text(f"{bomb}name: *a59\n")
    with pytest.raises(UsageError, match="aliases"):
        write_report(run)


@pytest.mark.parametrize("name", ["trainer_state.json", "x.jsonl", "x.csv", "x.json", "x"])
@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"log_history": ' + DEEP,
        '{"step": 1, "grad_norm": ' + "9" * 100_000 + "}\n",
        "1,2\n" * 1000 + '"' * 99_999,
    ],
    ids=["deep", "deep within", "digits", "quotes"],
)
def test_texts_that_strain_a_reader_are_one_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    for command in ("suggest", "replay"):
        result = CliRunner().invoke(app, [command, str(tmp_path / name)])
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)
        assert name in result.output
