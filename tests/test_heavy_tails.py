import itertools

import pytest
import torch

from experiments.heavy_tails import HeavyTails

SMALL = {"hidden": 16, "batch_size": 16}


class Known(torch.nn.Module):
    """Answers with the given mean and logarithm of the variance."""

    def __init__(self, mean, log_variance):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.as_tensor(mean))
        self.log_variance = torch.as_tensor(log_variance)

    def forward(self, inputs):
        return self.mean.expand(len(inputs)), self.log_variance.expand(len(inputs))


def test_shapes():
    task = HeavyTails(**SMALL)
    inputs, targets = next(task.batches(0))
    assert inputs.shape == (16, 8)
    assert targets.shape == (16,)
    mean, log_variance = task.model(0)(inputs)
    assert mean.shape == log_variance.shape == (16,)
    assert task.loss(task.model(0), (inputs, targets)).shape == ()


def test_the_loss_is_the_negative_log_likelihood_of_a_gaussian():
    task = HeavyTails(**SMALL)
    inputs, targets = next(task.batches(0))
    expected = -torch.distributions.Normal(0.5, 2.0).log_prob(targets).mean()
    log_variance = torch.tensor(4.0).log()
    torch.testing.assert_close(task.loss(Known(0.5, log_variance), (inputs, targets)), expected, check_dtype=False)


def test_the_trivial_loss_is_that_of_the_best_constant_mean_and_variance():
    task = HeavyTails()
    targets = task.validation[1]
    mean, log_variance = targets.mean(), targets.var(correction=0).log()
    assert task.evaluate(Known(mean, log_variance)) == pytest.approx(task.trivial_loss, rel=1e-5)
    for shift in (-0.1, 0.1):
        assert task.evaluate(Known(mean + shift, log_variance)) > task.trivial_loss
        assert task.evaluate(Known(mean, log_variance + shift)) > task.trivial_loss


def test_the_noise_is_student_s_t_and_has_the_tails_of_its_degrees_of_freedom():
    for degrees, quantile in {3: 5.841, 30: 2.750}.items():  # of Student's t at .995
        task = HeavyTails(degrees_of_freedom=degrees)
        inputs, targets = task._drawn(200_000, torch.Generator().manual_seed(0))
        along_a, along_b = (inputs @ task.directions.T).unbind(-1)
        noise = (targets - (3 * along_a).sin() - along_b) * 4 / along_b.exp()
        assert noise.median().item() == pytest.approx(0, abs=0.02)
        assert noise.sort().values[199_000].item() == pytest.approx(quantile, rel=0.06)


def test_a_network_is_better_than_the_best_constant_after_some_steps():
    task = HeavyTails()
    model = task.model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in itertools.islice(task.batches(0), 200):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    with torch.no_grad():
        assert task.evaluate(model) < task.trivial_loss - 0.5


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="degrees_of_freedom must be at least 3, got 2"):
        HeavyTails(degrees_of_freedom=2)
    with pytest.raises(ValueError, match="layers must be an integer of at least 1, got 0"):
        HeavyTails(layers=0)
