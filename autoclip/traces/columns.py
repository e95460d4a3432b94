"""The columns, tags and keys of logs: their usual names, and the choice among them."""

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

from autoclip.errors import UsageError

# Ours and torch's (total_norm), Hugging Face and torchtitan (grad_norm), Megatron (grad-norm), Lightning's grad_norm()
# (grad_2.0_norm_total, with _step where an epoch's mean is logged too), fairseq (gnorm), OLMo (total grad norm).
_NORM = re.compile(
    r"(total|grad|gradient|g|total_grad|global_grad|global)_?norm|grad_(\d+(\.\d+)?|inf)_norm_total(_step)?"
)
_WHOLE = {"l2_norm/grad/global", "grad/norm/total"}  # Composer, Levanter
# Words around such a name: they change nothing, name the norms we want most, or make it something else.
_LONGER = re.compile(r"(\w+_)?((total|grad|gradient|gradients|global)_norm|gnorm|gradnorm)(_\w+)?")
_SAME = re.compile("train(ing|er)?|learning|optim|metrics|stats|model|total|global|all|overall|mean|avg|l2|step")
_BEFORE = re.compile("before|pre|preclip|unclipped|raw")
_DIFFERENT = re.compile(
    "eval|evaluation|val|valid|validation|test|after|post|postclip|clipped|clip|clipping|max|min|std|var|ratio|limit|"
    r"threshold|target|epoch|vs|is|\d+|params?|weights?|bias|layers?|blocks?|update|ema"
)
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
    "total_loss",
    "global_avg_loss",
    "avg_loss",
    "reduced_train_loss",
    "train_loss_step",
    "loss_step",
    "pg_loss",
)
_GROUP = re.compile(r"^(train|training|learning|autoclip|loss_metrics)/")
_PART = re.compile(r"^(actor|policy|critic|generator|discriminator)[/_]")

# Best first: beside a `global_step`, `step` may restart in each epoch; W&B's `_step` counts log calls.
_STEPS = (
    "trainer/global_step",
    "train/global_step",
    "training/global_step",
    "global_step",
    "global_step/max_steps",
    "num_updates",
    "step",
    "iteration",
    "iter",
    "train_step",
    "current_steps",
    "_step",
)
_OTHER_COUNTS = {"env", "environment", "episode", "epoch", "example", "frame", "image", "sample", "timestep", "token"}
# Programs that log means, of the last 10 steps (mmengine) or of the logging interval, with columns that tell them.
_MEANS = {"mmengine or mmcv": {"data_time", "iter", "time"}, "fairseq": {"gnorm", "ups", "wps"}}
_STEP_NAMES = {name.rsplit("/", 1)[-1] for name in _STEPS}
_SHOWN = 30

DOWNLOAD = ["Wall time", "Step", "Value"]
"""The columns of a download from TensorBoard's page; the tag is, at best, in the file's name."""


@lru_cache(maxsize=2048)
def _plain(name: str) -> str:
    # W&B's table export calls a column `<run> - <key>`; in an object `train` of a row, keys are `train.<key>`.
    plain = re.sub(r"[\s-]+", "_", name.rsplit(" - ", 1)[-1].strip().lower())
    return f"train/{plain[6:]}" if plain.startswith("train.") else plain


def norm_rank(name: str) -> int | None:
    """0 for the likeliest name of the total gradient norm before clipping, then 1, ...; None: not such a name.

    >>> [norm_rank(name) for name in ("autoclip/total_norm", "grad_norm_before_clip", "grad-norm", "actor_grad_norm")]
    [0, 1, 2, 6]
    >>> norm_rank("grad_2.0_norm/weight"), norm_rank("eval/grad_norm")
    (None, None)
    """
    plain = _plain(name)
    if _OWN.fullmatch(plain):
        return 0
    if plain in _WHOLE:
        return 2
    *path, last = plain.split("/")
    longer = None if _NORM.fullmatch(last) else _LONGER.fullmatch(last)
    if not _NORM.fullmatch(last) and longer is None:
        return None
    words = set(filter(None, f"{longer[1] or ''}{longer[4] or ''}".split("_"))) if longer else set()
    kept = {word for word in words if not _BEFORE.fullmatch(word)}
    before = kept != words
    if before:
        kept -= {"clip", "clipping"}
    if any(map(_DIFFERENT.fullmatch, kept)) or any(map(_HELD_OUT.fullmatch, path)):
        return None
    another = not all(map(_SAME.fullmatch, (*kept, *path)))
    return 1 + 3 * another + (0 if before else 1 if longer is None else 2)


def loss_rank(name: str) -> int | None:
    """0 for the likeliest name of the training loss, then 1, ...; None: not such a name."""
    plain = _PART.sub("", _GROUP.sub("", _plain(name), count=1), count=1)
    return _LOSSES.index(plain) if plain in _LOSSES else None


def part_of(name: str) -> str:
    """The model in a column's name if several are trained together, such as the critic; empty without one.

    >>> part_of("actor/grad_norm"), part_of("policy_loss"), part_of("train/loss")
    ('actor', 'actor', '')
    """
    part = _PART.match(_GROUP.sub("", _plain(name), count=1))
    return "" if part is None else part[1].replace("policy", "actor")


@lru_cache(maxsize=2048)
def may_be_step(name: str) -> bool:
    """Return True if this is a usual name of the optimizer step."""
    return _plain(name).rsplit("/", 1)[-1] in _STEP_NAMES


def counts_other(name: str) -> bool:
    """Return True if this is a name for a count of something other than optimizer steps.

    >>> counts_other("consumed_samples"), counts_other("train/num_env_steps"), counts_other("iteration")
    (True, True, False)
    """
    return any(word.removesuffix("s") in _OTHER_COUNTS for word in re.split(r"[_/.]", _plain(name)))


def program_of_means(column: str, names: Iterable[str], program: str = "") -> str | None:
    """The program that logs means over several steps, by the names in its log; None for any other program.

    >>> program_of_means("gnorm", ["loss", "wps", "ups", "gnorm"])
    'fairseq'
    """
    if _OWN.fullmatch(_plain(column)):
        return None
    plain = {_plain(name).removeprefix("train/").removeprefix("train_") for name in names}
    found = (one for one, columns in _MEANS.items() if program.startswith(one) or columns <= plain)
    return next(found, None)


def is_epoch(name: str) -> bool:
    """Return True if this is a usual name of the epoch."""
    return _plain(name).rsplit("/", 1)[-1] == "epoch"


def step_column(names: Iterable[str], column: str) -> str | None:
    """The best of these names for the optimizer step of a column; None if there is no known name.

    A step in the column's own group goes first, as `autoclip/step` for `autoclip/total_norm`.
    """
    group = _plain(column).rpartition("/")[0]
    own = (f"{group}/global_step", f"{group}/step") if group else ()
    by_plain = {_plain(name): name for name in names}
    return next((by_plain[candidate] for candidate in (*own, *_STEPS) if candidate in by_plain), None)


def threshold_of(column: str) -> str | None:
    """The column of the thresholds for norms in this column; None if unknown."""
    return column.replace("total_norm", "threshold") if "total_norm" in column else None


@dataclass(frozen=True)
class Selection:
    """The columns to read.

    Attributes:
        column: of the norms; None: the one with a known name.
        step_column: of the optimizer steps, in logs that have such a column; None: the one with a known name.
    """

    column: str | None = None
    step_column: str | None = None

    def is_norm(self, name: str) -> bool:
        """Return True if this may be the column of the norms."""
        return self.rank(name) is not None

    def rank(self, name: str) -> int | None:
        """As `norm_rank`; 0 for a column that was asked for."""
        return norm_rank(name) if self.column is None else 0 if name == self.column else None

    def wants(self, name: str) -> bool:
        """Return True if this column's values are worth keeping."""
        return self.is_norm(name) or loss_rank(name) is not None or _THRESHOLD.fullmatch(name) is not None

    def choose(self, filled: Collection[str], names: Collection[str], source: str) -> str:
        """Choose the column of the norms, from those that hold numbers or, if none of them can be it, from all names.

        The likeliest comes first: our own before a trainer's `grad_norm` in the same log.

        Raises:
            NoNormError: there is none.
            SeveralNormsError: there are several.
        """
        found = list(filter(self.is_norm, filled)) or list(filter(self.is_norm, names))
        best = min(map(self._order, found), default=None)
        several = [name for name in found if self._order(name) == best]
        if not names:
            raise NoNormError(f"{source} holds no values")
        if not found and self.column is not None:
            raise NoNormError(f"{source} has no column {self.column!r}; it has {listed(names)}")
        if not found:
            raise self.no_norm(names, source)
        if len(several) > 1:
            raise SeveralNormsError(
                f"{source} has several columns that may hold gradient norms, {listed(found, self._order)}: choose one "
                "with --column (in Python: column=...)"
            )
        return several[0]

    def no_norm(self, names: Collection[str], source: str) -> "NoNormError":
        """The error for a log without a known name; similar names come first."""
        near = listed(names, lambda name: ("norm" not in name.lower()) + ("grad" not in name.lower()))
        return NoNormError(
            f"{source} has no column known to hold gradient norms; it has {near}: choose one with --column "
            "(in Python: column=...)"
        )

    def _order(self, name: str) -> int:
        rank = self.rank(name)
        return 99 if rank is None else rank


class NoNormError(UsageError):
    """A log is sound, but has no gradient norms."""


class SeveralNormsError(UsageError):
    """A log has several columns that may be the gradient norms."""


def listed(names: Collection[str], key: Callable[[str], int] = lambda _: 0) -> str:
    """The names in quotes, by a key and the alphabet; if there are many, only the first of them."""
    shown = ", ".join(repr(name) for name in sorted(names, key=lambda name: (key(name), name))[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
