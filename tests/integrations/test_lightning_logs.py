import csv
import math
from pathlib import Path

import pytest
import torch

import autoclip

L = pytest.importorskip("lightning")

from lightning.pytorch.loggers import CSVLogger  # noqa: E402 - not without lightning

from autoclip.integrations.lightning import AutoClipCallback  # noqa: E402
from tests.integrations.lightning_runs import STEPS, Adversaries, LossOf, Regression, data, fit, half  # noqa: E402
from tests.small_network import Kept as Records  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),  # tiny data need none
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),  # Lightning calls torch's old name
]


def read_csv(logger):
    with (Path(logger.log_dir) / "metrics.csv").open() as lines:
        return list(csv.DictReader(lines))


def test_the_trainers_logger_gets_what_the_clipper_recorded(tmp_path):
    records, logger = Records(), CSVLogger(tmp_path)
    callback = AutoClipCallback(autoclip.RunningQuantile(warmup_steps=5), sinks=[records])
    fit(Regression(), callback, data(2), accumulate_grad_batches=2, logger=logger, log_every_n_steps=1)
    rows = read_csv(logger)
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    assert [float(row["autoclip/total_norm"]) for row in rows] == [record.total_norm for record in records.all]
    assert [float(row["autoclip/coefficient"]) for row in rows] == [record.coefficient for record in records.all]
    assert records.all[0].threshold == math.inf
    assert rows[0]["autoclip/threshold"] == ""
    assert [float(row["autoclip/threshold"]) for row in rows[1:]] == [record.threshold for record in records.all[1:]]
    assert float(rows[-1]["autoclip/clip_rate"]) == callback.clipper.clip_rate > 0
    assert float(rows[-1]["autoclip/mean_coefficient"]) == callback.clipper.mean_coefficient < 1


def test_the_logger_gets_a_line_every_log_every_n_steps_and_barebones_gets_none(tmp_path):
    records, logger = Records(), CSVLogger(tmp_path)
    fit(Regression(), AutoClipCallback(sinks=[records]), logger=logger, log_every_n_steps=5)
    rows = read_csv(logger)
    assert [int(row["step"]) for row in rows] == [4, 9, 14, 19]
    assert [float(row["autoclip/total_norm"]) for row in rows] == [
        records.all[step].total_norm for step in (4, 9, 14, 19)
    ]
    bare = AutoClipCallback()
    trainer = L.Trainer(barebones=True, max_steps=3, accelerator="cpu", devices=1, callbacks=[bare])
    trainer.fit(Regression(), data())
    assert bare.clipper.last.step == 2


@pytest.mark.parametrize("options", [{}, half()], ids=["32-true", "16-mixed"])
def test_manual_optimization_with_two_optimizers(tmp_path, options):
    logger, module, callback = CSVLogger(tmp_path), Adversaries(), AutoClipCallback(LossOf())
    fit(module, callback, data(spike=1), logger=logger, log_every_n_steps=1, **options)
    first, second = callback.clippers
    assert (first.last.step, second.last.step) == (STEPS - 1, STEPS // 2 - 1)
    assert second.policy is not first.policy
    for clipper, losses in zip(callback.clippers, module.losses, strict=True):
        assert clipper.policy.told == pytest.approx(losses, rel=1e-6)
    row = read_csv(logger)[-1]
    for index, clipper in enumerate(callback.clippers):
        assert float(row[f"autoclip/total_norm/{index}"]) == clipper.last.total_norm
        assert float(row[f"autoclip/threshold/{index}"]) == clipper.last.threshold
    assert "autoclip/total_norm" not in row
    with pytest.raises(RuntimeError, match="2 clippers, one for each optimizer: use `clippers`"):
        _ = callback.clipper


def test_an_optimizer_is_not_logged_in_an_epoch_before_its_first_step(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(Adversaries(), AutoClipCallback(), logger=logger, log_every_n_steps=1, max_epochs=2)
    rows = read_csv(logger)
    assert len(rows) == 2 * STEPS
    for start in (0, STEPS):
        assert [row["autoclip/total_norm/1"] == "" for row in rows[start : start + 3]] == [True, False, False]
        assert all(row["autoclip/total_norm/0"] for row in rows[start : start + 3])


def test_a_threshold_for_each_parameter_by_its_name(tmp_path):
    class Named(Regression):
        def configure_optimizers(self):
            return torch.optim.SGD(self.named_parameters(), lr=0.01)

    logger, records = CSVLogger(tmp_path), Records()
    callback = AutoClipCallback(autoclip.AdaGC(warmup_steps=3), sinks=[records])
    module = Named()
    fit(module, callback, logger=logger, log_every_n_steps=1)
    assert list(callback.clipper.threshold) == [f"net.{name}" for name, _ in module.net.named_parameters()]
    logged = [row["autoclip/threshold"] for row in read_csv(logger)]
    assert [float(text) for text in logged if text] == [
        one.threshold for one in records.all if one.threshold < math.inf
    ]


def test_a_threshold_that_ends_is_not_logged_on(tmp_path):
    class Ending(autoclip.Fixed):
        def _threshold(self):
            return super()._threshold() if self.learned_norms < 5 else math.inf

    logger = CSVLogger(tmp_path)
    fit(Regression(), AutoClipCallback(Ending(2.0)), logger=logger, log_every_n_steps=1)
    logged = [float(row["autoclip/threshold"]) for row in read_csv(logger)]
    assert logged == [2.0] * 5 + [math.inf] * (STEPS - 5)


def test_a_clipper_that_does_not_wait_is_looked_at_only_where_a_line_is_logged(tmp_path, monkeypatch):
    class Fused(Regression):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01, fused=True)

    def rows(**options):
        logger = CSVLogger(tmp_path, name=str(options))
        fit(Fused(), AutoClipCallback(**options), logger=logger, log_every_n_steps=5)
        return [{name: value for name, value in row.items() if "autoclip" in name} for row in read_csv(logger)]

    waiting = rows(host_wait=True)
    settled = []
    settle = autoclip.Clipper.settle

    def counted(clipper):
        settled.append(clipper.is_settled)
        settle(clipper)

    monkeypatch.setattr(autoclip.Clipper, "settle", counted)
    assert rows(host_wait=False) == waiting
    assert len(waiting) == 4
    assert settled.count(False) == 4 + 1  # and when the clippers are taken off
