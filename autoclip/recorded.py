"""What a clipper and a tuner have in common: they show their steps, and save what they learned. Without torch."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from autoclip.controller import Controller
from autoclip.history import STATE, History, checked_sinks
from autoclip.pictures import need_matplotlib
from autoclip.policies.policy import Policy
from autoclip.records import ClipRecord, Sink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OWNERS: WeakKeyDictionary[Policy, "weakref.ref[Recorded]"] = WeakKeyDictionary()
"""Policy -> the clipper or tuner that it belongs to."""


def skip_rule(policy: Policy | None) -> Controller | None:
    """A controller that says which whole steps are left out, whatever else clips; None without a policy.

    In the warm-up of its policy it leaves out none. After 20 steps left out in a row the policy starts again.

    Raises:
        TypeError: it is no policy.
        ValueError: it has a threshold for each parameter.
    """
    if policy is None:
        return None
    if not isinstance(policy, Policy):
        raise TypeError(f"skip must be a policy such as SkipStep(on='loss or norm'), or None, got {policy!r:.100}")
    if policy.scope != "global":
        raise ValueError(
            f"skip leaves out whole steps by the norm of all gradients, but {type(policy).__name__} has a threshold "
            f"for each {policy.scope}: use a policy such as SkipStep(on='loss or norm')"
        )
    policy.clone()  # raises now what would keep it from being resumed later
    return Controller(policy, "skip")


class Recorded(ABC):
    """The properties of clippers and tuners that show their steps."""

    _history: History
    _rule: Controller | None  # the skip rule

    def _own(self, policy: Policy) -> None:
        """Take over a policy, and that of the skip rule.

        Raises:
            ValueError: one belongs to another clipper or tuner, which is still there, or both are the same.
        """
        owned = [policy] if self._rule is None else [policy, self._rule.policy]
        for one in owned:
            owner = _OWNERS.get(one)
            if (owner is not None and owner() not in (None, self)) or owned.count(one) > 1:
                raise ValueError(
                    f"{one!r} belongs to another clipper already, and would learn from the norms of both: give each "
                    f"its own, such as policy.clone()"
                )
            _OWNERS[one] = weakref.ref(self)

    @abstractmethod
    def _groups_state(self) -> dict[str, Any]:
        """Group's name -> state of its controller."""

    @abstractmethod
    def _load_groups(self, groups: Any) -> None:
        """Continue from such states, or raise and change nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Everything learned and counted, as plain JSON-able values, group by group.

        That of a `Clipper` of scope "global" fits a `Tuner` of the same policy, and the other way round.
        """
        self.settle()
        rule = {} if self._rule is None else {"skip": self._rule.state_dict()}
        return {**self._history.state_dict(), "groups": self._groups_state(), **rule}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()` of the same policy, groups and skip rule.

        Raises:
            TypeError: the state is no dict.
            ValueError: keys are missing or unknown, or the state is of another policy or other groups. Nothing is
                changed.
        """
        name = f"the state of a {type(self).__name__}"
        if not isinstance(state, Mapping):
            raise TypeError(f"{name} is the dict that state_dict() returned, got {state!r:.100}")
        keys = (*STATE, "groups", *(["skip"] if self._rule is not None else []))
        if missing := [key for key in keys if key not in state]:
            raise ValueError(f"{name} needs {', '.join(missing)}; it has {', '.join(state)}")
        if unknown := [str(key) for key in state if key not in keys]:
            raise ValueError(f"{name} has {', '.join(keys)}; this one also has {', '.join(unknown)}")
        self.settle()
        History(()).load_state_dict(dict(state))  # raises, as the next line, before anything is changed
        if self._rule is not None:
            Controller(self._rule.policy.clone(), "skip").load_state_dict(state["skip"])
        self._load_groups(state["groups"])
        if self._rule is not None:
            self._rule.load_state_dict(state["skip"])
        self._history.load_state_dict(dict(state))

    def settle(self) -> None:  # noqa: B027 - only a clipper has steps that are not recorded yet
        """Record what was not recorded yet."""

    def layer_norms(self) -> dict[str, float]:
        """Norm of each parameter's gradient before clipping in the latest step, by parameter name.

        Parameters without a gradient are left out. The total norm is made of these. Empty where only that is known.
        """
        self.settle()
        names, each = self.latest_norms or ([], None)
        return {} if each is None else dict(zip(names, each.tolist(), strict=True))  # host read

    @property
    def latest_norms(self) -> tuple[Collection[str], Any] | None:
        """Names and norms that `layer_norms` reads, shape (n,), as they are on their device; None: not known."""
        return self._history.latest_norms

    def plot(self) -> "Figure":
        """Draw norm and threshold of the latest 2000 steps, as a matplotlib figure that a notebook shows.

        Older ones, and those from before a `load_state_dict()`, are not kept: give a `JSONLSink` and call
        `autoclip.plot` with its file.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: no step was recorded yet, or none whose norm is finite and above zero.
        """
        self.settle()
        need_matplotlib(f"{type(self).__name__}.plot")
        from autoclip.pictures.norms import records_figure

        return records_figure(self._history.recent, getattr(self, "mode", "norm"))

    @property
    def optimizer(self) -> Any:
        """The optimizer that it was made from or is attached to; None: none."""
        return None

    def note(self, batch: Any) -> None:
        """Say what the batch of the next step is called, for `SpikeRecorder`; with several batches, for each.

        Args:
            batch: a number, a text, or the ids of its samples as a list or tensor, which is read only at a spike.
        """
        for sink in self._history.sinks:
            sink.note(batch)

    @property
    def parameters(self) -> dict[str, Any]:
        """Name -> parameter that is clipped; none where only the total norm is known."""
        return {}

    @property
    def is_settled(self) -> bool:
        """True if every step was learned from and recorded, so that reading it does not wait."""
        return True

    @property
    def last(self) -> ClipRecord | None:
        """Record of the latest step; None before the first.

        With several groups its threshold is the bound that theirs set on the norm of all gradients together, its
        coefficient the share of that norm that was left. Its phase is "warmup" as long as any group's is.
        """
        self.settle()
        return self._history.last

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """The objects that get every record. You may replace them in the middle of training."""
        return self._history.sinks

    @sinks.setter
    def sinks(self, sinks: Iterable[Sink]) -> None:
        self.settle()
        self._history.sinks = checked_sinks(sinks)
        self._history.watch(self)

    @property
    def clip_rate(self) -> float:
        """Share of the active steps in which anything was clipped, in [0, 1]; NaN before the first.

        Steps in the warm-up (of any group) do not count, nor do those whose norm is zero or not finite.
        """
        self.settle()
        return self._history.clip_rate

    @property
    def mean_coefficient(self) -> float:
        """Mean share of the norm that is left (norm after over norm before), in [0, 1]; NaN before the first step.

        It is taken over the steps of `clip_rate`, from the coefficients of the records. A skipped step counts 0.
        """
        self.settle()
        return self._history.mean_coefficient

    @property
    def skipped_steps(self) -> int:
        """Number of skipped steps, which had no effect."""
        self.settle()
        return self._history.skipped_steps

    def close(self) -> None:
        """Close the sinks."""
        try:
            self.settle()
        finally:
            for sink in self.sinks:
                sink.close()
