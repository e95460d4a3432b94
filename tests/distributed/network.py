"""A small network, its batches, and training in one process or in several, told step by step."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

import autoclip
from autoclip import LossAwareQuantile, RunningQuantile

STEPS = 14
BATCH = 16


class Network(nn.Module):
    """Has parameters of fewer rows than there are ranks: with 4 of them `down` has 3 and `scale` has 1."""

    def __init__(self):
        super().__init__()
        self.lift = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.down(torch.tanh(self.up(self.norm(self.lift(x))))) * self.scale


def network():
    torch.manual_seed(0)
    return Network()


def batch(step):
    """16 samples, of which those of every seventh batch have targets 30 times as large, the more so the later ones."""
    random = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 6, generator=random)
    spread = torch.linspace(0.5, 30.0 if step % 7 == 5 else 2.0, BATCH)[:, None]
    return x, x[:, :3] * spread


@dataclass
class Layout:
    """A network spread over ranks.

    Attributes:
        model: is called.
        source: its parameters are clipped, under the names of the plain network.
        rows: this rank's of each batch.
        optimizer: makes the optimizer from parameters.
        clip_fn: somebody else's clipping.
        flat: the parameters are pieces of this rank, as FSDP1 has them.
    """

    model: nn.Module
    source: nn.Module
    rows: slice = field(default_factory=lambda: slice(None))
    optimizer: object = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
    clip_fn: object = None
    flat: bool = False


@dataclass
class Setting:
    """How a clipper is made, and whether it is attached to the optimizer."""

    policy: object = partial(RunningQuantile, warmup_steps=4)
    options: dict = field(default_factory=dict)
    attached: bool = False


GROUPS = {"in": "^(lift|norm)", "out": "^(up|down)"}
SETTINGS = {
    "running quantile": Setting(),
    "running quantile, attached": Setting(attached=True),
    "loss-aware, attached": Setting(LossAwareQuantile, attached=True),
    "by parameter": Setting(options={"scope": "parameter"}),
    "by parameter, loss-aware": Setting(LossAwareQuantile, {"scope": "parameter"}),
    "by group": Setting(options={"scope": "group", "groups": GROUPS}),
    "by group, loss-aware": Setting(LossAwareQuantile, {"scope": "group", "groups": GROUPS}),
    "value": Setting(options={"mode": "value"}),
    "value, loss-aware": Setting(LossAwareQuantile, {"mode": "value"}),
    "norm 1": Setting(options={"norm_type": 1.0}),
    "norm inf": Setting(options={"norm_type": float("inf")}),
    "agc": Setting(options={"mode": "agc"}),
    "param_rms": Setting(options={"mode": "param_rms"}),
}


def alone():
    """The network in one process."""
    net = network()
    return Layout(net, net)


def train(layout, setting, steps=range(STEPS)):
    """Train; what every step did, and what is left at the end, whole on every rank."""
    optimizer = layout.optimizer(layout.model.parameters())
    if setting.attached:
        clipper = autoclip.attach(optimizer, setting.policy(), clip_fn=layout.clip_fn, **setting.options)
    else:
        clipper = autoclip.Clipper(layout.source, setting.policy(), **setting.options)
    told = []
    left = []
    for step in steps:
        x, y = batch(step)
        loss = F.mse_loss(layout.model(x[layout.rows]), y[layout.rows])
        optimizer.zero_grad()
        loss.backward()
        if setting.attached:
            clipper.report_loss(loss)
        else:
            clipper.step(loss=loss, clip_fn=layout.clip_fn)
        optimizer.step()
        gradients = [parameter.grad for parameter in layout.source.parameters() if parameter.grad is not None]
        left.append([gradient.detach().clone() for gradient in gradients])
        last = clipper.last
        told.append(
            {
                "local_loss": loss.item(),
                "loss": last.loss,
                "norm": last.total_norm,
                "threshold": last.threshold,
                "clipped": last.clipped,
            }
        )
    thresholds = clipper.threshold
    return {
        "steps": told,
        "left": norms_left(layout, left, clipper.norm_type),
        "thresholds": thresholds if isinstance(thresholds, dict) else {"all": thresholds},
        "weights": {name: whole(weight).flatten().tolist() for name, weight in weights(layout).items()},
    }


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def weights(layout):
    if not layout.flat:
        return dict(layout.source.named_parameters())
    from torch.distributed.fsdp import FullyShardedDataParallel

    with FullyShardedDataParallel.summon_full_params(layout.model):
        return {
            name.replace("_fsdp_wrapped_module.", ""): weight.detach().clone()
            for name, weight in layout.model.named_parameters()
        }


def norms_left(layout, gradients, order):
    """Norm of the whole gradients of each step, in float64; gathered for all steps at once."""
    parameters = [whole(torch.stack(of_parameter)).double() for of_parameter in zip(*gradients, strict=True)]
    norms = torch.linalg.vector_norm(torch.cat([steps.flatten(1) for steps in parameters], 1), order, dim=1)
    if layout.flat:
        squares = norms.square()
        torch.distributed.all_reduce(squares)
        norms = squares.sqrt()
    return norms.tolist()
