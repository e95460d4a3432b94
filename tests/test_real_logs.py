"""The study of published runs: what it says of norms that are known, and what it does with a file."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from autoclip.traces import NormTrace
from experiments.studies.documents import read_csv
from experiments.studies.real_logs.__main__ import main
from experiments.studies.real_logs.facts import RULES, described, detrended, lag_1, rank_trend, replayed
from experiments.studies.real_logs.table import read_runs


def run(norms, losses=None) -> NormTrace:
    return NormTrace(np.arange(len(norms)), np.array(norms, float), "a", losses)


def table(path: Path, runs: dict[str, list[float]], loss: str = "") -> Path:
    rows = [f"{name},{step},{norm},{loss}" for name, norms in runs.items() for step, norm in enumerate(norms)]
    path.write_text("\n".join(["trace,step,norm,loss", *rows]) + "\n")
    return path


def lognormal(count: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).lognormal(0, 0.5, count).tolist()


def test_a_steady_run_with_one_spike():
    row = described(run([2.0] * 60 + [40.0] + [2.0] * 39))
    assert (row["norms"], row["stride"], row["with_loss"]) == (100, 1, False)
    assert (row["p5"], row["p50"], row["p95"]) == (2.0, 2.0, 2.0)
    assert (row["above_1"], row["above_5"], row["above_10"]) == (1.0, 0.01, 0.01)
    assert row["drift"] == 1.0
    assert row["largest_over_median"] == pytest.approx(20)
    assert row["largest_later"] == pytest.approx(20)
    assert described(run([2.0] * 4 + [40.0] + [2.0] * 95))["largest_later"] == pytest.approx(1)
    assert row["p99_over_median"] == pytest.approx(20**0.01), "numpy's percentile lies between ranks 98 and 99"
    assert (row["held_50"], row["held_90"]) == (0.02, 0.02), "one of 50 is above 2 in the second half"
    assert row["suggested"] == "probing_quantile"
    assert row["suggested_first"] is None, "equal norms look clipped"
    assert (row["promised"], row["realised"]) == (None, None)


def test_a_calm_run_whose_warm_up_ends_with_it():
    row = described(run(np.random.default_rng(0).lognormal(0, 0.2, 100)))
    assert (row["suggested"], row["suggested_first"]) == ("running_quantile", "running_quantile")
    assert row["promised"] == pytest.approx(0.1)
    assert row["realised"] is None


def test_a_run_that_rises_all_along():
    norms = np.exp(np.arange(200) / 100)
    row = described(run(norms))
    assert row["drift"] == pytest.approx(math.exp(1.6)), "160 steps lie between the middles of the two fifths"
    assert row["trend"] == pytest.approx(1.0)
    assert (row["held_50"], row["held_90"]) == (1.0, 1.0), "all of the second half is above the first"
    middle = detrended(norms)[20:-20]
    assert np.abs(middle).max() < 1e-12, "the trend is all there is"


def test_how_much_of_the_second_half_is_above_percentiles_of_the_first():
    row = described(run([*range(1, 41), *[15.0] * 20, *[30.0] * 16, *[37.0] * 4]))
    assert row["held_50"] == 0.5
    assert row["held_90"] == 0.1, "percentile 90 of 1 to 40 is 36.1"


def test_correlation_of_neighbours():
    assert lag_1(np.array([1.0, -1.0, 1.0, -1.0])) == -0.75
    assert lag_1(np.ones(5)) is None


def test_interval_of_the_rank_trend_by_hand():
    rho, low, high = rank_trend(np.array([1.0, 3.0, 2.0, 4.0, 5.0]), 28)
    assert rho == pytest.approx(0.9)
    half = 1.959964 * math.sqrt((1 + 0.81 / 2) / 25)
    assert low == pytest.approx(math.tanh(math.atanh(0.9) - half))
    assert high == pytest.approx(math.tanh(math.atanh(0.9) + half))
    assert rank_trend(np.arange(1.0, 6), 3) == (pytest.approx(1.0), -1.0, 1.0)
    assert rank_trend(np.ones(5), 5) == (0.0, -1.0, 1.0)


def test_the_interval_holds_zero_where_there_is_no_trend_but_memory():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        logs = [0.0]
        for noise in random.standard_normal(399):
            logs.append(0.8 * logs[-1] + noise)
        row = described(run(np.exp(logs[100:])))
        held += row["trend_low"] <= 0 <= row["trend_high"]
    assert held >= 53, "95 % of 60, less three standard deviations"


def test_replays_of_constants_and_promises():
    rows = {row["rule"]: row for row in replayed(run([0.5] * 100 + [2.0] * 60 + [8.0] * 40))}
    assert list(rows) == list(RULES)
    assert [rows[f"fixed {limit}"]["clip_rate"] for limit in (1, 5, 10)] == [0.5, 0.2, 0.0]
    assert rows["fixed 1"]["mean_coefficient"] == pytest.approx(0.5 * 1 + 0.3 * 0.5 + 0.2 * 0.125)
    assert rows["fixed 1"]["second_half"] == 1.0
    assert rows["fixed 1"]["promised"] is None
    promised = {name: row["promised"] for name, row in rows.items() if row["promised"] is not None}
    assert promised == {
        "fixed percentile 50": 0.5,
        "fixed percentile 90": pytest.approx(0.1),
        "running quantile 50": 0.5,
        "running quantile 90": pytest.approx(0.1),
        "AutoClip p10": 0.9,
    }
    assert rows["fixed percentile 90"]["active_steps"] == 100
    assert rows["fixed percentile 90"]["clip_rate"] == 1.0
    assert {rows[name]["with_loss"] for name in ("probing quantile", "loss-aware quantile")} == {False}
    short = {row["rule"]: row["clip_rate"] for row in replayed(run(lognormal(120)))}
    assert short["fixed percentile 90"] is None
    assert short["fixed 1"] is not None


def test_the_command_writes_tables_figure_and_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    long, large = lognormal(400), [100 * norm for norm in lognormal(300, 1)]
    runs = {"long": long, "large": large, "short": lognormal(60, 2), "again": long[50:250], "tiny": [1.0] * 5}
    file = table(tmp_path / "norms.csv", runs)
    packed = tmp_path / "norms.csv.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("# Question\n")
    main([str(packed), "--output", str(out)])
    assert capsys.readouterr().out.startswith("written: ")
    assert [row["trace"] for row in read_csv(out / "results" / "runs.csv")] == ["long", "large", "short"]
    assert len(read_csv(out / "results" / "replays.csv")) == 3 * len(RULES)
    assert (out / "real_logs.png").stat().st_size > 10_000
    text = (out / "README.md").read_text()
    assert text.startswith("# Question\n")
    assert (
        "**Of 3 published runs, a threshold of 1 would clip at least 99 % of the steps in 1 and at most 1 % in 0,"
        in text
    )
    assert "run again is a part of run long and left out; run tiny has 5 norms and is left out" in text
    assert "| running quantile 50 | 2 | 50 |" in text
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    main([str(file), "--output", str(out)])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first


def test_the_command_with_short_runs_only(tmp_path: Path):
    main([str(table(tmp_path / "norms.csv", {"a": lognormal(30)}, "1.5")), "--output", str(tmp_path / "out")])
    assert "No run is long enough for every rule." in (tmp_path / "out" / "README.md").read_text()


def test_norms_that_are_none_are_left_out(tmp_path: Path):
    path = tmp_path / "norms.csv"
    path.write_text("trace,step,norm,loss\na,0,1.5,2\na,1,,2\na,2,0,\na,3,nan,1\na,4,inf,1\na,5,2.5,\n")
    (only,) = read_runs(path)
    assert (only.steps.tolist(), only.norms.tolist()) == ([0, 5], [1.5, 2.5])
    assert only.losses is not None
    np.testing.assert_equal(only.losses, [2.0, np.nan])


HEADER = b"trace,step,norm,loss\n"


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"step,loss\n1,2\n",
        b"\xff\xfe",
        b"\x1f\x8b broken",
        gzip.compress(HEADER + b"a,1,1,1\n" * 50)[:40],
        HEADER,
        HEADER + b"a,1,large,\n",
        HEADER + b"a,1\n",
        HEADER + b"a,1,-1,\n",
        HEADER + b"a,inf,1,\n",
        HEADER + b"a,2,1,\na,1,1,\n",
        HEADER + b"a,1,1,\n",
    ],
    ids=[
        "missing",
        "empty",
        "other columns",
        "no text",
        "no gzip",
        "torn gzip",
        "no row",
        "no number",
        "half a row",
        "negative",
        "endless step",
        "steps back",
        "too short",
    ],
)
def test_a_file_that_is_no_such_table_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
):
    path = tmp_path / "norms.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as left:
        main([str(path), "--output", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert str(path) in said.err
    assert not (tmp_path / "out").exists()
