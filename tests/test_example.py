import itertools
import math

import pytest
import torch

import autoclip
from autoclip.lab.example import Spirals


def first_batches(task, seed, count=20):
    return list(itertools.islice(task.batches(seed), count))


def trained_loss(policy, seed, steps=500):
    task = Spirals()
    model, batches = task.model(seed), task.batches(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    clipper = autoclip.Clipper(model, policy)
    for batch in itertools.islice(batches, steps):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        clipper.step()
        optimizer.step()
    with torch.no_grad():
        return task.evaluate(model.eval())


def test_the_configured_share_of_batches_is_a_hundred_times_too_large():
    sizes = [inputs.abs().max().item() for inputs, _ in first_batches(Spirals(corrupted_share=0.1), 0, 500)]
    assert max(size for size in sizes if size < 10) < 1.2
    assert 25 <= sum(size > 10 for size in sizes) <= 80
    assert max(inputs.abs().max().item() for inputs, _ in first_batches(Spirals(corrupted_share=0), 0, 100)) < 1.2


def test_the_trivial_loss_is_that_of_answering_one_half():
    task = Spirals()
    model = task.model(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert task.evaluate(model) == pytest.approx(task.trivial_loss)
    assert task.trivial_loss == math.log(2)


def test_clipping_decides_whether_anything_is_learned():
    assert trained_loss(autoclip.RunningQuantile(percentile=90, warmup_steps=50), seed=0) < 0.2
    assert not trained_loss(autoclip.NoClip(), seed=0) < 0.6


@pytest.mark.parametrize("arguments", [{"points": 5}, {"hidden": 0}, {"batch_size": 0}, {"corrupted_share": 1.5}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        Spirals(**arguments)
