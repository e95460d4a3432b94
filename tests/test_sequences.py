import importlib
import itertools
import math
import pathlib

import pytest
import torch
import yaml

from experiments.digits import load_digits
from experiments.sequences import AddingProblem, IdentityRNN, PixelDigits

CONFIGS = [
    path
    for path in sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.yaml"))
    if "experiments.sequences:" in path.read_text(encoding="utf-8")
]
TASKS = {
    "pixels": (PixelDigits, {"hidden": 32, "batch_size": 16}),
    "adding": (AddingProblem, {"length": 10, "hidden": 32, "batch_size": 16}),
}


@pytest.fixture(params=TASKS.values(), ids=TASKS.keys())
def task(request):
    kind, arguments = request.param
    return kind(**arguments)


def weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters())


def first_batches(task, seed, count=3):
    return list(itertools.islice(task.batches(seed), count))


def test_a_seed_fixes_the_weights_and_another_changes_them(task):
    assert torch.equal(weights(task.model(3)), weights(task.model(3)))
    assert not torch.equal(weights(task.model(3)), weights(task.model(4)))


def test_a_seed_fixes_the_batches_and_another_changes_them(task):
    for one, other, different in zip(
        first_batches(task, 3), first_batches(task, 3), first_batches(task, 4), strict=True
    ):
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


def test_clipped_sgd_lowers_the_validation_loss(task):
    model = task.model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.no_grad():
        before = task.evaluate(model.eval())
    model.train()
    for batch in itertools.islice(task.batches(0), 150):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        after = task.evaluate(model.eval())
    assert after < before - 0.1


def test_bfloat16_autocast_gives_nearly_the_same_loss(task):
    model, batch = task.model(0), first_batches(task, 0, 1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.loss(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(task.loss(model, batch).item(), rel=0.05)


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


def test_pixel_digits_reads_one_pixel_per_step():
    task = PixelDigits(hidden=32, batch_size=16)
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_name_a_task_that_can_be_built(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    module, _, name = config["task"]["target"].partition(":")
    task = getattr(importlib.import_module(module), name)(**config["task"]["args"])
    model = task.model(config["seeds"][0])
    loss = task.loss(model, next(task.batches(config["seeds"][0])))
    assert math.isfinite(loss.item())


def test_both_configurations_are_there():
    assert {"pixel_rnn", "adding_problem"} <= {path.stem for path in CONFIGS}
