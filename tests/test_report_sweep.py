import csv
import json
from pathlib import Path

import pytest

from autoclip.errors import UsageError
from autoclip.report.sweep_data import read_sweep
from autoclip.report.sweep_page import compared
from autoclip.report.writing import write_report
from autoclip.sweeps.picks import pick
from tests.report_runs import loaded, write_sweep

FIXED = {"kind": "fixed", "threshold": 1.0}
NASTY = "m:P(a=<script>$x_1 & '\"\\{)"
CANDIDATES = {
    "fixed 1": (FIXED, 1.0, False),
    "fixed 5": ({"kind": "fixed", "threshold": 5.0}, 1.4, False),
    "none": ({"kind": "none"}, 3.0, True),
    "running_quantile p50": ({"kind": "running_quantile", "percentile": 50.0}, 0.9, False),
    NASTY: ({"kind": "m:P", "a": 1}, 1.2, False),
}


def test_a_sweep_is_read_back_as_it_was_scored(tmp_path: Path) -> None:
    results = write_sweep(tmp_path, CANDIDATES)
    found = read_sweep(tmp_path)
    assert found.name == "swept by hand"
    assert [one.candidate for one in found.results] == [one.candidate for one in results]
    for one, other in zip(found.results, results, strict=True):
        assert one.scores == other.scores
        assert one.convergence == pytest.approx(other.convergence, rel=1e-5)
        assert one.instability == pytest.approx(other.instability, rel=1e-5)
        assert one.steps_to_target == other.steps_to_target
    before = pick(results)
    assert before is not None
    assert found.picks is not None
    assert found.picks.without == before.without
    assert {name: one.candidate for name, one in found.picks.named.items()} == {
        name: one.candidate for name, one in before.named.items()
    }


def test_the_page_of_a_sweep(tmp_path: Path) -> None:
    write_sweep(tmp_path, CANDIDATES)
    kind, path, pictures, *_ = write_report(tmp_path)
    assert (kind, [one.stem for one in pictures]) == ("sweep", ["pareto", "losses", "learning_rates"])
    page = loaded(path)
    assert len(page.images) == 3
    for words in (
        "swept by hand Sweep over 5 candidates, 2 seeds, 2 learning rates (x 1, 3)",
        "Train with running_quantile p50, the balanced pick of this sweep.",
        "recommended: running_quantile p50, the balanced pick (also the fastest and the steadiest)",
        "without clipping 4 of 4 runs failed",
        "clipper = autoclip.Clipper(model, autoclip.RunningQuantile(percentile=50)) optimizer.zero_grad()",
        "'clip.policy={kind: running_quantile, percentile: 50.0}' \\ --output-dir 'runs/swept by hand'",
        "kind: running_quantile",
        NASTY,
        "Crosses failed",
    ):
        assert words in page.text
    assert page.text.index("What to do") < page.text.index("Why ok recommended")
    assert len([tag for tag, attributes in page.tags if attributes.get("class") == "marked"]) == 2
    assert page.images[1]["alt"] == "Training loss over optimizer steps for running_quantile p50, none, fixed 1."


def test_a_module_of_the_user_is_named_and_not_imported(tmp_path: Path) -> None:
    write_sweep(tmp_path, {NASTY: ({"kind": "no_such_module:P"}, 1.0, False), "fixed 1": (FIXED, 2.0, False)})
    page = loaded(write_report(tmp_path).page)
    assert "kind: no_such_module:P" in page.text
    assert f"autoclip.Clipper(model, **autoclip.from_config('{tmp_path}/recommended.yaml'))" in page.text


def test_where_every_candidate_failed_nothing_is_recommended(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"none": ({"kind": "none"}, 3.0, True), "fixed 1": (FIXED, 2.0, True)})
    page = loaded(write_report(tmp_path).page)
    assert "problem every candidate failed" in page.text
    assert "Nothing can be recommended" in page.text
    assert "Train with" not in page.text
    assert len(page.images) == 3


def test_one_learning_rate_has_no_picture_of_learning_rates(tmp_path: Path) -> None:
    write_sweep(tmp_path, CANDIDATES, multipliers=[1])
    assert [path.stem for path in write_report(tmp_path).pictures] == ["pareto", "losses"]


def test_a_single_candidate_is_a_sweep_too(tmp_path: Path) -> None:
    write_sweep(tmp_path, {"fixed 1": (FIXED, 1.0, False)})
    assert len(loaded(write_report(tmp_path).page).images) == 3


def test_what_is_compared_is_few_and_telling(tmp_path: Path) -> None:
    many = {f"fixed {n}": ({"kind": "fixed", "threshold": float(n)}, 1 + n / 10, n == 1) for n in range(1, 12)}
    results = write_sweep(tmp_path, {"none": ({"kind": "none"}, 3.0, True), **many})
    names = [one.candidate.name for one in compared(results, pick(results))]
    assert names == ["fixed 2", "none", "fixed 3"]
    failed = [one for one in results if one.failures]
    assert {one.candidate.name for one in compared(failed, None)} == {"none", "fixed 1"}


def test_an_unfinished_sweep_is_told(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("name: x")
    with pytest.raises(UsageError, match=r"has not finished: there is no trials\.csv"):
        write_report(tmp_path)


def test_runs_that_were_removed_are_told(tmp_path: Path) -> None:
    write_sweep(tmp_path, CANDIDATES)
    (tmp_path / "runs" / "fixed-5" / "lr-x3" / "seed-1" / "summary.json").unlink()
    with pytest.raises(UsageError, match=r"fixed-5 holds 3 finished runs, but trials\.csv names 4"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        b"a,b\n1,2\n",
        b"candidate,runs\nfixed 1,x\n",
        b"candidate\n",
        b"",
        b"candidate,runs\n" + b"x" * 200_000,
        b"candidate,runs\n\xff,1\n",
    ],
    ids=["other columns", "no number", "no rows", "empty", "200 kB in a field", "no text"],
)
def test_other_tables_are_not_taken_for_a_sweep(tmp_path: Path, table: bytes) -> None:
    (tmp_path / "trials.csv").write_bytes(table)
    with pytest.raises(UsageError, match=r"trials\.csv"):
        write_report(tmp_path)


def test_a_race_that_left_runs_behind(tmp_path: Path) -> None:
    """A candidate with fewer seeds, and a run that was begun and not needed."""
    write_sweep(tmp_path, CANDIDATES)
    for place in (tmp_path / "runs" / "fixed-5").glob("*/seed-1"):
        (place / "summary.json").write_text(json.dumps({"status": "interrupted"}))
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(row | ({"runs": "2", "seeds": "1"} if row["candidate"] == "fixed 5" else {}) for row in rows)
    page = loaded(write_report(tmp_path).page)
    assert "Hollow: fewer than 2 seeds" in page.text


def test_the_runs_of_a_training_script_have_a_clip_section_only(tmp_path: Path) -> None:
    results = write_sweep(tmp_path, CANDIDATES)
    for config in list((tmp_path / "runs").rglob("config.yaml")):
        config.rename(config.with_name("clip.yaml"))
    assert [one.candidate for one in read_sweep(tmp_path).results] == [one.candidate for one in results]
