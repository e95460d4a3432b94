"""Steps of clippers on gradients of chosen norms: what the benchmarks of overhead time. Knows torch, no clipper."""

import random
import time
from collections.abc import Callable, Mapping
from itertools import count
from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from experiments.benchmarks.shapes import Shape
from experiments.benchmarks.timing import alternate

LIMIT = 1.0
"""The threshold in every cell: norms lie at half or at twice of it."""

SHARES = (0.0, 0.1, 1.0)
CYCLE = 10
CUDA_STEPS = 10
LOSS_SCALE = 2.0**16


class Cell(NamedTuple):
    """What is timed: gradients of which shapes, clipped in which share of the steps.

    Attributes:
        shape: name of the list of shapes.
        scope: "global": the norm of all gradients lies above the limit or below; "parameter": that of each.
        amp: gradients come scaled, and a `GradScaler` unscales them before they are clipped.
        share: of the steps that clip: 0, .1 or 1; in scope "parameter" that holds of every tensor, each in its turn.
    """

    shape: str
    scope: Literal["global", "parameter"]
    amp: bool
    share: float


class Gradients:
    """Parameters whose gradients are set anew before every step, as new tensors in memory that stays the same.

    Args:
        shapes: of the parameters.
        device: of the parameters.
        slots: number of steps whose gradients can be prepared at once.
    """

    def __init__(self, shapes: list[Shape], device: str, slots: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.parameters = [nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
        self._directions: list[Tensor] = []
        for shape in shapes:
            direction = torch.randn(shape, generator=generator)
            self._directions.append(direction.div_(direction.norm()).to(device))
        self._slots = [[torch.zeros(shape, device=device) for shape in shapes] for _ in range(slots)]

    def prepare(self, slot: int, norms: list[float]) -> None:
        """Write gradients of these norms, one for each parameter."""
        for direction, norm, buffer in zip(self._directions, norms, self._slots[slot], strict=True):
            torch.mul(direction, norm, out=buffer)

    def give(self, slot: int) -> None:
        """Give the parameters what was prepared."""
        for parameter, buffer in zip(self.parameters, self._slots[slot], strict=True):
            parameter.grad = buffer.detach()  # a new tensor, as after zero_grad(set_to_none=True)


def norms_of_step(cell: Cell, tensors: int, step: int) -> list[float]:
    """Norm of each tensor's gradient in a step of a cell, without the scale of AMP."""
    jitter = random.Random(step)

    def norm(number: int) -> float:
        clipped = cell.share == 1 or (cell.share > 0 and number % CYCLE == 1)
        return LIMIT * (2.0 if clipped else 0.5) * jitter.uniform(0.8, 1.25)

    if cell.scope == "global":
        return [norm(step) / sqrt(tensors)] * tensors
    return [norm(step + place) for place in range(tensors)]


def time_cell(
    cell: Cell,
    gradients: Gradients,
    clips: Mapping[str, Callable[[], Any]],
    *,
    device: str,
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Time the steps of several clippers on the same gradients, in turn.

    A round has one step, or ten where a tenth of the steps clips. On the CPU the clipping alone is timed, and the
    gradients are written in between. On a GPU the gradients of ten steps are written first, and the time is that of
    giving and clipping them, from one `torch.cuda.synchronize()` to another.

    Args:
        cell: what is timed.
        gradients: that the clippers work on; on a GPU of ten slots.
        clips: name -> one step of a clipper at a limit of 1.
        device: of the gradients.
        rounds: as of `alternate`.
        seconds: as of `alternate`.

    Returns:
        Name -> seconds per step in each round.
    """
    actions = {name: _unscaled(clip, gradients, device) if cell.amp else clip for name, clip in clips.items()}
    scale = LOSS_SCALE if cell.amp else 1.0
    tensors = len(gradients.parameters)

    def contender(action: Callable[[], Any]) -> Callable[[int], float]:
        numbers = count()

        def steps_on_cpu(steps: int) -> float:
            taken = 0.0
            for _ in range(steps):
                gradients.prepare(0, [scale * norm for norm in norms_of_step(cell, tensors, next(numbers))])
                gradients.give(0)
                began = time.perf_counter()
                action()
                taken += time.perf_counter() - began
            return taken / steps

        def steps_on_gpu(steps: int) -> float:
            for slot in range(steps):
                gradients.prepare(slot, [scale * norm for norm in norms_of_step(cell, tensors, next(numbers))])
            torch.cuda.synchronize()
            began = time.perf_counter()
            for slot in range(steps):
                gradients.give(slot)
                action()
            torch.cuda.synchronize()
            return (time.perf_counter() - began) / steps

        return steps_on_cpu if device == "cpu" else steps_on_gpu

    contenders = {name: contender(action) for name, action in actions.items()}
    steps = CYCLE if 0 < cell.share < 1 else CUDA_STEPS if device != "cpu" else 1
    for run in contenders.values():
        run(1)  # the first norm of a policy, which has no threshold before it
        run(CYCLE if 0 < cell.share < 1 else 4)
    return alternate({name: _rounds_of(run, steps) for name, run in contenders.items()}, rounds, seconds)


def _rounds_of(run: Callable[[int], float], steps: int) -> Callable[[], float]:
    return lambda: run(steps)


def _unscaled(clip: Callable[[], Any], gradients: Gradients, device: str) -> Callable[[], Any]:
    """What a loop with a `GradScaler` does: unscale, clip, and update the scale, which stays the same here."""
    optimizer = torch.optim.SGD(gradients.parameters, lr=0.0)
    scaler = torch.amp.GradScaler(device, init_scale=LOSS_SCALE, growth_interval=10**9)
    scaler.scale(torch.zeros((), device=device))  # makes the scale

    def action() -> None:
        scaler.unscale_(optimizer)
        clip()
        scaler.update()

    return action
