import itertools
import math

import pytest
import torch

from experiments.digits import load_digits
from experiments.sequences import AddingProblem, IdentityRNN, PixelDigits

TASKS = {
    "pixels": (PixelDigits, {"hidden": 32, "batch_size": 16}),
    "adding": (AddingProblem, {"length": 10, "hidden": 32, "batch_size": 16}),
}


@pytest.fixture(params=TASKS.values(), ids=TASKS.keys())
def task(request):
    kind, arguments = request.param
    return kind(**arguments)


def first_batches(task, seed, count=3):
    return list(itertools.islice(task.batches(seed), count))


def test_the_recurrence_starts_as_the_identity_and_keeps_the_length_of_a_gradient():
    model = IdentityRNN(1, 8, 3)
    assert torch.equal(model.recurrent.weight_hh_l0, torch.eye(8))
    # h_T = relu(h_0 + sum of inputs): with positive input weights each element has the same weight in the output
    with torch.no_grad():
        model.recurrent.weight_ih_l0.fill_(0.1)
    sequence = torch.rand(2, 50, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    model(sequence).sum().backward()
    torch.testing.assert_close(sequence.grad, sequence.grad[:, :1].expand(2, 50, 1))
    assert sequence.grad.abs().max() > 0


@pytest.mark.parametrize("cell", ["identity", "gru"])
def test_pixel_digits_reads_one_pixel_per_step(cell):
    task = PixelDigits(cell=cell, hidden=32, batch_size=16)
    pixels, labels = first_batches(task, 0, 1)[0]
    assert pixels.shape == (16, 64)
    assert labels.shape == (16,)
    model = task.model(0)
    assert model[0](pixels).shape == (16, 64, 1)
    assert model(pixels).shape == (16, 10)
    assert task.data_hash == load_digits().sha256
    assert task.trivial_loss == math.log(10)
    with torch.no_grad():
        assert task.evaluate(model.eval()) == pytest.approx(math.log(10), abs=1.5)


def test_adding_problem_marks_one_value_in_each_half_and_asks_for_their_sum():
    task = AddingProblem(length=11, batch_size=400)
    sequences, sums = first_batches(task, 0, 1)[0]
    values, marks = sequences.unbind(dim=2)
    assert sequences.shape == (400, 11, 2)
    assert torch.equal(marks[:, :5].sum(1), torch.ones(400))
    assert torch.equal(marks[:, 5:].sum(1), torch.ones(400))
    assert (marks.sum(0) > 0).all()  # every place is used
    assert values.min() >= 0
    assert values.max() < 1
    torch.testing.assert_close(sums, (values * marks).sum(1))
    model = task.model(0)
    assert model(sequences).shape == (400,)
    assert task.loss(model, (sequences, sums)).shape == ()


def test_adding_problem_trivial_loss_is_the_variance_of_the_answers():
    task = AddingProblem()
    assert task.trivial_loss == pytest.approx(1 / 6, rel=0.1)

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.answer = torch.nn.Parameter(task.validation_sums.mean())

        def forward(self, sequences):
            return self.answer.expand(len(sequences))

    with torch.no_grad():
        assert task.evaluate(Constant()) == pytest.approx(task.trivial_loss, rel=1e-5)


def test_adding_problem_validation_is_fixed_and_not_a_training_batch():
    one, other = AddingProblem(length=20), AddingProblem(length=20, hidden=8, batch_size=4)
    assert one.data_hash == other.data_hash
    assert one.data_hash != AddingProblem(length=21).data_hash
    validation = {tuple(row) for row in one.validation_sequences[:, :, 0].tolist()}
    for sequences, _ in first_batches(one, 0, 20):
        assert not validation & {tuple(row) for row in sequences[:, :, 0].tolist()}


def test_description_is_plain(task):
    assert len(task.data_hash) == 64
    assert all(isinstance(value, str | int | float) for value in task.describe().values())


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (PixelDigits, {"cell": "lstm"}, "cell must be one of identity, gru, got 'lstm'"),
        (PixelDigits, {"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        (PixelDigits, {"batch_size": 2.5}, "batch_size must be an integer of at least 1, got 2.5"),
        (AddingProblem, {"length": 1}, "length must be at least 2, one place for each marked number, got 1"),
        (AddingProblem, {"length": "60"}, "length must be an integer of at least 1, got '60'"),
        (AddingProblem, {"hidden": -3}, "hidden must be an integer of at least 1, got -3"),
    ],
)
def test_wrong_arguments_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)
