import itertools

import pytest
import torch

from experiments.digits import load_digits
from experiments.gan import DigitsGAN, feature_network, frechet_distance, scaled


@pytest.fixture(scope="module")
def task():
    return DigitsGAN(hidden=32, latent=8, batch_size=16)


def first_batch(task):
    return next(task.batches(0))


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_shapes(task):
    images, noise = first_batch(task)
    assert images.shape == (16, 64)
    assert noise.shape == (16, 8)
    model = task.model(0)
    assert model(noise).shape == (16, 64)
    assert model(noise).abs().max() <= 1
    assert task.loss(model, (images, noise)).shape == ()


def test_each_network_has_the_gradient_of_its_own_loss_alone(task):
    model, (images, noise) = task.model(0), first_batch(task)
    together = gradients(model, task.loss(model, (images, noise)))
    log_sigmoid = torch.nn.functional.logsigmoid
    fakes = model.generator(noise)
    of_generator = gradients(model, -log_sigmoid(model.discriminator(fakes)).mean())
    real, fake = (model.discriminator(some) for some in (images, model.generator(noise).detach()))
    model.zero_grad(set_to_none=True)
    (-log_sigmoid(real).mean() - log_sigmoid(-fake).mean()).backward()
    for name, parameter in model.named_parameters():
        expected = of_generator[name] if name.startswith("generator") else parameter.grad
        torch.testing.assert_close(together[name], expected)
        assert parameter.grad is None or name.startswith("discriminator")


def test_images_are_scaled_to_what_the_generator_can_reach(task):
    assert task.images.min().item() == pytest.approx(-1)
    assert task.images.max().item() == pytest.approx(1)


def test_the_distance_is_zero_for_equal_samples_and_that_of_normal_distributions_otherwise():
    sample = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet_distance(sample, sample) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(sample + 2, sample) == pytest.approx(16)
    # along each axis (m - m')^2 + (s - s')^2
    assert frechet_distance(3 * sample, sample) == pytest.approx(
        (4 * sample.mean(0).square() + 4 * sample.var(0)).sum().item()
    )
    assert frechet_distance(sample * float("nan"), sample) != frechet_distance(sample, sample)


def test_one_image_for_every_noise_is_no_better_than_the_trivial_loss(task):
    features = task.validation_features
    assert frechet_distance(features.mean(0).expand(10, -1), features) == pytest.approx(task.trivial_loss)
    assert task.describe()["distance_of_train_images"] < 0.1 * task.trivial_loss


def test_features_are_the_same_each_time_and_tell_digits_apart():
    first = feature_network()
    feature_network.cache_clear()
    torch.manual_seed(7)
    with torch.no_grad():
        second = feature_network()
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    digits = load_digits()
    centres = torch.stack([first(scaled(digits.train_pixels))[digits.train_labels == c].mean(0) for c in range(10)])
    nearest = torch.cdist(first(scaled(digits.validation_pixels)), centres).argmin(1)
    assert (nearest == digits.validation_labels).double().mean() > 0.9


def test_images_come_closer_to_digits_under_adam():
    task = DigitsGAN()
    model = task.model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, betas=(0.5, 0.999))
    with torch.no_grad():
        before = task.evaluate(model)
    for batch in itertools.islice(task.batches(0), 800):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    with torch.no_grad():
        assert task.evaluate(model) < 0.5 * before


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="latent must be an integer of at least 1, got 0"):
        DigitsGAN(latent=0)
