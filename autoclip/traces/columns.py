"""Which column, tag or key of a log holds what: the names in the wild, and the choice among them."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from autoclip.errors import UsageError

# Ours and torch's (total_norm), Hugging Face and torchtitan (grad_norm), Megatron (grad-norm), Lightning's grad_norm()
# (grad_2.0_norm_total, with _step where an epoch's mean is logged too), fairseq (gnorm), OLMo (total grad norm).
_NORM = re.compile(
    r"(total|grad|gradient|g|total_grad|global_grad|global)_?norm|grad_(\d+(\.\d+)?|inf)_norm_total(_step)?"
)
_COMPOSER = "l2_norm/grad/global"
_OWN = re.compile(r"(.*/)?autoclip/total_norm(/\d+)?")  # a number for each of several optimizers
_THRESHOLD = re.compile(r"(.*/)?threshold(/\d+)?")
_HELD_OUT = re.compile(r"(eval|evaluation|val|valid|validation|test)")
_LOSSES = (
    "loss",
    "train_loss",
    "training_loss",
    "loss/train",
    "loss/train/total",
    "lm_loss",
    "ce_loss",
    "train_loss_step",
    "loss_step",
)

# Best first: `step` may start anew in each epoch where there is a `global_step`, and W&B's `_step` counts log calls.
_STEPS = (
    "trainer/global_step",
    "train/global_step",
    "global_step",
    "num_updates",
    "step",
    "iteration",
    "iter",
    "_step",
)
_STEP_NAMES = {name.rsplit("/", 1)[-1] for name in _STEPS}
_SHOWN = 30


def _plain(name: str) -> str:
    # W&B's table export calls a column `<run> - <key>`; in an object `train` of a row, keys are `train.<key>`.
    plain = re.sub(r"[\s-]+", "_", name.rsplit(" - ", 1)[-1].strip().lower())
    return f"train/{plain[6:]}" if plain.startswith("train.") else plain


def is_norm(name: str) -> bool:
    """Whether this is a name under which people log the total gradient norm.

    >>> is_norm("train/grad_norm"), is_norm("grad-norm"), is_norm("grad_2.0_norm/weight"), is_norm("eval/grad_norm")
    (True, True, False, False)
    """
    plain = _plain(name)
    *path, last = plain.split("/")
    if any(_HELD_OUT.fullmatch(part) for part in path):
        return False
    return plain == _COMPOSER or (_NORM.fullmatch(last) or _OWN.fullmatch(plain)) is not None


def loss_rank(name: str) -> int | None:
    """0 for the likeliest name of the training loss, then 1, ...; None for what is none."""
    plain = _plain(name).removeprefix("train/").removeprefix("autoclip/")
    return _LOSSES.index(plain) if plain in _LOSSES else None


def may_be_step(name: str) -> bool:
    """Whether this is a name under which people log the optimizer step."""
    return _plain(name).rsplit("/", 1)[-1] in _STEP_NAMES


def is_epoch(name: str) -> bool:
    """Whether this is a name under which people log the epoch."""
    return _plain(name).rsplit("/", 1)[-1] == "epoch"


def step_column(names: Iterable[str], column: str) -> str | None:
    """The best of these names for the optimizer step of a column, None where none is known.

    A step in the column's own group goes first, as `autoclip/step` for `autoclip/total_norm`.
    """
    group = _plain(column).rpartition("/")[0]
    own = (f"{group}/global_step", f"{group}/step") if group else ()
    by_plain = {_plain(name): name for name in names}
    return next((by_plain[candidate] for candidate in (*own, *_STEPS) if candidate in by_plain), None)


def threshold_of(column: str) -> str | None:
    """Where the thresholds are that belong to norms in this column, None where no place is known."""
    return column.replace("total_norm", "threshold") if "total_norm" in column else None


@dataclass(frozen=True)
class Selection:
    """Which columns to read.

    Attributes:
        column: the one of the norms; None: the one with a known name.
        step_column: the one of the optimizer steps, in logs that have it as a column; None: the one with a known name.
    """

    column: str | None = None
    step_column: str | None = None

    def is_norm(self, name: str) -> bool:
        """Whether this column may be the one of the norms."""
        return name == self.column if self.column is not None else is_norm(name)

    def wants(self, name: str) -> bool:
        """Whether this column's values are worth keeping."""
        return self.is_norm(name) or loss_rank(name) is not None or _THRESHOLD.fullmatch(name) is not None

    def choose(self, filled: Collection[str], names: Collection[str], source: str) -> str:
        """The column of the norms, from those that hold numbers or, where none of those may be it, from all names.

        Our own goes before others, as where a trainer's `grad_norm` is in the same log.

        Raises:
            NoNormError: there is none.
            SeveralNormsError: there are several.
        """
        found = sorted(filter(self.is_norm, filled)) or sorted(filter(self.is_norm, names))
        found = [name for name in found if _OWN.fullmatch(_plain(name))] or found
        if not names:
            raise NoNormError(f"{source} holds no values")
        if not found and self.column is not None:
            raise NoNormError(f"{source} has no column {self.column!r}; it has {listed(names)}")
        if not found:
            raise NoNormError(
                f"{source} has no column known to hold gradient norms; it has {listed(names)}: choose one with "
                "--column (in Python: column=...)"
            )
        if len(found) > 1:
            raise SeveralNormsError(
                f"{source} has several columns that may hold gradient norms, {listed(found)}: choose one with --column "
                "(in Python: column=...)"
            )
        return found[0]


class NoNormError(UsageError):
    """A log is sound, but has no gradient norms."""


class SeveralNormsError(UsageError):
    """A log has several columns that may be the gradient norms."""


def listed(names: Collection[str]) -> str:
    """The names in quotes, the first of them where they are many."""
    shown = ", ".join(repr(name) for name in sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
