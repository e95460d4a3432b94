"""The digits MLP with exactly one corrupted batch, so that what follows it can be told from everything else."""

from collections.abc import Iterator

from torch import Tensor

from experiments.digits import CorruptedDigits


class OneBadBatch(CorruptedDigits):
    """`CorruptedDigits` in which one training batch, and no other, is corrupted.

    Args:
        bad_step: of that batch, counted from 0.
        bad_factor: by which its pixels are too large.
    """

    def __init__(self, *, bad_step: int, bad_factor: float = 100.0) -> None:
        super().__init__(corrupted_share=0.0)
        if bad_step < 0:
            raise ValueError(f"bad_step must be at least 0, got {bad_step}")
        self.bad_step = bad_step
        self.bad_factor = bad_factor

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches, one of them corrupted."""
        for step, (pixels, labels) in enumerate(super().batches(seed)):
            yield (pixels * self.bad_factor if step == self.bad_step else pixels), labels
