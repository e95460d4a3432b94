import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")

SCRIPT = """
import json, sys
import torch, lightning as L
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader, TensorDataset
import autoclip
from autoclip.integrations.lightning import AutoClipCallback
from autoclip.records import Sink
from tests.distributed.worker import leave

torch.set_num_threads(1)


class FSDPOnCPU(FSDPStrategy):
    def _setup_model(self, model):
        wrapped = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
        return model if wrapped else wrap(model)


def wrap(module):
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


class Regression(L.LightningModule):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.kind = kind

    def configure_model(self):
        if self.kind == "fsdp2":
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])
        if self.kind == "fsdp in parts":
            self.net[0] = wrap(self.net[0])

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Records(Sink):
    def __init__(self):
        self.all = []

    def log(self, record):
        self.all.append([record.total_norm, record.threshold, record.loss, record.clipped])


random = torch.Generator().manual_seed(0)
inputs = torch.randn(96, 4, generator=random)
targets = inputs.sum(1, keepdim=True) * torch.linspace(1, 9, 96)[:, None]
loader = DataLoader(TensorDataset(inputs, targets), batch_size=4)
result = {}
for kind in ("ddp", "fsdp", "fsdp2", "fsdp in parts"):
    records = Records()
    callback = AutoClipCallback(autoclip.LossAwareQuantile(warmup_steps=4), sinks=[records])
    strategy = "ddp" if kind == "ddp" else FSDPOnCPU()
    if kind == "fsdp2":
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=2, callbacks=[callback], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    if kind == "fsdp in parts":
        try:
            trainer.fit(Regression(kind), loader)
        except ValueError as error:
            result[kind] = str(error)
    else:
        trainer.fit(Regression(kind), loader)
        result[kind] = {"records": records.all, "state": callback.state_dict()}
    with open(f"{sys.argv[1]}/rank{trainer.global_rank}.json", "w") as out:
        json.dump(result, out)
leave()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes, which gloo connects, had under each strategy."""
    directory = tmp_path_factory.mktemp("ranks")
    script = directory / "train.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    ran = subprocess.run(
        [sys.executable, script, directory], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads((directory / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp2"])
def test_ranks_hold_exactly_the_same_thresholds(ranks, kind):
    first, second = (rank[kind] for rank in ranks)
    assert first["state"] == second["state"]
    assert len(first["records"]) == 24
    assert second["records"] == []  # sinks are told by rank 0
    assert sum(clipped for *_, clipped in first["records"]) >= 5
    # All strategies take the same steps: they differ in how sums are rounded.
    for (norm, threshold, loss, _), (same, bound, mean, _) in zip(
        first["records"], ranks[0]["ddp"]["records"], strict=True
    ):
        assert (norm, threshold, loss) == pytest.approx((same, bound, mean), rel=1e-5)


def test_parts_wrapped_in_fsdp_by_themselves_are_refused(ranks):
    assert "the module as a whole has to be wrapped" in ranks[0]["fsdp in parts"]
