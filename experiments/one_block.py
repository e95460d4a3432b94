"""One block whose gradient norms are ten million times the others', under clippers of three scopes.

    python -m experiments.one_block [--seeds 3] [--steps 400]

An MLP learns the digits; after backward the gradients of its second layer are multiplied by a factor. AdamW and Muon
take no notice of a factor that stays the same, so what goes wrong comes from the clipping. Reference: Megatron-LM,
issue 5394 (norms of 5e7 in one block, clipping at 1).
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from math import inf, isnan
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

import autoclip
from autoclip.policies.policy import Scope
from experiments.digits import CorruptedDigits

BLOCK = "2."  # the second layer
Factors = Callable[[torch.Generator], float]


class Rule(NamedTuple):
    """A policy, and over what its norms are taken."""

    name: str
    policy: autoclip.Policy
    scope: Scope = "global"


SCOPES: tuple[Scope, ...] = ("global", "group", "parameter")
RULES = [
    Rule("none", autoclip.NoClip()),
    *(Rule("constant 1", autoclip.Fixed(1.0), scope) for scope in SCOPES),
    *(Rule("default", autoclip.ProbingQuantile(), scope) for scope in SCOPES),
]

FACTORS: dict[str, Factors] = {
    "1": lambda random: 1.0,
    "1e7": lambda random: 1e7,
    "1e5 to 1e9, another in each step": lambda random: 10 ** (5 + 4 * torch.rand((), generator=random).item()),
}


def sgd(model: nn.Module) -> list[torch.optim.Optimizer]:
    """With momentum."""
    return [torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)]


def adamw(model: nn.Module, eps: float = 1e-8) -> list[torch.optim.Optimizer]:
    """For everything."""
    return [torch.optim.AdamW(model.parameters(), lr=1e-3, eps=eps)]


def muon(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the rest."""
    matrices = [one for one in model.parameters() if one.ndim == 2]
    rest = [one for one in model.parameters() if one.ndim != 2]
    return [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3),
    ]


Made = Callable[[nn.Module], list[torch.optim.Optimizer]]

OPTIMIZERS: dict[str, Made] = {
    "SGD": sgd,
    "AdamW": adamw,
    "AdamW, eps 1e-15": partial(adamw, eps=1e-15),
    "AdamW, eps 1e-5, which is eps 1e-8 with gradients a thousand times smaller": partial(adamw, eps=1e-5),
    "Muon and AdamW": muon,
}


class Outcome(NamedTuple):
    """Validation loss after the last step, and the distance that the other blocks' parameters have moved."""

    loss: float
    moved: float


def train(rule: Rule, factors: Factors, made: Made, *, seed: int, steps: int) -> Outcome:
    """One run."""
    task = CorruptedDigits(corrupted_share=0.0)
    model = task.model(seed)
    others = {name: one for name, one in model.named_parameters() if not name.startswith(BLOCK)}
    before = {name: one.detach().clone() for name, one in others.items()}
    groups = {"block": rf"^{BLOCK}"} if rule.scope == "group" else None
    clipper = autoclip.Clipper(model, rule.policy.clone(), scope=rule.scope, groups=groups)
    optimizers = made(model)
    random = torch.Generator().manual_seed(seed)
    for _, batch in zip(range(steps), task.batches(seed), strict=False):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        factor = factors(random)
        for gradient in gradients_of(model, BLOCK):
            gradient.mul_(factor)
        clipper.step(loss=loss.detach())
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        moved = [(one - before[name]).flatten() for name, one in others.items()]
        return Outcome(task.evaluate(model), torch.cat(moved).norm().item())


def gradients_of(model: nn.Module, prefix: str) -> Iterator[Tensor]:
    """Those of the parameters whose names begin so."""
    for name, one in model.named_parameters():
        if name.startswith(prefix) and one.grad is not None:
            yield one.grad


def main() -> None:
    """Print a table for each optimizer."""
    parser = argparse.ArgumentParser(prog="python -m experiments.one_block", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="non-finite gradient norm")  # of what diverges, which is the result
    for title, made in OPTIMIZERS.items():
        print(f"\n{title}: validation loss / distance that the other blocks move, by the factor on one; medians")
        print(" | ".join(["rule", "scope", *FACTORS]))
        for rule in RULES:
            cells = []
            for factors in FACTORS.values():
                runs = [train(rule, factors, made, seed=seed, steps=given.steps) for seed in range(given.seeds)]
                loss = median(inf if isnan(run.loss) else run.loss for run in runs)
                cells.append(f"{loss:.3f} / {median(run.moved for run in runs):.2g}")
            print(" | ".join([rule.name, rule.scope, *cells]), flush=True)


if __name__ == "__main__":
    main()
