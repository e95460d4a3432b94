import itertools
import math

import pytest
import torch

from experiments.cart_pole import CartPole, discounted, is_up, move

SMALL = {"hidden": 16, "batch_size": 8, "length": 50}


def pole(position=0.0, velocity=0.0, angle=0.0, turning=0.0):
    return torch.tensor([[position, velocity, angle, turning]], dtype=torch.float64)


def test_a_push_moves_the_cart_its_way_and_the_pole_the_other():
    after = move(move(pole(), torch.tensor([True])), torch.tensor([True]))[0]
    assert after[0] > 0
    assert after[1] > 0
    assert after[2] < 0
    torch.testing.assert_close(move(move(pole(), torch.tensor([False])), torch.tensor([False]))[0], -after)


def test_a_step_is_that_of_the_published_equations():
    # Florian, Correct equations for the dynamics of the cart-pole system, 2007, without friction; 10 N to the right
    position, velocity, angle, turning = 0.1, 0.2, 0.05, -0.3
    turn = (9.8 * math.sin(angle) + math.cos(angle) * (-10 - 0.1 * 0.5 * turning**2 * math.sin(angle)) / 1.1) / (
        0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1)
    )
    push = (10 + 0.1 * 0.5 * (turning**2 * math.sin(angle) - turn * math.cos(angle))) / 1.1
    expected = [position + 0.02 * velocity, velocity + 0.02 * push, angle + 0.02 * turning, turning + 0.02 * turn]
    after = move(pole(position, velocity, angle, turning), torch.tensor([True]))
    assert after[0].tolist() == pytest.approx(expected)


def test_the_pole_falls_at_twelve_degrees_and_the_track_ends():
    assert is_up(pole(angle=math.radians(11.9))).item()
    assert not is_up(pole(angle=math.radians(-12.1))).item()
    assert is_up(pole(position=2.3)).item()
    assert not is_up(pole(position=-2.5)).item()


def test_returns_are_discounted_sums_up_to_the_fall():
    alive = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    expected = torch.tensor([[1 + 0.99 + 0.99**2, 1.99], [1.99, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(discounted(alive), expected)


def test_always_pushing_right_falls_after_about_ten_steps_and_pushing_at_random_after_about_twenty():
    task = CartPole(length=200)
    always = task.model(0)
    with torch.no_grad():
        always.policy[-1].bias.fill_(50.0)
    assert 8 < 200 * (1 - task.evaluate(always)) < 11
    assert 18 < 200 * (1 - task.trivial_loss) < 26
    assert task.evaluate(always) > task.trivial_loss


def test_the_policy_s_gradient_favours_what_was_better_than_expected_and_the_value_s_is_half_the_squared_error():
    task = CartPole(**SMALL)
    model = task.model(0)
    batch = next(task.batches(0))
    states, right, alive = task._episodes(model, *batch)
    made = alive.bool()
    logits, values = model(states[made])
    returns = discounted(alive)[made]
    advantages = returns - values.detach()
    advantages = (advantages - advantages.mean()) / advantages.std(correction=0)
    log_probabilities = torch.distributions.Bernoulli(logits=logits).log_prob(right[made].float())
    expected = -(log_probabilities * advantages).mean() + 0.5 * (values - returns).square().mean()
    torch.testing.assert_close(task.loss(model, batch), expected)


def test_the_policy_balances_longer_after_some_steps():
    task = CartPole(length=100)
    model = task.model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = task.evaluate(model)
    for batch in itertools.islice(task.batches(0), 40):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert task.evaluate(model) < before - 0.2


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="length must be an integer of at least 1, got 0"):
        CartPole(length=0)
