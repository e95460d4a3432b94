"""The contract of every policy: warm-up, bounds, which norms are never learned from, and state."""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, MISSING, dataclass, fields
from math import inf, isfinite, nan
from typing import Any, ClassVar, Literal, Self, final

from autoclip.policies.parameters import Floor, Steps, Threshold, WarmupThreshold, as_written, check, settings_of
from autoclip.policies.state import fill, saved
from autoclip.statistics import GeometricQuantile, percentile_of

Phase = Literal["warmup", "active"]
Scope = Literal["global", "group", "parameter"]
Response = Literal["scale", "reciprocal", "skip"]

ALL = "all"
"""Name of the one group of scope "global"."""

USUAL_WINDOW = 100
"""Memory of a policy without a window, in norms."""
WINDOWS_TO_STARVE = 10

LARGEST_START = 10.0
"""A norm of the warm-up above this multiple of the automatic warm-up threshold has exploded: no tracker starts there.
Percentile 99 of lognormal norms with a log-deviation of 1 lies at it."""


@dataclass(eq=False, repr=False)
class Policy(ABC):
    """Sets the threshold of a step from the norms of earlier steps: `threshold()`, clip, then `observe(norm, loss)`.

    A step never votes on its own threshold, unless the policy says `inclusive = True`: then `observe` comes first and
    the threshold is read after it. A policy belongs to one clipper.

    The first `warmup_steps` norms are collected and given to `_start`; then the policy is active. Until then the
    threshold is `warmup_threshold`: a number, inf (collect unclipped), or "auto". "auto" is inf for the very first
    step, then a running median that starts at the first norm and moves by a constant ratio: it rises by at most 5.1 % a
    step, and lets no explosion within the warm-up through. Norms that are zero or not finite are counted and never
    learned from.

    A subclass implements `_start`, `_threshold` and `_observe`. Its settings are fields of a `@dataclass`, annotated
    with what they may be (see `autoclip.policies.parameters`). Every other attribute is its state: a plain value
    (number, string, list, dict, None), or an object with `state_dict` and `load_state_dict`. Make objects and dicts in
    `__post_init__`, after `super().__post_init__()`.

    Args:
        warmup_steps: >= 0, number of norms to collect first. A policy needs one norm to start from: with 0, the first
            step still runs under `warmup_threshold`, unless the policy is inclusive.
        warmup_threshold: > 0, or "auto".
        min_threshold: >= 0, the least threshold ever returned, in the warm-up too.
        max_threshold: > 0, the largest; inf sets no bound.
    """

    # No field, because some policies have a setting of this name, and others change it as they learn.
    inclusive = False
    reads_loss: ClassVar[bool] = False
    needs_norms: ClassVar[bool] = True  # False: active from the first step when warmup_steps is 0
    response: ClassVar[Response] = "scale"
    scope: ClassVar[Scope] = "global"

    _: KW_ONLY
    warmup_steps: Steps = 100
    warmup_threshold: WarmupThreshold = "auto"
    min_threshold: Floor = 0.0
    max_threshold: Threshold = inf

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls):
            raise TypeError(
                f"{cls.__name__} has an __init__, but the settings of a policy are fields: write @dataclass above the "
                f"class, `factor: float = 2.0` in it, and make in __post_init__ what depends on settings"
            )
        for name in ("__repr__", "__eq__", "__hash__"):  # which @dataclass leaves alone only in the class itself
            setattr(cls, name, getattr(cls, name))

    def __post_init__(self) -> None:
        """Check the settings. A subclass calls it first, then makes its own state.

        Raises:
            TypeError: a setting has the wrong type.
            ValueError: a setting has a value that is not allowed.
        """
        for name, setting in settings_of(type(self)).items():
            if callable(getattr(Policy, setting.attribute, None)):
                raise TypeError(
                    f"{type(self).__name__}.{name} would hide a method of Policy: choose another name for it"
                )
            value = check(name, getattr(self, setting.attribute), setting.annotation)
            setattr(self, setting.attribute, value)
        if self.min_threshold > self.max_threshold:
            got = f"{self.min_threshold!r} > {self.max_threshold!r}"
            raise ValueError(f"min_threshold must be at most max_threshold, got {got}")
        for field in fields(self):
            if not field.init and field.default is not MISSING:  # a state, which dataclasses leave in the class
                setattr(self, field.name, field.default)
        self.learned_norms = 0
        self.nonfinite_norms = 0
        self.zero_norms = 0
        self.warmup_norms: list[float] = []
        self.warmup_tracker = GeometricQuantile(percentile=50, rate=0.1)

    @final
    def threshold(self) -> float:
        """Largest norm left unclipped now: a float > 0; inf: nothing is clipped."""
        is_active = self.learned_norms >= (self.warmup_steps or self.needs_norms)  # `phase` would be one more call
        returned = self._threshold() if is_active else self._warmup_bound()
        try:
            value = float(returned)
        except (TypeError, ValueError):
            value = nan
        if not value > 0:
            name = type(self).__name__
            raise ValueError(f"{name}._threshold() returned {returned!r}; a threshold is > 0 (inf: no clipping)")
        return value if self.min_threshold <= value <= self.max_threshold else self._bounded(value)

    def loss_threshold(self) -> float | None:
        """Loss above which a step is skipped, once active; inf: not known yet; None: only the norm counts."""
        return None

    @final
    def observe(self, norm: float, loss: float | None = None) -> None:
        """Learn from one optimizer step.

        Args:
            norm: of the gradients before clipping, >= 0. Zero and non-finite norms are only counted.
            loss: of the step, if the loop gives one. A non-finite loss counts as none.
        """
        norm = float(norm)
        if not 0 < norm < inf:
            if not isfinite(norm):
                self.nonfinite_norms += 1
            elif norm < 0:
                raise ValueError(f"a norm cannot be negative, got {norm}")
            else:
                self.zero_norms += 1
            return
        was_active = self.learned_norms >= (self.warmup_steps or self.needs_norms)
        self.learned_norms += 1
        loss = float(loss) if loss is not None and isfinite(loss) else None
        if loss is not None:
            self._observe_loss(loss)
        if was_active:
            self._observe(norm, loss)
            return
        self.warmup_norms.append(norm)
        self.warmup_tracker.update(norm)
        if self.learned_norms == (self.warmup_steps or self.needs_norms):
            self._start(self.warmup_norms)
            self.warmup_norms = []

    @final
    def reciprocal(self, norm: float) -> float:
        """Norm that the response "reciprocal" leaves of one above the threshold: the larger it was, the less.

        c * c / norm at a threshold of c, or the policy's own formula; never more than c.
        """
        threshold = self.threshold()
        return min(threshold, self._reciprocal(norm)) if self.phase == "active" else threshold * (threshold / norm)

    @final
    def relearn(self, norms: list[float]) -> None:
        """Forget what was learned and start again from recent norms, as if they were the warm-up.

        Args:
            norms: finite and > 0, oldest first, at least one.
        """
        fresh = self.clone()
        fresh.warmup_tracker.start(percentile_of(sorted(norms), 50))
        fresh._restart(list(norms))
        fresh.learned_norms = max(self.learned_norms, self.warmup_steps, int(self.needs_norms))
        fresh.nonfinite_norms, fresh.zero_norms = self.nonfinite_norms, self.zero_norms
        self.__dict__ = vars(fresh)

    @property
    def warmup_total(self) -> float | None:
        """Bound on the norm of all groups together in the warm-up; None: each group has its own."""
        return None

    @property
    def starves_after(self) -> int | None:
        """Number of clipped steps in a row that show a new level of the norms: ten windows.

        None: no number does, because the policy is meant to clip all of them.
        """
        if getattr(self, "percentile", None) == 0:
            return None
        return WINDOWS_TO_STARVE * self.remembered_norms

    @property
    def remembered_norms(self) -> int:
        """Number of recent norms that the policy goes by: its `window`, or 100 if it has none."""
        window = getattr(self, "window", None)
        return window if isinstance(window, int) and window > 0 else USUAL_WINDOW

    @property
    def phase(self) -> Phase:
        """Name of the threshold that is read now: that of the "warmup", or once "active" the policy's own."""
        return "active" if self.learned_norms >= (self.warmup_steps or self.needs_norms) else "warmup"

    @abstractmethod
    def _start(self, warmup_norms: list[float]) -> None:
        """Start from the norms of the warm-up: at least one, oldest first."""

    @abstractmethod
    def _threshold(self) -> float:
        """Threshold once active."""

    @abstractmethod
    def _observe(self, norm: float, loss: float | None) -> None:
        """Learn from a norm that is finite and > 0, and a loss that is finite or None; called once active."""

    def _restart(self, norms: list[float]) -> None:
        """Start again from recent norms in the middle of training; as after the warm-up, unless overridden."""
        self._start(norms)

    def _reciprocal(self, norm: float) -> float:
        """Norm that the response "reciprocal" leaves of a norm above the threshold, once active."""
        threshold = self.threshold()
        return threshold * (threshold / norm)

    def _observe_loss(self, loss: float) -> None:  # noqa: B027 - optional: most policies do not look at the loss
        """Learn from the finite loss of a learned step; called before `_observe`, and in the warm-up too."""

    @final
    def parameters(self) -> dict[str, Any]:
        """Settings by name: `type(policy)(**policy.parameters())` is the policy with nothing learned."""
        if "warmup_tracker" not in vars(self):
            raise TypeError(f"{type(self).__name__}.__post_init__ must call super().__post_init__() first")
        return {name: getattr(self, setting.attribute) for name, setting in settings_of(type(self)).items()}

    @final
    def clone(self) -> Self:
        """Make a new policy with the same parameters and nothing learned."""
        return type(self)(**self.parameters())

    @final
    def state_dict(self) -> dict[str, Any]:
        """Everything learned and the policy's name, as plain JSON-able values. Settings are not part of it."""
        return {"policy": type(self).__name__, **saved(self)}

    @final
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()` of the same kind of policy.

        Raises:
            ValueError: the state is of another policy, or does not fit this one. Nothing is changed.
        """
        loaded = self.clone()
        fill(loaded, state)
        self.__dict__ = vars(loaded)

    def __repr__(self) -> str:
        """The call that makes it: the settings that are not at their defaults, and the percentile of a clip rate."""
        declared = settings_of(type(self))
        shown = [
            f"{name}={as_written(value, declared[name].annotation)}"
            for name, value in self.parameters().items()
            if value != declared[name].default or (name == "percentile" and not self.reads_loss)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    @final
    def _capped(self, start: float) -> float:
        """Limit the value that a tracker starts at, so that an explosion in the warm-up does not set it."""
        if self.warmup_threshold != "auto":
            return start
        return min(start, LARGEST_START * self.warmup_tracker.get())

    @final
    def _winsorized(self, warmup_norms: list[float]) -> list[float]:
        """Replace norms of the warm-up that exploded by the largest of the others."""
        largest = max(norm for norm in warmup_norms if self._capped(norm) == norm)
        return [min(norm, largest) for norm in warmup_norms]

    def _bounded(self, threshold: float) -> float:
        return min(max(threshold, self.min_threshold), self.max_threshold)

    def _warmup_bound(self) -> float:
        if self.warmup_threshold != "auto":
            return float(self.warmup_threshold)
        return self.warmup_tracker.get() if self.warmup_norms else inf
