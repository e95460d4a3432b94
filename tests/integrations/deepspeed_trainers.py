"""The Trainers of Transformers and Lightning under DeepSpeed, and without it, in some processes."""

from dataclasses import asdict

import lightning as L
import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import autoclip
from autoclip.integrations.deepspeed import attach
from autoclip.integrations.lightning import AutoClipCallback
from tests.integrations import deepspeed_runs as runs
from tests.integrations.lightning_runs import Regression, data
from tests.integrations.test_transformers import autoclipped, losses_logged
from tests.small_network import Kept as Records

CONFIG = {"zero_allow_untested_optimizer": True}


def policy():
    return autoclip.LossAwareQuantile(warmup_steps=3)


def accelerate(directory, steps, *, resumed=False):
    """Training with two micro-batches a step; the state is saved in the middle, or loaded at the beginning."""
    AcceleratorState._reset_state(reset_partial_state=True)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    config = {**CONFIG, "gradient_clipping": "auto", "zero_optimization": {"stage": 2}}
    config |= {"train_micro_batch_size_per_gpu": runs.ROWS // ranks // 2, "gradient_accumulation_steps": 2}
    accelerator = Accelerator(gradient_accumulation_steps=2, deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
    net = runs.network()
    model, optimizer = accelerator.prepare(net, runs.adam(net))
    tuner, records = attach(model, runs.policy(2)), []
    if resumed:
        accelerator.load_state(str(directory))
    for step in steps:
        x, y = (one[rank::ranks] for one in runs.batch(step))
        for part in range(2):
            with accelerator.accumulate(model):
                accelerator.backward(mse_loss(model(x[part::2]), y[part::2]))
                optimizer.step()
                optimizer.zero_grad()
        records.append(asdict(tuner.last))
        if step + 1 == runs.HALF and not resumed:
            accelerator.save_state(str(directory))
    return records


def all_of_accelerate(directory):
    return {
        "records": accelerate(directory, range(runs.STEPS)),
        "resumed": accelerate(directory, range(runs.HALF, runs.STEPS), resumed=True),
    }


def transformers(directory, stage=None, **changes):
    """What a training logs, the records of its steps (on rank 0), and the weights at the end."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if stage is not None:
        filled_in = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        changes["deepspeed"] = {**CONFIG, **dict.fromkeys(filled_in, "auto"), "zero_optimization": {"stage": stage}}
    trainer, callback, records = autoclipped(directory, policy(), gradient_accumulation_steps=2, **changes)
    names = ("step", "loss", "grad_norm", "autoclip/total_norm", "autoclip/threshold")
    logs = [{name: entry.get(name) for name in names} for entry in losses_logged(trainer)]
    return {
        "logs": logs,
        "records": [asdict(record) for record in records],
        "attached": type(callback.clipper).__name__,
        "left": "step" in vars(trainer.model_wrapped),
    }


def all_of_transformers(directory):
    found = {"plain": transformers(directory / "plain")}
    for stage in range(4):
        found[f"ZeRO {stage}"] = transformers(directory / f"{stage}", stage, save_strategy="steps", save_steps=6)
    found["resumed"] = transformers(directory / "2", 2, resumed=str(directory / "2" / "checkpoint-6"))
    return found


class OnCPU(DeepSpeedStrategy):
    """Lightning's own, which refuses a CPU because it asks for the device's number."""

    def setup_environment(self):
        DDPStrategy.setup_environment(self)

    def setup_distributed(self):
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self):
        return torch.device("cpu", 0)


class Plain(Regression):
    """Without a hook of its own on the optimizer, which is DeepSpeed's here."""

    def on_train_start(self):
        pass


class Logged(L.Callback):
    """The Trainer's latest metrics after each batch."""

    def __init__(self):
        self.all = []

    def on_train_batch_end(self, trainer, *args):
        self.all.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def batches_of(rank, ranks):
    """Every so manieth batch, in order: Lightning's own sampler shuffles, in another way after a restart."""
    tensors = data().dataset.tensors
    return DataLoader(TensorDataset(*(one[rank::ranks] for one in tensors)), batch_size=None)


def lightning(ranks, stage=None, epochs=2, resume=None, save=None, **options):
    records, logged = Records(), Logged()
    callback = AutoClipCallback(policy(), sinks=[records])
    strategy = "ddp"
    if stage is not None:
        strategy = OnCPU(config={**CONFIG, "train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}})
    trainer = L.Trainer(
        callbacks=[callback, logged],
        max_epochs=epochs,
        strategy=strategy,
        accelerator="cpu",
        devices=ranks,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(Plain(), batches_of(dist.get_rank(), ranks), ckpt_path=resume)
    attached = type(callback.clipper).__name__
    if save is not None:
        trainer.save_checkpoint(save)
    return {
        "records": [asdict(record) for record in records.all],
        "logs": logged.all,
        "attached": attached,
        "clip rate": callback.clipper.clip_rate,
    }


def all_of_lightning(directory, ranks):
    found = {"plain": lightning(ranks)}
    for stage in range(4):
        found[f"ZeRO {stage}"] = lightning(ranks, stage)
    lightning(ranks, 2, epochs=1, save=directory / "half")
    found["resumed"] = lightning(ranks, 2, resume=directory / "half")
    # Both Lightning and DeepSpeed divide the loss by the number of micro-batches.
    found["accumulated"] = lightning(ranks, 2, accumulate_grad_batches=2)
    found["accumulated, plain"] = lightning(ranks, accumulate_grad_batches=2)
    found["gradient_clip_val"] = lightning(ranks, 2, gradient_clip_val=0.3)
    return found
