import itertools

import pytest
import torch

from experiments.char_lm import load_corpus
from experiments.fine_tuning import FineTuning, LoRALinear, pretrained
from experiments.text_lm import load_topics

SMALL = {"hidden": 32, "layers": 2, "batch_size": 8, "context": 24, "pretrain_steps": 60}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "autoclip-experiments"


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters())


def steps(task, model, count):
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)
    for batch in itertools.islice(task.batches(0), count):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()


def test_the_first_training_is_on_english_and_this_one_on_source():
    task = FineTuning(**SMALL)
    assert task.corpus is load_corpus()
    assert task.pretraining.corpus is load_topics()
    assert task.data_hash not in (load_corpus().sha256, load_topics().sha256)


def test_the_first_training_helps_is_kept_and_is_the_same_when_it_is_made_anew(cache):
    task = FineTuning(**SMALL)
    made = task.model(0)
    with torch.no_grad():
        assert task.pretraining.evaluate(made) < task.pretraining.evaluate(task.pretraining.model(0)) - 0.5
    files = list(cache.iterdir())
    assert torch.equal(weights(pretrained(task.pretraining)), weights(made))
    assert list(cache.iterdir()) == files
    for file in files:
        file.unlink()
    torch.manual_seed(5)
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            anew = pretrained(task.pretraining)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(weights(anew), weights(made))
    assert all(parameter.grad is None for parameter in (*anew.parameters(), *made.parameters()))


def test_another_first_training_is_another_file(cache):
    FineTuning(**SMALL).model(0)
    files = len(list(cache.iterdir()))
    FineTuning(**{**SMALL, "pretrain_steps": 2}).model(0)
    assert len(list(cache.iterdir())) == files + 1


def test_lora_starts_as_the_pretrained_network_and_trains_small_matrices_alone():
    whole, lora = FineTuning(**SMALL), FineTuning(**SMALL, rank=4)
    before, model = whole.model(0), lora.model(0)
    inputs = next(lora.batches(0))[0]
    assert torch.equal(model(inputs), before(inputs))
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"down", "up"}
    per_layer = [(32, 96), (32, 32), (32, 128), (128, 32)]  # query, key and value; out; both layers of the MLP
    assert sum(one.numel() for one in trained.values()) == 2 * sum(4 * (a + b) for a, b in per_layer)
    steps(lora, model, 3)
    frozen = {name: one for name, one in model.named_parameters() if not one.requires_grad}
    assert torch.equal(weights(before), torch.cat([one.flatten() for one in frozen.values()]))
    assert not torch.equal(model(inputs), before(inputs))


def test_a_lora_layer_is_the_frozen_one_plus_twice_the_product():
    layer = LoRALinear(torch.nn.Linear(5, 3), rank=2)
    torch.nn.init.normal_(layer.up)
    x = torch.randn(4, 5)
    expected = layer.base(x) + 2 * x @ (layer.up @ layer.down).T
    torch.testing.assert_close(layer(x), expected)


def test_a_seed_changes_the_matrices_of_lora_and_nothing_of_the_pretrained_network():
    lora, whole = FineTuning(**SMALL, rank=2), FineTuning(**SMALL)
    state = torch.get_rng_state()
    assert torch.equal(weights(lora.model(3)), weights(lora.model(3)))
    assert not torch.equal(weights(lora.model(3)), weights(lora.model(4)))
    assert torch.equal(weights(whole.model(3)), weights(whole.model(4)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("rank", [0, 4])
def test_some_steps_on_the_source_help(rank):
    task = FineTuning(**SMALL, rank=rank)
    model = task.model(0)
    with torch.no_grad():
        before = task.evaluate(model)
    steps(task, model, 80)
    with torch.no_grad():
        assert task.evaluate(model) < before - 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": -1}, "rank must be an integer of at least 0"),
        ({"pretrain_steps": 0}, "pretrain_steps must be an integer of at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FineTuning(**arguments)
