"""Two long-range tasks for recurrent networks: digits pixel by pixel, and the adding problem."""

import hashlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.checks import require_choice, require_positive, seeded
from experiments.digits import CLASSES, DigitsTask

VALIDATION_SEQUENCES = 500
VALIDATION_SEED = 1997


class IdentityRNN(nn.Module):
    """ReLU network h <- relu(W h + V x + b) whose W starts as the identity: (B, T, inputs) -> (B, outputs), read last.

    Reference: Q. V. Le, N. Jaitly, G. E. Hinton, A simple way to initialize recurrent networks of rectified linear
    units, 2015, arXiv 1504.00941, section 3.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.recurrent = nn.RNN(inputs, hidden, nonlinearity="relu", batch_first=True)
        self.readout = nn.Linear(hidden, outputs)
        nn.init.eye_(self.recurrent.get_parameter("weight_hh_l0"))
        for name in ("bias_ih_l0", "bias_hh_l0"):
            nn.init.zeros_(self.recurrent.get_parameter(name))

    def forward(self, sequence: Tensor) -> Tensor:
        """Outputs from the state after the last element."""
        states, _ = self.recurrent(sequence)
        out: Tensor = self.readout(states[:, -1])
        return out


class GatedRNN(nn.Module):
    """GRU with torch's initialisation: (B, T, inputs) -> (B, outputs), read last.

    Reference: K. Cho et al., Learning phrase representations using RNN encoder-decoder, 2014, arXiv 1406.1078.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.recurrent = nn.GRU(inputs, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, outputs)

    def forward(self, sequence: Tensor) -> Tensor:
        """Outputs from the state after the last element."""
        states, _ = self.recurrent(sequence)
        out: Tensor = self.readout(states[:, -1])
        return out


class PixelDigits(DigitsTask):
    """Classify a digit from its 64 pixels, read one by one into an identity-initialised ReLU network, or into a GRU.

    Why clipping matters: the gradient passes 64 times through one recurrent matrix. It starts as the identity, which
    keeps the gradient's length; as soon as an eigenvalue grows past one, activations and gradients grow exponentially
    along the sequence, and the loss jumps or leaves the finite numbers. Norms rise by orders of magnitude while the
    network learns, so that a threshold frozen early is wrong later. The gates of a GRU hold that back: it is what
    sequences are classified with, and tamer.

    Shapes: pixels (B, 64) -> sequence (B, 64, 1) -> logits (B, 10).

    Reference: Q. V. Le, N. Jaitly, G. E. Hinton, A simple way to initialize recurrent networks of rectified linear
    units, 2015, arXiv 1504.00941, section 4.2 (there on the 784 pixels of MNIST).
    """

    def __init__(self, *, cell: str = "identity", hidden: int = 64, batch_size: int = 64) -> None:
        super().__init__(batch_size)
        require_choice("cell", cell, ("identity", "gru"))
        require_positive(hidden=hidden)
        self.cell = cell
        self.hidden = hidden

    def _network(self) -> nn.Module:
        recurrent = GatedRNN if self.cell == "gru" else IdentityRNN
        return nn.Sequential(nn.Unflatten(1, (-1, 1)), recurrent(1, self.hidden, CLASSES))


class AddingProblem:
    """Add the two marked numbers of a sequence; the loss is the mean squared error.

    Every element is a pair (value, mark): values uniform in [0, 1), mark 1 at one place of the first half and at one
    place of the second half, else 0. The best constant answer is 1, and its loss the variance 1/6 of the target.

    Why clipping matters: nothing is learned until the network carries the first marked number to the end, and the
    moment that it begins to, the gradient through time grows by orders of magnitude.

    Shapes: a batch is (sequences, sums), float32 (batch_size, length, 2) and (batch_size,).

    References: S. Hochreiter, J. Schmidhuber, Long short-term memory, Neural Computation 9(8), 1997, experiment 4. This
    form: Q. V. Le, N. Jaitly, G. E. Hinton, 2015, arXiv 1504.00941, section 4.1.
    """

    def __init__(self, *, length: int = 60, hidden: int = 64, batch_size: int = 64) -> None:
        require_positive(length=length, hidden=hidden, batch_size=batch_size)
        if length < 2:
            raise ValueError(f"length must be at least 2, one place for each marked number, got {length}")
        self.length = length
        self.hidden = hidden
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        self.validation_sequences, self.validation_sums = _adding_sequences(VALIDATION_SEQUENCES, length, generator)
        data = self.validation_sequences.numpy().tobytes() + self.validation_sums.numpy().tobytes()
        self.data_hash = hashlib.sha256(data).hexdigest()
        self.trivial_loss = self.validation_sums.var(correction=0).item()

    def model(self, seed: int) -> nn.Module:
        """Build the network; torch's global random state is left as it was."""
        with seeded(seed):
            return nn.Sequential(IdentityRNN(2, self.hidden, 1), nn.Flatten(0))

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless fresh sequences."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield _adding_sequences(self.batch_size, self.length, generator)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean squared error of a batch."""
        sequences, sums = batch
        return F.mse_loss(model(sequences), sums)

    def evaluate(self, model: nn.Module) -> float:
        """Mean squared error over 500 fixed sequences."""
        device = next(model.parameters()).device
        return self.loss(model, (self.validation_sequences.to(device), self.validation_sums.to(device))).item()

    def describe(self) -> dict[str, str | int | float]:
        """Facts for reports."""
        return {
            "data": "adding problem, generated",
            "length": self.length,
            "validation_sequences": VALIDATION_SEQUENCES,
            "trivial_loss": self.trivial_loss,
        }


def _adding_sequences(count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences (count, length, 2) and their sums (count,)."""
    values = torch.rand(count, length, generator=generator)
    first = torch.randint(length // 2, (count, 1), generator=generator)
    second = torch.randint(length // 2, length, (count, 1), generator=generator)
    marks = torch.zeros(count, length).scatter_(1, torch.cat((first, second), dim=1), 1.0)
    return torch.stack((values, marks), dim=2), (values * marks).sum(dim=1)
