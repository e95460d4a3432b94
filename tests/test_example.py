import itertools
import math

import pytest
import torch

import autoclip
from autoclip.lab.example import Spirals


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def first_batches(task, seed, count=20):
    return list(itertools.islice(task.batches(seed), count))


@pytest.fixture
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors are slower with more
    yield
    torch.set_num_threads(before)


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


def test_a_seed_fixes_weights_and_batches_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = Spirals(), Spirals()
    assert torch.equal(weights(first.model(1)), weights(second.model(1)))
    assert not torch.equal(weights(first.model(1)), weights(first.model(2)))
    for one, other in zip(first_batches(first, 1), first_batches(second, 1), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert not torch.equal(first_batches(first, 1)[0][0], first_batches(first, 2)[0][0])
    assert torch.equal(torch.get_rng_state(), before)


def test_shapes():
    task = Spirals(points=100, hidden=4, batch_size=8)
    model = task.model(0)
    inputs, labels = next(task.batches(0))
    assert inputs.shape == (8, 2)
    assert labels.shape == (8,)
    assert model(inputs).shape == (8, 2)
    assert task.loss(model, (inputs, labels)).shape == ()
    assert isinstance(task.evaluate(model), float)


def test_the_configured_share_of_batches_is_a_hundred_times_too_large():
    sizes = [inputs.abs().max().item() for inputs, _ in first_batches(Spirals(corrupted_share=0.1), 0, 500)]
    assert max(size for size in sizes if size < 10) < 1.2
    assert 25 <= sum(size > 10 for size in sizes) <= 80
    assert max(inputs.abs().max().item() for inputs, _ in first_batches(Spirals(corrupted_share=0), 0, 100)) < 1.2


def test_the_data_depend_on_the_arguments_only():
    assert Spirals().data_hash == Spirals(hidden=3).data_hash
    assert Spirals().data_hash != Spirals(points=1000).data_hash
    assert len(Spirals().data_hash) == 64


def test_the_trivial_loss_is_that_of_answering_one_half():
    task = Spirals()
    model = task.model(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert task.evaluate(model) == pytest.approx(task.trivial_loss)
    assert task.trivial_loss == math.log(2)


@pytest.mark.usefixtures("_one_thread")
def test_clipping_decides_whether_anything_is_learned():
    assert trained_loss(autoclip.RunningQuantile(percentile=90, warmup_steps=50), seed=0) < 0.2
    assert not trained_loss(autoclip.NoClip(), seed=0) < 0.6


@pytest.mark.parametrize("arguments", [{"points": 5}, {"hidden": 0}, {"batch_size": 0}, {"corrupted_share": 1.5}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        Spirals(**arguments)


def test_the_description_is_flat():
    assert all(isinstance(value, str | int | float) for value in Spirals().describe().values())
