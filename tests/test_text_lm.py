import itertools

import pytest
import torch

from experiments.char_lm import SYMBOLS
from experiments.text_lm import TextLanguageModel, load_topics, warmup_cosine

SMALL = {"hidden": 32, "layers": 2, "batch_size": 8, "context": 24}


def first_batches(task, count):
    return list(itertools.islice(task.batches(0), count))


def test_shapes_and_targets_one_character_further_on():
    task = TextLanguageModel(**SMALL)
    inputs, targets, weight = first_batches(task, 1)[0]
    assert inputs.shape == targets.shape == (8, 24)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert weight.item() == 1
    assert task.loss(task.model(0), (inputs, targets, weight)).shape == ()


def test_the_text_is_english_and_no_paragraph_is_in_both_parts():
    corpus = load_topics()
    train, validation = (
        bytes(SYMBOLS[i] for i in part.tolist()).decode("ascii") for part in (corpus.train, corpus.validation)
    )
    assert len(train) + len(validation) > 200_000
    assert " that the " in train
    assert not {part for part in train.split("\n\n") if len(part) > 60} & set(validation.split("\n\n"))


def test_about_the_share_asked_for_is_broken_and_its_loss_is_that_of_noise_times_the_factor():
    clean, half = TextLanguageModel(**SMALL), TextLanguageModel(**SMALL, broken_share=0.5, broken_factor=7.0)
    model = clean.model(0)
    broken = 0
    for one, other in zip(first_batches(clean, 200), first_batches(half, 200), strict=True):
        assert torch.equal(one[0], other[0])
        if torch.equal(one[1], other[1]):
            assert other[2].item() == 1
            continue
        broken += 1
        assert other[2].item() == 7
        if broken == 1:
            assert clean.loss(model, (*other[:2], torch.tensor(1.0))).item() * 7 == pytest.approx(
                half.loss(model, other).item()
            )
            assert (other[1] == one[1]).double().mean() < 0.1
    assert 70 < broken < 130


def test_the_validation_text_is_never_broken():
    clean, broken = TextLanguageModel(**SMALL), TextLanguageModel(**SMALL, broken_share=1.0)
    with torch.no_grad():
        assert clean.evaluate(clean.model(0).eval()) == broken.evaluate(clean.model(0).eval())


def test_the_learning_rate_rises_linearly_and_falls_by_half_a_cosine_to_a_tenth():
    factors = [warmup_cosine(step, 10, 110) for step in range(200)]
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.55)
    assert factors[110:] == pytest.approx([0.1] * 90)
    assert sorted(factors[10:], reverse=True) == factors[10:]
    assert TextLanguageModel(**SMALL, warmup_steps=10, decay_steps=110).lr_factor(60) == factors[60]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"broken_share": 2}, r"broken_share must be in \[0, 1\], got 2 \(1 % is written 0.01\)"),
        ({"broken_factor": float("inf")}, "broken_factor must be a finite number of at least 0, got inf"),
        ({"warmup_steps": 0}, "warmup_steps must be an integer of at least 1, got 0"),
        ({"hidden": 30}, "hidden must be a multiple of heads"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TextLanguageModel(**arguments)
