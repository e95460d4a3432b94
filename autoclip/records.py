"""What one step did, as plain values."""

from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from autoclip.policies.policy import Phase


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One optimizer step as the clipper saw it.

    Attributes:
        step: 0 for the first.
        phase: "warmup" or "active": whose threshold it was.
        total_norm: norm before clipping (mode "value": the largest absolute element; mode "agc": the largest ratio).
        threshold: > 0; inf: nothing was to be clipped.
        coefficient: factor on the gradients, in [0, 1]; 1 left them untouched (other modes: threshold over the largest
            element or ratio). NaN where `on_nonfinite="propagate"` passed on a NaN, as torch does.
        clipped: the norm lay above the threshold.
        skipped: the step was made to have no effect on the parameters.
        finite: the norm was finite.
        loss: of the step, the mean over its micro-batches and over the ranks; None where none was given.
    """

    step: int
    phase: Phase
    total_norm: float
    threshold: float
    coefficient: float
    clipped: bool
    skipped: bool
    finite: bool
    loss: float | None = None

    def as_json(self, lr: float | None = None) -> dict[str, Any]:
        """The line of `metrics.jsonl`, with null for what JSON cannot hold: a non-finite norm, a threshold of inf.

        Its `finite` is that of norm and loss together, so that a loss of null with `finite` true was not given.

        Args:
            lr: learning rate of the step, where it is known.
        """
        return {
            "step": self.step,
            "loss": finite_or_none(self.loss),
            "total_norm": finite_or_none(self.total_norm),
            "threshold": finite_or_none(self.threshold),
            "coefficient": finite_or_none(self.coefficient),
            "clipped": self.clipped,
            "skipped": self.skipped,
            "finite": self.finite and (self.loss is None or isfinite(self.loss)),
            "phase": self.phase,
            "lr": finite_or_none(lr),
        }


class Sink(Protocol):
    """Takes the record of every step."""

    def log(self, record: ClipRecord) -> None:
        """Take the record of one step."""

    def close(self) -> None:
        """Write out what is left."""


def finite_or_none(number: float | None) -> float | None:
    """The number, or None (JSON's null) for NaN and the infinities."""
    return number if number is not None and isfinite(number) else None
