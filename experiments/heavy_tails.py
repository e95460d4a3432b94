"""Regression with heavy-tailed noise under a Gaussian likelihood whose variance is learned."""

import hashlib
import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.checks import require_positive, seeded

INPUTS = 8
VALIDATION_POINTS = 4000
VALIDATION_SEED = 1908
MOST_LOG_VARIANCE = 10.0
DIRECTIONS_SEED = 1989


class MeanAndVariance(nn.Module):
    """An MLP with two outputs: inputs (B, 8) -> mean and logarithm of the variance, each (B,)."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        widths = [INPUTS] + [hidden] * layers
        body = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.network = nn.Sequential(*body, nn.Linear(hidden, 2))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the network; the variance is held within a factor of exp(10) of 1."""
        mean, log_variance = self.network(inputs).unbind(-1)
        return mean, log_variance.clamp(-MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)


class HeavyTails:
    """Fit mean and variance of targets whose noise is Student's t, by the negative log-likelihood of a Gaussian.

    Inputs x are standard normal; with two fixed unit vectors a and b the targets are `sin(3 a.x) + b.x + exp(b.x) t/4`,
    where t has `degrees_of_freedom`. Loss and validation loss are `(log v + (y - m)^2 / v + log(2 pi)) / 2` in nats,
    with the network's m and v.

    Why clipping matters: the loss of one far target is its squared distance over the variance, which is small where the
    network has become sure of itself: a few examples have most of the gradient. The fewer degrees of freedom the worse;
    with 2 and fewer the loss has no finite mean, with 4 and fewer its variance is infinite.

    Shapes: a batch is (inputs, targets), float32 (batch_size, 8) and (batch_size,), always fresh.

    References: D. A. Nix, A. S. Weigend, Estimating the mean and variance of the target probability distribution, 1994.
    K. L. Lange, R. J. A. Little, J. M. G. Taylor, Robust statistical modeling using the t distribution, 1989.
    """

    def __init__(self, *, hidden: int = 64, layers: int = 2, batch_size: int = 64, degrees_of_freedom: int = 3) -> None:
        require_positive(hidden=hidden, layers=layers, batch_size=batch_size, degrees_of_freedom=degrees_of_freedom)
        if degrees_of_freedom < 3:
            raise ValueError(f"degrees_of_freedom must be at least 3, got {degrees_of_freedom}")
        self.hidden = hidden
        self.layers = layers
        self.batch_size = batch_size
        self.degrees_of_freedom = degrees_of_freedom
        directions = torch.randn(2, INPUTS, generator=torch.Generator().manual_seed(DIRECTIONS_SEED))
        self.directions = F.normalize(directions)  # a and b
        self.validation = self._drawn(VALIDATION_POINTS, torch.Generator().manual_seed(VALIDATION_SEED))
        self.data_hash = hashlib.sha256(b"".join(part.numpy().tobytes() for part in self.validation)).hexdigest()
        self.trivial_loss = (self.validation[1].var(correction=0).log().item() + 1 + math.log(2 * math.pi)) / 2

    def model(self, seed: int) -> nn.Module:
        """Build the network; torch's global random state is left as it was."""
        with seeded(seed):
            return MeanAndVariance(self.hidden, self.layers)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless fresh points."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self._drawn(self.batch_size, generator)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean negative log-likelihood of a batch."""
        inputs, targets = batch
        mean, log_variance = (output.float() for output in model(inputs))
        squares = (targets - mean).square() * (-log_variance).exp()
        loss: Tensor = (log_variance + squares + math.log(2 * math.pi)).mean() / 2
        return loss

    def evaluate(self, model: nn.Module) -> float:
        """Mean negative log-likelihood of 4000 fixed points."""
        device = next(model.parameters()).device
        return self.loss(model, tuple(part.to(device) for part in self.validation)).item()

    def describe(self) -> dict[str, str | int | float]:
        """Facts for reports."""
        return {
            "data": "regression with noise of Student's t, generated",
            "degrees_of_freedom": self.degrees_of_freedom,
            "validation_points": VALIDATION_POINTS,
            "trivial_loss": self.trivial_loss,
        }

    def _drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (count, 8) and targets (count,)."""
        inputs = torch.randn(count, INPUTS, generator=generator)
        normal = torch.randn(count, 1 + self.degrees_of_freedom, generator=generator)
        student = normal[:, 0] / normal[:, 1:].square().mean(dim=1).sqrt()
        along_a, along_b = (inputs @ self.directions.T).unbind(-1)
        return inputs, (3 * along_a).sin() + along_b + along_b.exp() * student / 4
