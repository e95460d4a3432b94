import itertools
import math

import pytest
import torch

from experiments.digits import CorruptedDigits, DigitsCNN, load_digits

TASKS = {
    "plain": (DigitsCNN, {"depth": 4, "channels": 8, "batch_size": 16}),
    "default init": (DigitsCNN, {"depth": 2, "channels": 8, "initialisation": "default", "batch_size": 16}),
    "batch": (DigitsCNN, {"depth": 4, "channels": 8, "residual": True, "normalisation": "batch", "batch_size": 16}),
    "layer": (DigitsCNN, {"depth": 4, "channels": 8, "normalisation": "layer", "batch_size": 16}),
    "group": (DigitsCNN, {"depth": 4, "channels": 8, "normalisation": "group", "batch_size": 16}),
    "mlp": (CorruptedDigits, {"batch_size": 16}),
}


@pytest.fixture(params=TASKS.values(), ids=TASKS.keys())
def task(request):
    kind, arguments = request.param
    return kind(**arguments)


def first_batches(task, seed, count=3):
    return list(itertools.islice(task.batches(seed), count))


def test_shapes(task):
    pixels, labels = first_batches(task, 0, 1)[0]
    assert (pixels.shape, pixels.dtype) == ((16, 64), torch.float32)
    assert (labels.shape, labels.dtype) == ((16,), torch.int64)
    model = task.model(0)
    assert model(pixels).shape == (16, 10)
    assert task.loss(model, (pixels, labels)).shape == ()


def test_initial_loss_is_about_that_of_guessing(task):
    assert task.trivial_loss == math.log(10)
    with torch.no_grad():
        assert task.evaluate(task.model(0).eval()) == pytest.approx(math.log(10), abs=0.5)


def test_split_is_stratified_and_disjoint():
    digits = load_digits()
    assert len(digits.train_labels) + len(digits.validation_labels) == 1797
    share = torch.bincount(digits.validation_labels) / torch.bincount(
        torch.cat((digits.train_labels, digits.validation_labels))
    )
    torch.testing.assert_close(share, torch.full((10,), 0.2), atol=0.005, rtol=0)
    train = {tuple(image) for image in digits.train_pixels.tolist()}
    assert not train & {tuple(image) for image in digits.validation_pixels.tolist()}


def test_pixels_are_standardised_over_the_training_part():
    digits = load_digits()
    assert digits.train_pixels.mean().item() == pytest.approx(0, abs=1e-5)
    assert digits.train_pixels.std().item() == pytest.approx(1, abs=1e-4)
    assert digits.validation_pixels.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_about_the_share_asked_for_is_corrupted(share):
    task = CorruptedDigits(corrupted_share=share, corruption_factor=50.0, batch_size=2)
    largest = load_digits().train_pixels.abs().max()
    corrupted = [bool(pixels.abs().max() > largest) for pixels, _ in first_batches(task, 0, 2000)]
    assert sum(corrupted) / 2000 == pytest.approx(share, abs=0.02)


def test_a_corrupted_batch_is_the_clean_one_times_the_factor():
    clean = CorruptedDigits(corrupted_share=0.0)
    corrupted = CorruptedDigits(corrupted_share=1.0, corruption_factor=7.0)
    for (pixels, labels), (times_seven, same_labels) in zip(
        first_batches(clean, 5), first_batches(corrupted, 5), strict=True
    ):
        torch.testing.assert_close(times_seven, 7 * pixels)
        assert torch.equal(labels, same_labels)


def test_depth_counts_the_convolutions():
    convolutions = [layer for layer in DigitsCNN(depth=5).model(0).modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.in_channels for layer in convolutions] == [1, 16, 16, 16, 16]


def test_he_initialisation_keeps_the_signal_through_sixteen_layers_and_the_default_loses_it():
    pixels = load_digits().train_pixels[:64]

    def spread(initialisation):
        network = DigitsCNN(initialisation=initialisation).model(0)
        with torch.no_grad():
            return network[:17](pixels).std(dim=0).mean().item()  # the images' spread after all convolutions

    assert spread("he") > 0.05
    assert spread("default") < 1e-3


def test_batch_normalisation_evaluates_sensibly_before_training():
    task = DigitsCNN(residual=True, normalisation="batch")
    model = task.model(0)
    pixels = load_digits().train_pixels
    with torch.no_grad():
        assert task.evaluate(model.eval()) < 10  # the sum over sixteen layers; more than 1000 without statistics
        evaluated, trained = model(pixels), model.train()(pixels)
    torch.testing.assert_close(evaluated, trained, rtol=0.01, atol=0.01)
    assert {norm.momentum for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {0.1}


def test_shortcuts_add_the_input():
    layer = DigitsCNN(depth=2, residual=True).model(0)[2]
    x = torch.full((1, 16, 8, 8), 3.0)
    with torch.no_grad():
        layer.convolution.weight.zero_()
        layer.convolution.bias.zero_()
        assert torch.equal(layer(x), x)


def test_description_and_hash_are_plain_and_stable():
    one, other = DigitsCNN(), CorruptedDigits()
    assert len(one.data_hash) == 64
    assert one.data_hash == other.data_hash
    assert one.describe()["train_images"] == len(load_digits().train_labels)
    assert all(isinstance(value, str | int | float) for value in one.describe().values())


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (DigitsCNN, {"depth": 0}, "depth must be an integer of at least 1, got 0"),
        (DigitsCNN, {"channels": "16"}, "channels must be an integer of at least 1, got '16'"),
        (DigitsCNN, {"normalisation": "instance"}, "normalisation must be one of none, batch, layer, group"),
        (DigitsCNN, {"initialisation": "xavier"}, "initialisation must be one of he, default, got 'xavier'"),
        (DigitsCNN, {"residual": "yes"}, "residual must be true or false, got 'yes'"),
        (DigitsCNN, {"normalisation": "group", "channels": 6}, "channels must be a multiple of 4 .* got 6"),
        (DigitsCNN, {"batch_size": -1}, "batch_size must be an integer of at least 1, got -1"),
        (
            CorruptedDigits,
            {"corrupted_share": 5},
            r"corrupted_share must be in \[0, 1\], got 5 \(1 % is written 0.01\)",
        ),
        (CorruptedDigits, {"corrupted_share": math.nan}, "corrupted_share must be in .* got nan"),
        (
            CorruptedDigits,
            {"corruption_factor": math.inf},
            "corruption_factor must be a finite number above 0, got inf",
        ),
        (CorruptedDigits, {"corruption_factor": "big"}, "corruption_factor must be a finite number above 0, got 'big'"),
    ],
)
def test_wrong_arguments_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
