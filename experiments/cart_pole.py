"""A policy gradient: a pole is balanced on a cart by a network that learns from the steps until the pole falls."""

import hashlib
import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.checks import require_positive, seeded

GRAVITY = 9.8  # m / s^2
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
HALF_LENGTH = 0.5  # of the pole, m
FORCE = 10.0  # N, to the right or to the left
SECONDS = 0.02  # of a step
MOST_POSITION = 2.4  # m
MOST_ANGLE = math.radians(12)
START = 0.05
DISCOUNT = 0.99
VALUE_WEIGHT = 0.5
VALIDATION_EPISODES = 64
VALIDATION_SEED = 1983


def move(state: Tensor, right: Tensor) -> Tensor:
    """One step of the cart under Euler's rule.

    Args:
        state: (B, 4): position in m, its velocity, the pole's angle from upright in rad, its velocity.
        right: bool (B,), whether the cart is pushed to the right.
    """
    _, velocity, angle, turning = state.unbind(-1)
    force = torch.where(right, FORCE, -FORCE)
    mass, moment = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
    sine, cosine = angle.sin(), angle.cos()
    push = (force + moment * turning.square() * sine) / mass
    turn = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4 / 3 - POLE_MASS * cosine.square() / mass))
    acceleration = push - moment * turn * cosine / mass
    return state + SECONDS * torch.stack((velocity, acceleration, turning, turn), dim=-1)


def is_up(state: Tensor) -> Tensor:
    """Whether the pole still stands and the cart is still on its track: (..., 4) -> bool (...)."""
    return (state[..., 0].abs() < MOST_POSITION) & (state[..., 2].abs() < MOST_ANGLE)


def discounted(alive: Tensor) -> Tensor:
    """Sums of the discounted rewards from each step on, of 1 for each step that is made: (T, B) -> (T, B)."""
    returns = torch.zeros_like(alive)
    later = torch.zeros_like(alive[0])
    for step in reversed(range(len(alive))):
        later = alive[step] * (1 + DISCOUNT * later)
        returns[step] = later
    return returns


class ActorCritic(nn.Module):
    """States (..., 4) -> logit of a push to the right and expected discounted return, each (...)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.policy, self.value = (
            nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))
            for _ in range(2)
        )

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Apply both networks."""
        return self.policy(states).squeeze(-1), self.value(states).squeeze(-1)


class CartPole:
    """REINFORCE with a learned baseline on a batch of cart-poles; the network's own actions make its data.

    The loss is `-log pi(a | s) A`, with advantages A = return - value that are standardised over the batch, plus half
    the mean squared error of the value. The validation loss is the share of `length` steps for which the pole did not
    stand, in 64 episodes: 1 - mean return / length. `trivial_loss` is that of pushing at random.

    Why clipping matters: returns grow tenfold while the policy learns, and with them the gradient of the value, which
    is nearly all of the norm; a run of bad luck unlearns the policy. The loss rises with the returns, and so when the
    policy gets better.

    Shapes: a batch is (starts, luck), float32 (batch_size, 4) and (length, batch_size); an episode pushes to the right
    where its luck is below the policy's probability. The episodes' states are no part of the gradient.

    References: R. J. Williams, Simple statistical gradient-following algorithms, 1992 (REINFORCE). A. G. Barto, R. S.
    Sutton, C. W. Anderson, Neuronlike adaptive elements, 1983 (the cart; here with the limits and constants of Gym).
    """

    def __init__(self, *, hidden: int = 32, batch_size: int = 16, length: int = 200) -> None:
        require_positive(hidden=hidden, batch_size=batch_size, length=length)
        self.hidden = hidden
        self.batch_size = batch_size
        self.length = length
        self.validation = _drawn(VALIDATION_EPISODES, length, torch.Generator().manual_seed(VALIDATION_SEED))
        data = b"".join(tensor.numpy().tobytes() for tensor in self.validation)
        self.data_hash = hashlib.sha256(data).hexdigest()
        self.trivial_loss = self._fallen(self._episodes(None, *self.validation)[2])

    def model(self, seed: int) -> nn.Module:
        """Build policy and value; torch's global random state is left as it was."""
        with seeded(seed):
            return ActorCritic(self.hidden)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless starts, and the luck of their episodes."""
        generator = torch.Generator().manual_seed(seed)
        for _ in itertools.count():
            yield _drawn(self.batch_size, self.length, generator)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Policy gradient and value loss of new episodes, means over the steps that were made."""
        states, right, alive = self._episodes(model, *batch)
        made = alive.bool()
        logits, values = model(states[made])
        returns, values = discounted(alive)[made], values.float()
        advantages = returns - values.detach()
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-6)
        surprise = F.binary_cross_entropy_with_logits(logits.float(), right[made].float(), reduction="none")
        loss: Tensor = (surprise * advantages).mean() + VALUE_WEIGHT * F.mse_loss(values, returns)
        return loss

    def evaluate(self, model: nn.Module) -> float:
        """Share of the steps of 64 fixed starts for which the pole did not stand."""
        device = next(model.parameters()).device
        return self._fallen(self._episodes(model, *(tensor.to(device) for tensor in self.validation))[2])

    def describe(self) -> dict[str, str | int | float]:
        """Facts for reports."""
        return {"data": "cart-poles, simulated", "length": self.length, "trivial_loss": self.trivial_loss}

    @torch.no_grad()
    def _episodes(self, model: nn.Module | None, starts: Tensor, luck: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (T, B, 4), pushes to the right (T, B) and steps that are made, 1 or 0 (T, B); None pushes at random.

        T is at most `length`: episodes end when all poles have fallen. Without autocast, so that in every precision the
        same weights act in the same way.
        """
        state, alive = starts, torch.ones_like(starts[:, 0])
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.autocast(starts.device.type, enabled=False):
            for chance in luck:
                probability = (
                    torch.tensor(0.5) if model is None else model.get_submodule("policy")(state)[:, 0].sigmoid()
                )
                right = chance < probability
                seen.append((state, right, alive))
                state = move(state, right)
                alive = alive * is_up(state)
                if not alive.any():
                    break
        states, pushes, made = (torch.stack(parts) for parts in zip(*seen, strict=True))
        return states, pushes, made

    def _fallen(self, alive: Tensor) -> float:
        return 1 - alive.sum(0).mean().item() / self.length


def _drawn(episodes: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Starts (episodes, 4), uniform in [-.05, .05), and luck (length, episodes), uniform in [0, 1)."""
    starts = START * (2 * torch.rand(episodes, 4, generator=generator) - 1)
    return starts, torch.rand(length, episodes, generator=generator)
