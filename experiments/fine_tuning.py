"""Fine-tuning: a small GPT is trained on English text once, and then on Python source, as a whole or by LoRA."""

import hashlib
import math
import os
import pathlib
import tempfile
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments import char_lm, text_lm
from experiments.char_lm import CharLanguageModel
from experiments.checks import require_positive, seeded
from experiments.text_lm import TextLanguageModel, warmup_cosine

PRETRAINED_LR = 0.003
SCALE = 2.0  # of the update, alpha / rank in the paper's terms


def pretrained(task: TextLanguageModel) -> nn.Module:
    """Read the network that the task trains with seed 0, or train it and keep it: the same one on each call.

    It is trained on the CPU with one thread; the file is complete or not there, whoever else writes it.
    """
    path = _kept(task)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            torch.save(_trained(task).state_dict(), file)
        pathlib.Path(file.name).replace(path)
    model = task.model(0)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def _trained(task: TextLanguageModel) -> nn.Module:
    model = task.model(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINED_LR, betas=(0.9, 0.95), weight_decay=0.1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            for step, batch in enumerate(islice(task.batches(0), task.decay_steps)):
                optimizer.param_groups[0]["lr"] = PRETRAINED_LR * task.lr_factor(step)
                optimizer.zero_grad()
                task.loss(model, batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return model


def _kept(task: TextLanguageModel) -> pathlib.Path:
    """The file of a pretrained network, named by all that it depends on: data, settings, code and torch."""
    settings = {name: value for name, value in vars(task).items() if isinstance(value, str | int | float)}
    digest = hashlib.sha256(repr((sorted(settings.items()), PRETRAINED_LR, torch.__version__)).encode())
    for file in (char_lm.__file__, text_lm.__file__, __file__):
        digest.update(pathlib.Path(file).read_bytes())
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return cache / "autoclip-experiments" / f"gpt-{digest.hexdigest()[:16]}.pt"


class LoRALinear(nn.Module):
    """A frozen linear layer plus an update of low rank, `W x + b + 2 B A x`; B starts at zero, and A at random.

    Shapes: (..., inputs) -> (..., outputs), A (rank, inputs), B (outputs, rank).

    Reference: E. J. Hu et al., LoRA: low-rank adaptation of large language models, 2021, arXiv 2106.09685.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        out: Tensor = self.base(x) + SCALE * F.linear(F.linear(x, self.down), self.up)
        return out


def add_lora(model: nn.Module, rank: int) -> nn.Module:
    """Freeze the model, put LoRA on each linear layer within its `layers`, and return it."""
    model.requires_grad_(False)
    layers = model.get_submodule("layers")
    for name, module in list(layers.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(layers.get_submodule(parent), child, LoRALinear(module, rank))
    return model


class FineTuning(CharLanguageModel):
    """Go on training a GPT that has learned English text on the source of Python's standard library.

    The first training is the same for all seeds: `TextLanguageModel` with its weights and batches of seed 0,
    `pretrain_steps` of AdamW under warm-up and cosine decay, clipped at 1. The network is kept in the folder
    autoclip-experiments of the user's cache (`XDG_CACHE_HOME`, else `~/.cache`), under a hash of what it depends on.

    With `rank`, only updates of that rank to the layers' matrices are trained (LoRA); with 0 everything is. The
    learning rate rises over `warmup_steps` and falls to a tenth at `decay_steps`.

    Why clipping matters: the first batches of another kind have large losses, and long steps there undo what was
    learned before. LoRA has norms of its own: B starts at zero, so that A has no gradient in the first step.

    Shapes: as `CharLanguageModel`.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        hidden: int = 96,
        layers: int = 3,
        heads: int = 4,
        batch_size: int = 16,
        context: int = 64,
        warmup_steps: int = 20,
        decay_steps: int = 300,
        pretrain_steps: int = 600,
    ) -> None:
        super().__init__(
            architecture="gpt", hidden=hidden, layers=layers, heads=heads, batch_size=batch_size, context=context
        )
        require_positive(warmup_steps=warmup_steps, decay_steps=decay_steps, pretrain_steps=pretrain_steps)
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
            raise ValueError(f"rank must be an integer of at least 0 (0 trains everything), got {rank!r}")
        self.rank = rank
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps
        self.pretraining = TextLanguageModel(
            hidden=hidden,
            layers=layers,
            heads=heads,
            batch_size=batch_size,
            context=context,
            warmup_steps=max(1, pretrain_steps // 12),
            decay_steps=pretrain_steps,
        )
        self.data_hash = hashlib.sha256(f"{self.pretraining.data_hash} {self.data_hash}".encode()).hexdigest()

    def model(self, seed: int) -> nn.Module:
        """Build the pretrained network; only LoRA's matrices depend on the seed."""
        model = pretrained(self.pretraining)
        if not self.rank:
            return model
        with seeded(seed):
            return add_lora(model, self.rank)

    def lr_factor(self, step: int) -> float:
        """Warm-up and decay of the learning rate."""
        return warmup_cosine(step, self.warmup_steps, self.decay_steps)

    def describe(self) -> dict[str, str | int | float]:
        """Facts for reports."""
        return super().describe() | {"pretrained_on": self.pretraining.data, "rank": self.rank}
