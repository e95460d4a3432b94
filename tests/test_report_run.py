import json
import struct
from pathlib import Path

import pytest

from autoclip.report.writing import write_report
from tests.report_runs import Page, loaded, metrics_of, write_run

QUANTILE = {"kind": "running_quantile", "percentile": 50, "warmup_steps": 20}
ALL = ["norms", "loss", "clip_rate", "norm_histogram", "layers"]


def write_layers(run: Path) -> None:
    lines = [{"step": step, "norms": {f"fc{n}.weight": 0.1 * (n + 1) for n in range(8)}} for step in range(0, 100, 20)]
    (run / "layers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def report(directory: Path) -> tuple[Page, list[str]]:
    kind, page, pictures, *_ = write_report(directory)
    assert kind == "run"
    assert page == directory / "report.html"
    for path in pictures:
        head = path.read_bytes()[:24]
        assert head.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", head[16:])[0] >= 1080
    found = loaded(page)
    assert len(found.images) == len(pictures)
    assert not list(directory.rglob("*.tmp"))
    return found, [path.stem for path in pictures]


def test_a_run_directory_with_everything(tmp_path: Path) -> None:
    run = write_run(tmp_path / "seed-7", metrics_of(nonfinite=[50]), seed=7, policy=QUANTILE)
    write_layers(run)
    page, pictures = report(run)
    assert pictures == ALL
    for words in (
        "seed 7 finished 120 0.2 1.1",
        "Norm and threshold, seed 7",
        "seed 7: gradient flow healthy: from first to last of 8 layers the norm rises by 0.",
        "not finite in 1 of 120 steps",
        "the percentile promises 50%",
        "Best constant",
        "config.yaml of seed 7",
    ):
        assert words in page.text


def test_all_seeds_of_an_experiment(tmp_path: Path) -> None:
    for seed in (0, 1, 10, 2):
        write_run(tmp_path / f"seed-{seed}", metrics_of(seed=seed), seed=seed)
    total = {"name": "four seeds", "policy": "Fixed(threshold=1.0)", "seeds": []}
    (tmp_path / "summary.json").write_text(json.dumps(total))
    page, pictures = report(tmp_path)
    assert pictures == ["norms_seed_0", "norms_seed_1", "norms_seed_2", "norms_seed_10", *ALL[1:4]]
    assert "four seeds Training run, 4 seeds, clipped by Fixed(threshold=1.0)" in page.text
    assert "every run finished" in page.text
    assert "log.layers_every" in page.text


def test_a_seed_that_failed_is_in_the_table_with_its_error(tmp_path: Path) -> None:
    write_run(tmp_path / "seed-0", metrics_of())
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "metrics.jsonl").touch()
    seeds = [{"seed": 1, "status": "failed", "error": "<b>broke</b>"}, {"seed": 2, "status": "failed", "error": "too"}]
    (tmp_path / "summary.json").write_text(json.dumps({"name": "x", "seeds": seeds}))
    page, pictures = report(tmp_path)
    assert "problem seed 1 failed: <b>broke</b>" in page.text
    assert page.text.count("seed 1 failed 0") == 1
    assert "seed 2 failed -" in page.text
    assert pictures == ["norms_seed_0", *ALL[1:4]]


@pytest.mark.parametrize(
    ("lines", "pictures"),
    [
        pytest.param([], [], id="no step"),
        pytest.param(metrics_of(1), ["norms", "loss", "norm_histogram"], id="one step"),
        pytest.param(metrics_of(5, nonfinite=range(5)), [], id="all not finite"),
        pytest.param(metrics_of(60, threshold=None), ["norms", "loss", "norm_histogram"], id="no threshold"),
        pytest.param(metrics_of(90, nonfinite=range(60, 90)), ALL[:4], id="diverged"),
        pytest.param([line | {"total_norm": 0.0, "clipped": False} for line in metrics_of(60)], ["loss"], id="zeros"),
        pytest.param([line | {"loss": None} for line in metrics_of(60)], [ALL[0], *ALL[2:4]], id="no losses"),
        pytest.param([line | {"total_norm": 2.0} for line in metrics_of(60)], ALL[:4], id="equal norms"),
        pytest.param(
            [line | {"total_norm": 10.0 ** (300 * (-1) ** line["step"])} for line in metrics_of(60)],
            ALL[:4],
            id="600 decades",
        ),
        pytest.param([line | {"loss": -line["loss"]} for line in metrics_of(60)], ALL[:4], id="negative losses"),
        pytest.param([line | {"step": 10**9 + line["step"]} for line in metrics_of(60)], ALL[:4], id="late steps"),
        pytest.param([line | {"phase": "warmup"} for line in metrics_of(60)], [*ALL[:2], ALL[3]], id="only warm-up"),
    ],
)
def test_runs_that_went_wrong_or_hardly_began(tmp_path: Path, lines, pictures) -> None:
    found, drawn = report(write_run(tmp_path / "seed-0", lines, policy=QUANTILE))
    assert drawn == pictures
    if not pictures:
        assert "nothing to draw" in found.text


def test_a_loop_of_ones_own_has_metrics_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", metrics_of())
    (run / "summary.json").unlink()
    (run / "config.yaml").unlink()
    page, pictures = report(run)
    assert pictures == ALL[:4]
    assert page.text.startswith("mine mine Training run, mine, clipped by policy not recorded")
    assert "not ended yet" in page.text


@pytest.mark.parametrize(
    ("mode", "words"),
    [("value", "largest gradient element"), ("agc", "gradient norm / weight norm"), ("param_rms", "parameter RMS")],
)
def test_the_axis_says_what_the_norm_is(tmp_path: Path, mode: str, words: str) -> None:
    run = write_run(tmp_path / "seed-0", metrics_of())
    (run / "config.yaml").write_text(f"clip: {{mode: {mode}, scope: parameter}}")
    page, _ = report(run)
    assert words in (page.images[0]["alt"] or "")
    assert "Scope parameter" in page.text


def test_updates_are_drawn_beside_gradients(tmp_path: Path) -> None:
    lines = [{**line, "update_norm": 0.1} if line["step"] % 5 == 0 else line for line in metrics_of()]
    page, pictures = report(write_run(tmp_path / "seed-0", lines, policy=QUANTILE))
    assert pictures == [*ALL[:4], "updates"]
    assert "Updates beside gradients" in page.text


def test_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    nasty = "<script src='https://x'>$\\frac{</script>"
    run = write_run(tmp_path / "seed-0", metrics_of(), seed=nasty, policy=nasty and QUANTILE)
    summary = json.loads((run / "summary.json").read_text()) | {"name": nasty, "policy": nasty, "device": nasty}
    (run / "summary.json").write_text(json.dumps(summary))
    write_layers(run)
    path = write_report(run).page
    text = path.read_text()
    assert "<script" not in text
    assert "&lt;script src=&#39;https://x&#39;&gt;" in text
    assert Page(text).is_whole()


def test_many_seeds_are_drawn_alike(tmp_path: Path) -> None:
    for seed in range(10):
        write_run(tmp_path / f"seed-{seed}", metrics_of(seed=seed), seed=seed)
    page, pictures = report(tmp_path)
    assert len(pictures) == 13
    assert "10 seeds" in page.text


DEFAULT = {"kind": "probing_quantile", "percentile": 90.0}
CLIPS = "the default clips 10 to 40% of the steps in a healthy training; here "


def test_of_the_default_it_is_told_whether_it_clips_as_often_as_it_should(tmp_path: Path) -> None:
    lines = [line | {"phase": "active", "clipped": line["step"] < 24} for line in metrics_of()]
    run = write_run(tmp_path / "seed-0", lines, policy=DEFAULT)
    written = write_report(run)
    assert written.notes == [f"{CLIPS}20.0%, as it should be"]
    assert written.as_json()["notes"] == written.notes
    text = loaded(run / "report.html").text
    assert f"ok {CLIPS}20.0%, as it should be" in text
    assert "of the steps after the warm-up were clipped, with" not in text
    write_run(tmp_path / "seed-1", [line | {"clipped": True} for line in lines], policy=DEFAULT, seed=1)
    told = f"{CLIPS}20.0% to 100.0%; seed 1: it has only 120 steps after the warm-up, and the first 160 open the "
    assert write_report(tmp_path).notes == [f"{told}threshold"]


def test_of_other_policies_and_without_an_active_step_it_is_not_told(tmp_path: Path) -> None:
    assert write_report(write_run(tmp_path / "a", metrics_of(), policy=QUANTILE)).notes == []
    assert write_report(write_run(tmp_path / "b", metrics_of(10), policy=DEFAULT)).notes == []
