"""A task of a few hundred parameters with dropout and batch statistics: all the state that a resume has to restore."""

import hashlib
import os
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class TinyTask:
    """Noisy linear regression, whose batches raise, are NaN or end where the arguments say so.

    The environment's TINY_TASK_SECONDS is how long a batch takes: no argument, as it changes no result.
    """

    trivial_loss = 1.0

    def __init__(
        self,
        *,
        features: int = 8,
        fail_at: int = -1,
        nan_at: int = -1,
        nan_from: int = 10**9,
        end_at: int = -1,
        speaks: bool = False,
        data: str = "a",
    ) -> None:
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        self.features, self.fail_at, self.nan_at, self.nan_from = features, fail_at, nan_at, nan_from
        self.end_at, self.speaks = end_at, speaks
        self.data_hash = hashlib.sha256(data.encode()).hexdigest()

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Linear(self.features, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1)
            )

    def batches(self, seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.linspace(-1, 1, self.features)
        index = 0
        pause = float(os.environ.get("TINY_TASK_SECONDS", "0"))
        while index != self.end_at:
            time.sleep(pause)
            x = torch.randn(32, self.features, generator=generator)
            y = x @ weight + 0.1 * torch.randn(32, generator=generator)
            yield {"x": x, "y": y, "index": torch.tensor(index)}
            index += 1

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        index = int(batch["index"])
        if index == self.fail_at:
            raise RuntimeError("the task broke")
        loss = (model(batch["x"]).squeeze(1) - batch["y"]).square().mean()
        return loss * float("nan") if index == self.nan_at or index >= self.nan_from else loss

    def evaluate(self, model: nn.Module) -> float:
        if self.speaks:
            print("hello from the task")
        batch = next(self.batches(10_000))
        return float((model(batch["x"]).squeeze(1) - batch["y"]).square().mean())

    def describe(self) -> dict[str, int]:
        return {"features": self.features}
