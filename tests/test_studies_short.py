"""The studies that take minutes: what they measure, on numbers that are known."""

from collections.abc import Iterator
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

from autoclip.policies import Fixed, NoClip, RunningQuantile
from autoclip.sweeps.scoring import Run
from experiments.studies.command import short_main
from experiments.studies.documents import read_csv
from experiments.studies.drift.bad_batch import OneBadBatch
from experiments.studies.drift.replays import replayed
from experiments.studies.drift.streams import Stream, streams
from experiments.studies.kept import fill
from experiments.studies.learning_rates.sensitivity import sensitivity
from experiments.studies.loss_scale.__main__ import LossScaleStudy, _deviation, work
from experiments.studies.loss_scale.scaled import ScaledLoss
from experiments.studies.runner import recovery_from
from experiments.studies.statistics import Cell
from experiments.studies.study import Job

ROOT = Path(__file__).parent.parent
TINY = "tests.tiny_task:TinyTask"


def job(seed: int, setting: str = "0" * 8) -> Job:
    return Job("task", "arm", 0.1, seed, setting, "")


def run(losses: list[float]) -> Run:
    return Run(tuple(losses), (), (), len(losses), losses[-1], 2.0, inf, False, 1.0)


def cell(lr: float, losses: list[list[float]], failed: list[list[bool]]) -> Cell:
    array = np.array(losses)
    return Cell("a", lr, ("x", "y"), (0, 1), array, np.array(failed), np.zeros_like(array), np.ones_like(array), 2.0)


def test_what_is_kept_is_not_computed_again_and_what_is_not_asked_goes(tmp_path: Path):
    computed: list[int] = []

    def compute(one: Job) -> list[dict[str, object]]:
        computed.append(one.seed)
        return [{"part": part, "value": one.seed / 3} for part in "ab"]

    path = tmp_path / "kept.csv"
    fill(path, [job(0), job(1)], compute)
    rows = fill(path, [job(1), job(2)], compute)
    assert computed == [0, 1, 2]
    assert [(row["seed"], row["part"], row["value"]) for row in rows] == [
        ("1", "a", "0.333333"),
        ("1", "b", "0.333333"),
        ("2", "a", "0.666667"),
        ("2", "b", "0.666667"),
    ]
    assert read_csv(path) == rows
    fill(path, [job(2, setting="1" * 8)], compute)
    assert computed == [0, 1, 2, 2], "another setting is another run"


def test_sensitivity_by_hand():
    no, yes = [False, False], [False, True]
    cells = [cell(0.1, [[0.5, 0.5], [1.0, 1.0]], [no, no]), cell(1.0, [[0.5, 0.7], [2.0, 1.4]], [no, yes])]
    x, y = sensitivity(cells, "x"), sensitivity(cells, "y")
    assert x.value == pytest.approx((0 + 0 + 0 + 0.2 / 1.5) / 4)
    assert y.value == pytest.approx((1 / 3 + 1 / 3 + 1 + 1) / 4), "the failed run counts 1, not .6"
    assert (x.first, x.last, x.rates, x.of) == (0.1, 1.0, 2, 2)
    assert x.decades == pytest.approx(1.0)
    assert y.rates == 0
    assert x.low < x.value < x.high


def test_steps_until_a_run_is_back():
    calm = np.tile([1.0, 1.1], 100)
    hurt = np.concatenate([calm, [50.0], np.full(7, 5.0), calm])
    assert recovery_from(200, hurt) == 7
    assert recovery_from(200, np.concatenate([calm, [50.0], calm])) == 0
    assert recovery_from(200, np.concatenate([calm, [50.0], np.full(30, np.nan)])) == 30
    assert recovery_from(200, np.concatenate([calm, [50.0], calm[:9]])) is None


def test_spikes_are_where_the_stream_says():
    made = streams(2000)
    assert set(made) >= {"steady", "rising 100 times", "spikes"}
    spiked = made["spikes"]
    assert 5 <= spiked.spiked.sum() <= 40
    assert np.allclose(spiked.norms[spiked.spiked] / spiked.typical[spiked.spiked], 100.0)
    assert np.array_equal(spiked.norms[~spiked.spiked], spiked.typical[~spiked.spiked])
    assert np.array_equal(made["steady"].norms, streams(2000)["steady"].norms)


def test_realised_rates_and_caught_spikes():
    stream = streams(3000)["spikes"]
    tracker = replayed(stream, None, RunningQuantile(percentile=50))
    assert tracker["promised"] == 0.5
    assert tracker["clip_rate"] == pytest.approx(0.5, abs=0.02)
    assert tracker["caught"] == tracker["spikes"]
    nothing = replayed(stream, None, NoClip())
    assert (nothing["promised"], nothing["clip_rate"], nothing["caught"]) == (None, 0.0, 0)
    loose = replayed(stream, None, Fixed(20.0))
    assert loose["clip_rate"] == pytest.approx(stream.spiked.mean(), abs=0.005)
    assert loose["caught"] == 0, "twenty times the typical norm is not tamed"
    level = Stream(np.full(500, 3.0), np.full(500, 3.0), np.arange(500) == 400)
    assert replayed(level, None, NoClip())["caught"] == 1, "a spike as small as the others needs no clipping"


def test_exactly_one_batch_is_corrupted():
    task, plain = OneBadBatch(bad_step=2), OneBadBatch(bad_step=9)
    for step, (bad, good) in enumerate(zip(_some(task), _some(plain), strict=True)):
        assert torch.equal(bad[1], good[1])
        assert torch.equal(bad[0], good[0] * (100 if step == 2 else 1))
    with pytest.raises(ValueError, match="bad_step must be at least 0, got -1"):
        OneBadBatch(bad_step=-1)


def _some(task: OneBadBatch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for _, batch in zip(range(4), task.batches(0), strict=False):
        yield batch


def test_a_scaled_task_differs_in_its_training_loss_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    plain, scaled = (ScaledLoss(target=TINY, args={"features": 4}, factor=factor) for factor in (1.0, 64.0))
    model = plain.model(0).eval()
    batch = next(iter(plain.batches(0)))
    assert scaled.loss(model, batch) == 64 * plain.loss(model, batch)
    with torch.no_grad():
        assert scaled.evaluate(model) == plain.evaluate(model)
    assert (scaled.trivial_loss, scaled.data_hash) == (plain.task.trivial_loss, plain.task.data_hash)
    with pytest.raises(ValueError, match="factor must be above 0, got 0"):
        ScaledLoss(target=TINY, args={}, factor=0)


def test_deviation_by_hand():
    plain = run([1.0, 2.0, 4.0])
    same = _deviation(plain, run([8.0, 16.0, 32.0]), 8.0)
    assert (same["same_steps"], same["deviation"]) == (3, 0.0)
    other = _deviation(plain, run([8.0, 16.0, 40.0]), 8.0)
    assert (other["same_steps"], other["deviation"]) == (2, 0.25)
    assert _deviation(plain, run([8.0, float("nan")]), 8.0)["deviation"] == inf
    assert _deviation(run([1.0, float("nan")]), run([8.0, float("nan")]), 8.0)["deviation"] == 0.0


def test_loss_scale_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(
        f"name: tiny\ntask: {{target: '{TINY}'}}\noptimizer: {{kind: sgd, lr: 0.1}}\nsteps: 20\n"
    )
    (tmp_path / "study.yaml").write_text(
        "seeds: 1\ntasks: {tiny: {config: tiny.yaml, lrs: [0.1]}}\nfactors: [0.125, 1024.0]\n"
        "arms:\n  none: {policy: {kind: none}}\n  fixed: {policy: {kind: fixed, threshold: 0.5}}\n"
    )
    out = tmp_path / "out"
    short_main(tmp_path, LossScaleStudy, work, ["--output", str(out)])
    rows = {(row["arm"], float(row["factor"])): row for row in read_csv(out / "results" / "scales.csv")}
    assert {rows["none", factor]["same_steps"] for factor in (0.125, 1024.0)} == {"20"}
    assert float(rows["fixed", 1024.0]["deviation"]) > 0.01
    assert "**4 of 4 planned comparisons are in**" in (out / "README.md").read_text()
    assert (out / "loss_scale.png").exists()
