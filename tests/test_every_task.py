"""What every task keeps to, whatever it trains: the configured ones and small variants of each."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from autoclip.lab.config import load_config
from autoclip.lab.example import Spirals
from autoclip.lab.experiment import make_task
from experiments.cart_pole import CartPole
from experiments.char_lm import CharLanguageModel
from experiments.digits import CorruptedDigits, DigitsCNN
from experiments.gan import DigitsGAN
from experiments.heavy_tails import HeavyTails
from experiments.sequences import AddingProblem, PixelDigits
from experiments.text_lm import TextLanguageModel

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
TEXT = {"hidden": 32, "batch_size": 8, "context": 24}
IMAGES = {"depth": 4, "channels": 8, "batch_size": 16}
TASKS = {  # name -> (class, arguments, learning rate at which a few steps of SGD help, None: see its own tests)
    "lstm": (CharLanguageModel, {**TEXT, "embedding": 16}, 0.5),
    "gru": (CharLanguageModel, {**TEXT, "architecture": "gru", "embedding": 16, "layers": 2}, 0.5),
    "gpt pre-norm": (CharLanguageModel, {**TEXT, "architecture": "gpt", "layers": 2}, 0.5),
    "gpt post-norm": (CharLanguageModel, {**TEXT, "architecture": "gpt", "layers": 2, "norm": "post"}, 0.5),
    "plain cnn": (DigitsCNN, IMAGES, 0.2),
    "default initialisation": (DigitsCNN, {**IMAGES, "depth": 2, "initialisation": "default"}, 0.5),
    "residual batch norm": (DigitsCNN, {**IMAGES, "residual": True, "normalisation": "batch"}, 0.2),
    "layer norm": (DigitsCNN, {**IMAGES, "normalisation": "layer"}, 0.2),
    "group norm": (DigitsCNN, {**IMAGES, "normalisation": "group"}, 0.2),
    "corrupted mlp": (CorruptedDigits, {"batch_size": 16}, 0.2),
    "pixels": (PixelDigits, {"hidden": 32, "batch_size": 16}, 0.01),
    "pixels gru": (PixelDigits, {"cell": "gru", "hidden": 32, "batch_size": 16}, 0.5),
    "adding": (AddingProblem, {"length": 10, "hidden": 32, "batch_size": 16}, 0.01),
    "text": (TextLanguageModel, {"hidden": 32, "layers": 2, "batch_size": 8, "context": 24}, 0.5),
    "broken text": (TextLanguageModel, {"hidden": 32, "batch_size": 8, "context": 24, "broken_share": 0.05}, 0.5),
    "gan": (DigitsGAN, {"hidden": 64, "latent": 8, "batch_size": 16}, None),
    "cart pole": (CartPole, {"hidden": 16, "batch_size": 8, "length": 50}, None),
    "heavy tails": (HeavyTails, {"hidden": 32, "batch_size": 16}, 0.1),
    "spirals": (Spirals, {"hidden": 32, "batch_size": 16}, 0.5),
}


@pytest.fixture(params=TASKS)
def task(request):
    cls, arguments, _ = TASKS[request.param]
    return cls(**arguments)


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters())


def first_batches(task, seed, count=3):
    return list(itertools.islice(task.batches(seed), count))


def test_a_seed_fixes_the_weights_and_another_changes_them(task):
    assert torch.equal(weights(task.model(3)), weights(task.model(3)))
    assert not torch.equal(weights(task.model(3)), weights(task.model(4)))


def test_a_seed_fixes_the_batches_and_another_changes_them(task):
    batches = (first_batches(task, seed) for seed in (3, 3, 4))
    for one, other, different in zip(*batches, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert not torch.equal(one[0], different[0])


def test_global_random_state_is_neither_read_nor_changed(task):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    expected = weights(task.model(1)), first_batches(task, 1)[0][0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(weights(task.model(1)), expected[0])
    assert torch.equal(first_batches(task, 1)[0][0], expected[1])


@pytest.mark.parametrize("name", [name for name, (_, _, lr) in TASKS.items() if lr is not None])
def test_clipped_sgd_lowers_the_validation_loss(name):
    cls, arguments, lr = TASKS[name]
    task = cls(**arguments)
    model = task.model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with torch.no_grad():
        before = task.evaluate(model.eval())
    model.train()
    for batch in itertools.islice(task.batches(0), 60):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        after = task.evaluate(model.eval())
    assert after < before - 0.02


def test_bfloat16_autocast_gives_nearly_the_same_loss(task):
    model, batch = task.model(0), first_batches(task, 0, 1)[0]
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = task.loss(model, batch)
    except RuntimeError as error:
        if "primitive descriptor" not in str(error):
            raise
        pytest.skip("torch has no bfloat16 of this layer for this CPU")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(task.loss(model, batch).item(), rel=0.05)


def test_the_data_are_hashed_and_described_in_plain_values(task):
    assert len(task.data_hash) == 64
    assert math.isfinite(task.trivial_loss)
    assert all(isinstance(value, str | int | float) for value in task.describe().values())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_names_a_command_or_a_task_that_trains(path, monkeypatch, tmp_path):
    monkeypatch.chdir(path.parent.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    short = ["task.args.pretrain_steps=2"] if "pretrain_steps" in path.read_text() else []
    config = load_config(path, short)
    if config.task is None:
        assert config.sweep.command is not None
        return
    task = make_task(config)
    loss = task.loss(task.model(config.seeds[0]), next(task.batches(config.seeds[0])))
    assert math.isfinite(loss.item())
