import itertools
import math

import pytest
import torch

from experiments.char_lm import SYMBOLS, CharLanguageModel, load_corpus

SMALL = {
    "lstm": {"architecture": "lstm", "hidden": 32, "embedding": 16, "batch_size": 8, "context": 24},
    "gru": {"architecture": "gru", "hidden": 32, "embedding": 16, "batch_size": 8, "context": 24, "layers": 2},
    "gpt pre": {"architecture": "gpt", "hidden": 32, "layers": 2, "batch_size": 8, "context": 24},
    "gpt post": {"architecture": "gpt", "hidden": 32, "layers": 2, "norm": "post", "batch_size": 8, "context": 24},
}


@pytest.fixture(params=SMALL.values(), ids=SMALL.keys())
def task(request):
    return CharLanguageModel(**request.param)


def first_batches(task, seed, count=3):
    return list(itertools.islice(task.batches(seed), count))


def test_shapes_and_targets_one_character_further_on(task):
    inputs, targets = first_batches(task, 0, 1)[0]
    assert inputs.shape == targets.shape == (8, 24)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    model = task.model(0)
    assert model(inputs).shape == (8, 24, 96)
    assert task.loss(model, (inputs, targets)).shape == ()


def test_initial_loss_is_about_that_of_guessing_among_the_symbols(task):
    with torch.no_grad():
        loss = task.evaluate(task.model(0).eval())
    assert loss == pytest.approx(math.log(96), abs=0.5)
    assert task.trivial_loss < loss


@pytest.mark.parametrize("name", SMALL)
def test_earlier_logits_do_not_see_later_characters(name):
    task = CharLanguageModel(**SMALL[name])
    model = task.model(0).eval()
    inputs = first_batches(task, 0, 1)[0][0]
    changed = inputs.clone()
    changed[:, 15] = (changed[:, 15] + 1) % 96
    with torch.no_grad():
        before, after = model(inputs), model(changed)
    torch.testing.assert_close(before[:, :15], after[:, :15])
    assert (before[:, 15] - after[:, 15]).abs().max() > 1e-3
    assert (before[:, 16] - after[:, 16]).abs().max() > 1e-6


def test_post_norm_and_pre_norm_are_different_functions():
    pre, post = CharLanguageModel(**SMALL["gpt pre"]), CharLanguageModel(**SMALL["gpt post"])
    inputs = first_batches(pre, 0, 1)[0][0]
    with torch.no_grad():
        last = post.model(0).layers(torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)))
        assert not torch.allclose(pre.model(0)(inputs), post.model(0)(inputs), atol=1e-2)
    # the output of a post-norm layer is normalised, whatever comes in
    torch.testing.assert_close(last.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(last.var(-1, correction=0), torch.ones(2, 5), atol=1e-3, rtol=0)


def test_symbols_are_newline_and_printable_ascii():
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 96
    assert sorted(SYMBOLS) == [ord("\n"), *range(32, 127)]
    corpus = load_corpus()
    text = bytes(SYMBOLS[index] for index in corpus.train[:50_000].tolist()).decode("ascii")
    assert "import " in text
    assert "\n    def " in text
    assert corpus.train.max() <= 95


def test_validation_is_the_last_tenth_and_each_side_reads_its_own_text_only():
    task = CharLanguageModel(**SMALL["lstm"])
    corpus = task.corpus
    characters = len(corpus.train) + len(corpus.validation)
    assert 200_000 <= characters <= 2_000_000
    assert len(corpus.validation) == pytest.approx(0.1 * characters, abs=1)

    model = task.model(0).eval()
    with torch.no_grad():
        expected = task.evaluate(model)
        task.corpus = corpus._replace(train=torch.zeros_like(corpus.train))
        assert task.evaluate(model) == expected
    task.corpus = corpus._replace(validation=torch.zeros_like(corpus.validation))
    assert torch.equal(first_batches(task, 0, 1)[0][0], first_batches(CharLanguageModel(**SMALL["lstm"]), 0, 1)[0][0])


def test_trivial_loss_is_that_of_the_character_frequencies():
    corpus = load_corpus()
    task = CharLanguageModel()
    shares = torch.bincount(corpus.validation.long(), minlength=96).double() / len(corpus.validation)
    entropy = -(shares[shares > 0] * shares[shares > 0].log()).sum().item()
    assert entropy <= task.trivial_loss < entropy + 0.2  # close to the best any constant could do, never below it


def test_description_and_hash_are_plain_and_stable():
    one, other = CharLanguageModel(), CharLanguageModel(architecture="gru")
    assert len(one.data_hash) == 64
    assert one.data_hash == other.data_hash
    assert one.describe()["symbols"] == 96
    assert all(isinstance(value, str | int | float) for value in one.describe().values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "rnn"}, "architecture must be one of lstm, gru, gpt, got 'rnn'"),
        ({"norm": "none"}, "norm must be one of pre, post, got 'none'"),
        ({"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        ({"layers": 1.5}, "layers must be an integer of at least 1, got 1.5"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"context": 10**9}, "context must be below [0-9]+ characters, got 1000000000"),
        (
            {"architecture": "gpt", "hidden": 30},
            "hidden must be a multiple of heads for a gpt, got hidden 30 and heads 4",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CharLanguageModel(**arguments)
