"""Small trainings that the tests of the Lightning callback share."""

from dataclasses import KW_ONLY, dataclass

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, TensorDataset

import autoclip

STEPS = 24


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


class Regression(L.LightningModule):
    """Keeps the loss of every batch, and the norm that every step left of the gradients."""

    def __init__(self, fused=False):
        super().__init__()
        self.net, self.fused = network(), fused
        self.losses, self.left = [], []

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        loss = F.mse_loss(self.net(inputs).float(), targets)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05, fused=self.fused)

    def on_train_start(self):
        optimizer = self.trainer.optimizers[0]
        optimizer.register_step_post_hook(lambda *_: self.left.append(norm_of(self.net)))


class Adversaries(L.LightningModule):
    """Two networks and two optimizers, of which the second steps every other batch."""

    def __init__(self, lightning_optimizers=True):
        super().__init__()
        self.automatic_optimization = False
        self.nets = torch.nn.ModuleList([network(), network()])
        self.lightning_optimizers, self.losses = lightning_optimizers, ([], [])

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        for index, optimizer in enumerate(self.optimizers(use_pl_optimizer=self.lightning_optimizers)):
            if index == 1 and batch_idx % 2 == 0:
                continue
            loss = F.mse_loss(self.nets[index](inputs).float(), targets) * (10 if index else 1)
            self.losses[index].append(loss.item())
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        adam = torch.optim.AdamW(self.nets[0].named_parameters(), lr=0.05)
        return adam, torch.optim.SGD(self.nets[1].named_parameters(), lr=1e-4)


@dataclass
class LossOf(autoclip.RunningQuantile):
    """Keeps the losses that reach it."""

    _: KW_ONLY
    warmup_steps: int = 5

    def __post_init__(self):
        super().__post_init__()
        self.told = []

    def _observe_loss(self, loss):
        self.told.append(loss)


def norm_of(net):
    return torch.stack([p.grad.double().norm() for p in net.parameters()]).norm().item()


def data(accumulate=1, steps=STEPS, spike=100):
    """Batches of four, one micro-batch in seven with targets so many times too large."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(steps * accumulate, 4, 4, generator=random)
    targets = inputs.sum(-1, keepdim=True) + 0.3 * torch.randn(steps * accumulate, 4, 1, generator=random)
    targets[6::7] *= spike
    return DataLoader(TensorDataset(inputs, targets), batch_size=None)


def fit(module, callback, batches=None, *, ckpt_path=None, package=L, **options):
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    callbacks = [*options.pop("callbacks", []), *([callback] if callback else [])]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    trainer = package.Trainer(callbacks=callbacks, **quiet, **options)
    trainer.fit(module, batches or data(), ckpt_path=ckpt_path)
    return trainer


def half(init_scale=2.0**4, **options):
    """16-mixed, which Lightning would change to bf16-mixed on a CPU if it were asked for by name."""
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, **options)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


def same_weights(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)
