"""A whole task in one file: copy it, and put your own data and model in (`autoclip init --task my_task.py` does so).

A task is any class with these four methods: `model`, `batches`, `loss`, `evaluate`. The three attributes and
`describe` are optional. The same seed must give the same weights and the same batches, so that two settings are
compared on equal terms and a run can be resumed.
"""

import hashlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


class Spirals:
    """Tell two interleaved, noisy spirals apart, although some batches are 100 times too large.

    A broken preprocessing step makes such batches. Their gradients are hundreds of times longer than the others:
    unclipped, a few of them undo the training. The validation points are never corrupted.

    Args:
        points: total number; every fifth is for validation.
        hidden: units of each of the two hidden layers.
        batch_size: points in a batch, drawn with replacement.
        corrupted_share: in [0, 1], share of the training batches that is multiplied by 100.
    """

    # The YAML's `task.args` arrive here as keyword arguments; refuse bad ones with a ValueError.
    def __init__(
        self, *, points: int = 2000, hidden: int = 64, batch_size: int = 64, corrupted_share: float = 0.02
    ) -> None:
        if points < 10 or hidden < 1 or batch_size < 1:
            raise ValueError("points must be at least 10, hidden and batch_size at least 1")
        if not 0 <= corrupted_share <= 1:
            raise ValueError(f"corrupted_share must be in [0, 1], got {corrupted_share}")
        self.hidden = hidden
        self.batch_size = batch_size
        self.corrupted_share = corrupted_share

        generator = torch.Generator().manual_seed(0)  # the data are the same for every seed of a run
        labels = torch.arange(points) % 2
        turn = torch.rand(points, generator=generator).sqrt()  # even density along the spiral
        angle = 3 * math.pi * turn + math.pi * labels
        spiral = torch.stack((turn * angle.cos(), turn * angle.sin()), dim=1)  # (points, 2)
        inputs = spiral + 0.02 * torch.randn(points, 2, generator=generator)
        held_out = torch.arange(points) % 5 == 0
        self.train = inputs[~held_out], labels[~held_out]
        self.validation = inputs[held_out], labels[held_out]

        # Kept with the results: a resumed run refuses other data than it began with.
        self.data_hash = hashlib.sha256(inputs.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
        # Loss of always answering one half; a run that ends above it has learned nothing.
        self.trivial_loss = math.log(2)

    def model(self, seed: int) -> nn.Module:
        """Build the network: inputs (B, 2) -> logits (B, 2)."""
        with torch.random.fork_rng(devices=[]):  # layers draw from torch's global state, which is put back afterwards
            torch.default_generator.manual_seed(seed)
            first, second = nn.Linear(2, self.hidden), nn.Linear(self.hidden, self.hidden)
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(self.hidden, 2))

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield batches without end, from a generator of their own."""
        generator = torch.Generator().manual_seed(seed)
        inputs, labels = self.train
        while True:
            drawn = torch.randint(len(labels), (self.batch_size,), generator=generator)
            corrupted = torch.rand((), generator=generator) < self.corrupted_share
            yield inputs[drawn] * (100.0 if corrupted else 1.0), labels[drawn]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Training loss, 0-d; the batch is on the model's device already."""
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels)

    def evaluate(self, model: nn.Module) -> float:
        """Validation loss; the model is in evaluation mode, and gradients are off."""
        device = next(model.parameters()).device
        inputs, labels = self.validation
        return self.loss(model, (inputs.to(device), labels.to(device))).item()

    def describe(self) -> dict[str, str | int | float]:
        """Facts for the summary."""
        return {"data": "two spirals", "hidden": self.hidden, "corrupted_share": self.corrupted_share}
