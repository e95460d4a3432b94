"""A generative adversarial network on handwritten digits: both networks in one model, updated in the same step."""

import functools
import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from experiments.checks import require_positive, seeded
from experiments.digits import CLASSES, SIDE, load_digits

PIXELS = SIDE * SIDE
FEATURES = 32
CLASSIFIER_STEPS = 300
VALIDATION_FAKES = 1000
VALIDATION_SEED = 2014


@functools.cache
def feature_network() -> nn.Module:
    """Train a digit classifier once and return all but its last layer: images (N, 64) in [-1, 1] -> features (N, 32).

    It is the same in every run on a machine, and changes nothing outside it.
    """
    digits = load_digits()
    images = scaled(digits.train_pixels)
    with torch.inference_mode(False), torch.enable_grad(), seeded(0):
        body = nn.Sequential(nn.Linear(PIXELS, 64), nn.ReLU(), nn.Linear(64, FEATURES), nn.Tanh())
        classifier = nn.Sequential(body, nn.Linear(FEATURES, CLASSES))
        optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01)
        for _ in range(CLASSIFIER_STEPS):
            optimizer.zero_grad()
            F.cross_entropy(classifier(images), digits.train_labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return body.requires_grad_(False).eval()


def scaled(pixels: Tensor) -> Tensor:
    """Standardised pixels as brightness in [-1, 1], -1 for paper and 1 for the darkest ink of the training part."""
    train = load_digits().train_pixels
    return 2 * (pixels - train.min()) / (train.max() - train.min()) - 1


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Distance of two samples (N, d) and (M, d), each taken for a normal distribution: 0 for equal ones.

    `|m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2)` with means m and covariances S, in float64. A sample that does
    not vary, at the other's mean, has the distance tr(S'); one with non-finite values NaN.

    Reference: M. Heusel et al., GANs trained by a two time-scale update rule, 2017, arXiv 1706.08500.
    """
    one, other = one.double(), other.double()
    if not bool(one.isfinite().all() and other.isfinite().all()):
        return float("nan")
    covariance, covariance_of_other = one.T.cov(), other.T.cov()
    root = _root(covariance_of_other)
    product = root @ covariance @ root
    between = (one.mean(0) - other.mean(0)).square().sum()
    within = covariance.trace() + covariance_of_other.trace() - 2 * _root(product).trace()
    return (between + within).item()


def _root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric matrix without negative eigenvalues, but for rounding."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root


class GAN(nn.Module):
    """Generator (B, latent) -> (B, 64) in [-1, 1], and discriminator (B, 64) -> logits (B, 1), above 0 for real."""

    def __init__(self, hidden: int, latent: int) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            *(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            *(nn.Linear(hidden, PIXELS), nn.Tanh()),
        )
        self.discriminator = nn.Sequential(
            *(nn.Linear(PIXELS, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)),
            nn.Linear(hidden, 1),
        )

    def forward(self, noise: Tensor) -> Tensor:
        """Images."""
        images: Tensor = self.generator(noise)
        return images


class DigitsGAN:
    """Generate digits; generator and discriminator have one loss, one optimizer and one gradient norm.

    The loss is `-log D(G(z))` with the discriminator's weights held fixed, plus `-log D(x) - log(1 - D(G(z)))` with the
    images held fixed: the gradients are those of two optimizers that step at the same time. The validation loss is the
    Frechet distance of generated images to the held-out digits, in the features of a small classifier; the best
    constant image has `trivial_loss`, as has a generator that has collapsed.

    Why clipping is not obvious: the loss of one network falls where the other's rises, and their sum tells nothing of
    how good the images are, which may mislead a rule that reads the loss. One norm is measured for both networks.

    Shapes: a batch is (images, noise), float32 (batch_size, 64) in [-1, 1] and (batch_size, latent).

    Reference: I. Goodfellow et al., Generative adversarial nets, 2014, arXiv 1406.2661 (the non-saturating loss).
    """

    def __init__(self, *, hidden: int = 128, latent: int = 16, batch_size: int = 64) -> None:
        require_positive(hidden=hidden, latent=latent, batch_size=batch_size)
        self.hidden = hidden
        self.latent = latent
        self.batch_size = batch_size
        digits = load_digits()
        self.data_hash = digits.sha256
        self.images = scaled(digits.train_pixels)
        self.features = feature_network()
        self.validation_features = self.features(scaled(digits.validation_pixels))
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        self.validation_noise = torch.randn(VALIDATION_FAKES, latent, generator=generator)
        self.trivial_loss = self.validation_features.double().T.cov().trace().item()

    def model(self, seed: int) -> nn.Module:
        """Build both networks; torch's global random state is left as it was."""
        with seeded(seed):
            return GAN(self.hidden, self.latent)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless images drawn from the training part, and noise."""
        generator = torch.Generator().manual_seed(seed)
        for _ in itertools.count():
            drawn = torch.randint(len(self.images), (self.batch_size,), generator=generator)
            yield self.images[drawn], torch.randn(self.batch_size, self.latent, generator=generator)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Sum of both networks' losses; each has gradients of its own loss alone."""
        images, noise = batch
        discriminator = model.get_submodule("discriminator")
        fakes = model(noise)
        fixed = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        judged = functional_call(discriminator, fixed, (fakes,)).float()
        real, fake = discriminator(torch.cat((images, fakes.detach()))).float().chunk(2)
        return F.softplus(-judged).mean() + F.softplus(-real).mean() + F.softplus(fake).mean()

    def evaluate(self, model: nn.Module) -> float:
        """Frechet distance of 1000 images of fixed noise to the held-out digits."""
        fakes = model(self.validation_noise.to(next(model.parameters()).device))
        return frechet_distance(self.features(fakes.float().cpu()), self.validation_features)

    def describe(self) -> dict[str, str | int | float]:
        """Facts for reports; the distance of the training part is the least that can be hoped for."""
        return {
            "data": "scikit-learn digits, 8 x 8 pixels",
            "train_images": len(self.images),
            "validation_images": len(self.validation_features),
            "distance_of_train_images": frechet_distance(self.features(self.images), self.validation_features),
            "trivial_loss": self.trivial_loss,
        }
