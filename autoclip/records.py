"""The record of one step, as plain values."""

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any

from autoclip.controller import SkippedBy
from autoclip.policies.policy import Phase

ROLLING_STEPS = 200
"""Number of steps over which a rolling clip rate is taken."""


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One optimizer step as the clipper saw it.

    Attributes:
        step: 0 for the first.
        phase: "warmup" or "active": which of the two set the threshold.
        total_norm: norm before clipping (mode "value": the largest absolute element; mode "agc": the largest ratio;
            mode "param_rms": weighted).
        threshold: > 0; inf: no clipping. With several groups, the bound that theirs set on the total norm.
        coefficient: norm after clipping over norm before, in [0, 1]: 1 left the gradients untouched, 0 skipped the
            step. With one group it is the factor on them; with several, both norms are those of all gradients together.
            The modes "value" and "agc" do not measure the norm after: there it is that of the largest element or ratio.
            NaN if `on_nonfinite="propagate"` passed on a NaN, as torch does; 0 if "zero" made the gradients zeros.
        clipped: the norm was above its threshold; with several groups, that of at least one.
        skipped: the step was skipped: it had no effect on the parameters.
        finite: the norm was finite.
        loss: of the step, the mean over its micro-batches and over the ranks; None if none was given.
        skipped_by: what stood out in a skipped step: "norm", "loss", or "loss and norm"; None if it was skipped for a
            norm that is not finite, or by an engine of its own accord.
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
    skipped_by: SkippedBy | None = None

    def as_json(self, lr: float | None = None) -> dict[str, Any]:
        """The line of `metrics.jsonl`, see `to_json`. Here `finite` means that norm and loss are finite.

        Args:
            lr: learning rate of the step, if known.
        """
        line = {
            "step": self.step,
            "loss": self.loss,
            "total_norm": self.total_norm,
            "threshold": self.threshold,
            "coefficient": self.coefficient,
            "clipped": self.clipped,
            "skipped": self.skipped,
            "skipped_by": self.skipped_by,
            "finite": self.finite and (self.loss is None or isfinite(self.loss)),
            "phase": self.phase,
            "lr": lr,
        }
        return dict(to_json(line))


class Sink(AbstractContextManager["Sink"]):
    """Gets the record of every step. A sink of your own derives from it and implements `log`.

    As a context manager it closes itself.
    """

    @abstractmethod
    def log(self, record: ClipRecord) -> None:
        """Take the record of one step."""

    def close(self) -> None:
        """Write what is left, and close files."""

    def watch(self, clipper: Any) -> None:
        """Get the clipper, or the tuner, before its first step."""

    def announce(self, step: int) -> None:
        """Hear that a step is under way whose record follows at the next step (see `host_wait` of `Clipper`)."""

    def note(self, batch: Any) -> None:
        """Hear what the batch of the next step is called, see `Clipper.note`."""

    def __exit__(self, *error: object) -> None:
        self.close()


def is_active(phase: str, norm: float | None) -> bool:
    """Return True if a step counts in a clip rate: after the warm-up, with a norm that is finite and above zero."""
    return phase == "active" and norm is not None and 0 < norm < inf


def clip_rate(clipped: int, active: int) -> float:
    """Share of the active steps (see `is_active`) in which anything was clipped, in [0, 1]; NaN without one.

    Args:
        clipped: number of active steps with `ClipRecord.clipped`.
        active: number of active steps.
    """
    return clipped / active if active else nan


def mean_coefficient(total: float, active: int) -> float:
    """Share of the gradient's length that is left, in [0, 1]: mean of `ClipRecord.coefficient`; NaN without a step.

    Args:
        total: sum of the coefficients of the active steps (see `is_active`); a skipped step adds 0.
        active: number of active steps.
    """
    return total / active if active else nan


def rate_text(rate: float | None, digits: int = 1) -> str:
    """A rate in per cent, as tables show it; "-" for None and NaN. Only exactly 0 and 1 are shown as 0 and 100 %."""
    if rate is None or rate != rate:
        return "-"
    text, none, all_of_it = (f"{value:.{digits}%}" for value in (rate, 0.0, 1.0))
    step = 10.0**-digits
    if text == none and rate > 0:
        return f"<{step:g}%"
    return f">{100 - step:g}%" if text == all_of_it and rate < 1 else text


def threshold_text(threshold: float | None) -> str:
    """A threshold to four digits, as tables show it; "none" for None and inf."""
    return "none" if threshold is None or threshold == inf else f"{threshold:.4g}"


def finite_or_none(number: float | None) -> float | None:
    """The number; None for NaN and the infinities."""
    return number if number is not None and isfinite(number) else None


def to_json(value: Any) -> Any:
    """Plain values without NaN and infinities, which JSON lacks: null instead, and `NAME_is` beside it says which.

    >>> to_json({"loss": None, "total_norm": nan, "threshold": inf})
    {'loss': None, 'total_norm': None, 'total_norm_is': 'nan', 'threshold': None, 'threshold_is': 'inf'}
    """
    if isinstance(value, dict):
        plain: dict[str, Any] = {}
        for name, one in value.items():
            plain[name] = to_json(one)
            if plain[name] is None and one is not None:
                plain[f"{name}_is"] = str(float(one))
        return plain
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def restored(values: dict[str, Any]) -> dict[str, Any]:
    """One object of `to_json` as it was before: the `object_hook` of whoever reads our files.

    >>> restored({"loss": None, "total_norm": None, "total_norm_is": "nan"})
    {'loss': None, 'total_norm': nan}
    """
    if None not in values.values():
        return values
    words = {name: values.get(f"{name}_is") for name, one in values.items() if one is None}
    numbers = {name: float(word) for name, word in words.items() if word in ("nan", "inf", "-inf")}
    if not numbers:
        return values
    marks = {f"{name}_is" for name in numbers}
    return {name: numbers.get(name, one) for name, one in values.items() if name not in marks}
