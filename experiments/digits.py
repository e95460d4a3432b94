"""Handwritten digits of 8 x 8 pixels: a deep CNN without normalisation, and an MLP that is fed corrupted batches."""

import functools
import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from experiments.checks import require_choice, require_positive, require_share, seeded

CLASSES = 10
SIDE = 8
VALIDATION_EVERY = 5


class Digits(NamedTuple):
    """Pixels, float32 (N, 64), and labels, int64 (N,), of both parts, and the sha256 of images, labels and split.

    Pixels are standardised by one mean and one standard deviation, those of all training pixels.
    """

    train_pixels: Tensor
    train_labels: Tensor
    validation_pixels: Tensor
    validation_labels: Tensor
    sha256: str


@functools.cache
def load_digits() -> Digits:
    """Read scikit-learn's 1797 digits; every fifth image of each class is for validation.

    Reference: E. Alpaydin, C. Kaynak, Optical recognition of handwritten digits, 1998, UCI machine learning repository.
    """
    from sklearn import datasets  # takes a second to import, and the character models do not need it

    pixels, labels = datasets.load_digits(return_X_y=True)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(CLASSES):
        held_out[np.flatnonzero(labels == digit)[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]] = True
    # The hash reads the integers, so that it does not depend on how a machine rounds the standardised pixels.
    raw = (array.astype(np.uint8).tobytes() for array in (pixels, labels, held_out))
    sha256 = hashlib.sha256(b"".join(raw)).hexdigest()

    train = pixels[~held_out]
    standardised = torch.from_numpy((pixels - train.mean()) / train.std()).float()
    classes = torch.from_numpy(labels).long()
    return Digits(standardised[~held_out], classes[~held_out], standardised[held_out], classes[held_out], sha256)


class DigitsTask(ABC):
    """Classify digits by cross-entropy; a subclass says by which network.

    Shapes: a batch is (pixels, labels), float32 (batch_size, 64) and int64 (batch_size,), drawn with replacement.
    """

    def __init__(self, batch_size: int) -> None:
        require_positive(batch_size=batch_size)
        self.batch_size = batch_size
        self.digits = load_digits()
        self.data_hash = self.digits.sha256
        self.trivial_loss = math.log(CLASSES)

    def model(self, seed: int) -> nn.Module:
        """Build the network; torch's global random state is left as it was."""
        with seeded(seed):
            return self._network()

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of images drawn from the training part."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self._draw(generator)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross-entropy of a batch."""
        pixels, labels = batch
        return F.cross_entropy(model(pixels), labels)

    def evaluate(self, model: nn.Module) -> float:
        """Mean cross-entropy over the whole validation part."""
        device = next(model.parameters()).device
        batch = self.digits.validation_pixels.to(device), self.digits.validation_labels.to(device)
        return self.loss(model, batch).item()

    def describe(self) -> dict[str, str | int | float]:
        """Facts for reports."""
        return {
            "data": "scikit-learn digits, 8 x 8 pixels",
            "classes": CLASSES,
            "train_images": len(self.digits.train_labels),
            "validation_images": len(self.digits.validation_labels),
            "trivial_loss": self.trivial_loss,
        }

    @abstractmethod
    def _network(self) -> nn.Module:
        """Build a network (B, 64) -> (B, 10) from torch's global random state."""

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.digits.train_labels), (self.batch_size,), generator=generator)
        return self.digits.train_pixels[chosen], self.digits.train_labels[chosen]


class ConvLayer(nn.Module):
    """Convolution 3x3, normalisation, ReLU, plus the input if `residual`: (B, inputs, 8, 8) -> (B, channels, 8, 8)."""

    def __init__(self, inputs: int, channels: int, normalisation: str, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.convolution = nn.Conv2d(inputs, channels, kernel_size=3, padding=1)
        self.norm = _normalisation(normalisation, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        out = F.relu(self.norm(self.convolution(x)))
        return x + out if self.residual else out


class DigitsCNN(DigitsTask):
    """A stack of convolutions at full resolution, mean over the pixels, one linear layer.

    Why clipping matters: without normalisation or shortcuts the scale of the gradient is a product over all layers. He
    initialisation keeps it near one at the start, and a single large step breaks that balance: the ReLUs die and the
    loss stays at ln 10 for ever. With `residual` and `batch` normalisation the same stack is the tame control.

    Shapes: pixels (B, 64) -> logits (B, 10). `depth` counts the convolutions, each with `channels` channels.

    References: K. He et al., Delving deep into rectifiers, 2015, arXiv 1502.01852 (initialisation); Deep residual
    learning for image recognition, 2015, arXiv 1512.03385 (shortcuts). S. Ioffe, C. Szegedy, Batch normalization, 2015,
    arXiv 1502.03167.
    """

    def __init__(
        self,
        *,
        depth: int = 16,
        channels: int = 16,
        residual: bool = False,
        normalisation: str = "none",
        initialisation: str = "he",
        batch_size: int = 64,
    ) -> None:
        super().__init__(batch_size)
        require_positive(depth=depth, channels=channels)
        require_choice("normalisation", normalisation, ("none", "batch", "layer", "group"))
        require_choice("initialisation", initialisation, ("he", "default"))
        if not isinstance(residual, bool):
            raise ValueError(f"residual must be true or false, got {residual!r}")
        if normalisation == "group" and channels % 4:
            raise ValueError(f"channels must be a multiple of 4 for group normalisation, got {channels}")
        self.depth = depth
        self.channels = channels
        self.residual = residual
        self.normalisation = normalisation
        self.initialisation = initialisation

    def _network(self) -> nn.Module:
        layers = [ConvLayer(1, self.channels, self.normalisation, residual=False)]
        layers += [
            ConvLayer(self.channels, self.channels, self.normalisation, self.residual) for _ in range(self.depth - 1)
        ]
        if self.initialisation == "he":
            for layer in layers:
                nn.init.kaiming_normal_(layer.convolution.weight, nonlinearity="relu")
                nn.init.zeros_(layer.convolution.get_parameter("bias"))
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels, CLASSES))
        network = nn.Sequential(nn.Unflatten(1, (1, SIDE, SIDE)), *layers, *head)
        # Untrained batch normalisation would evaluate with mean 0 and variance 1: a loss of more than 1000 here.
        update_bn([self.digits.train_pixels], network)
        return network


class CorruptedDigits(DigitsTask):
    """An MLP whose inputs are `corruption_factor` times too large in a random share of the training batches.

    Why clipping matters: one bad batch has a gradient hundreds of times longer than the others, and with momentum it
    keeps pushing for many steps. Only that batch needs to be held back, so high percentiles are enough here. The
    validation images are never corrupted.

    Shapes: pixels (B, 64) -> logits (B, 10) through `layers` hidden layers of `hidden` units.

    Reference: J. Zhang et al., Why are adaptive methods good for attention models?, 2020, arXiv 1912.03194 (clipping
    against heavy-tailed gradient noise).
    """

    def __init__(
        self,
        *,
        hidden: int = 64,
        layers: int = 3,
        corrupted_share: float = 0.01,
        corruption_factor: float = 100.0,
        batch_size: int = 64,
    ) -> None:
        super().__init__(batch_size)
        require_positive(hidden=hidden, layers=layers)
        require_share(corrupted_share=corrupted_share)
        if not isinstance(corruption_factor, int | float) or not 0 < corruption_factor < math.inf:
            raise ValueError(f"corruption_factor must be a finite number above 0, got {corruption_factor!r}")
        self.hidden = hidden
        self.layers = layers
        self.corrupted_share = corrupted_share
        self.corruption_factor = corruption_factor

    def _network(self) -> nn.Module:
        widths = [SIDE * SIDE] + [self.hidden] * self.layers
        hidden = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(self.hidden, CLASSES))

    def _draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels, labels = super()._draw(generator)
        corrupted = torch.rand((), generator=generator) < self.corrupted_share
        return (pixels * self.corruption_factor if corrupted else pixels), labels


def _normalisation(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    return nn.GroupNorm(4 if kind == "group" else 1, channels)  # one group over all channels and pixels: layer norm
