"""The threshold for an engine that clips by itself: ask before the step, tell the norm after it. Without torch."""

from abc import abstractmethod
from collections.abc import Iterable
from math import inf, isfinite, nan
from typing import Any, ClassVar, SupportsFloat

from autoclip.controller import Controller, RelearnAfter, SkippedBy
from autoclip.history import History
from autoclip.policies import Policy, checked_policy
from autoclip.policies.parameters import choice
from autoclip.policies.policy import ALL, Response
from autoclip.recorded import Recorded, skip_rule
from autoclip.records import ClipRecord, Sink


class OneThreshold(Recorded):
    """A policy for the norm of all gradients together: what it learned, counts, and tells. `Tuner` is one.

    Args:
        policy: what sets the threshold; None is `ProbingQuantile()`.
        response: what becomes of a norm above it.
        sinks: `autoclip.sinks.Sink` objects, which get the record of every step.
        max_nonfinite_in_a_row: as of `Tuner`.
        relearn_after: as of `Tuner`.
        give_loss: how to give the loss, for the warning that none was given.
        skip: as of `Tuner`.

    Raises:
        TypeError: `policy` is no policy, or `sinks` holds something that is no sink.
        ValueError: the policy has a threshold for each parameter, or an argument is out of its range.
    """

    def __init__(
        self,
        policy: Policy | None,
        response: Response | None,
        sinks: Iterable[Sink],
        max_nonfinite_in_a_row: int | None,
        relearn_after: RelearnAfter,
        give_loss: str,
        skip: Policy | None = None,
    ) -> None:
        self.policy = checked_policy(policy)
        self.policy.clone()  # raises now what would keep it from being resumed later
        if self.policy.scope != "global":
            raise ValueError(
                f"{type(self.policy).__name__} sets a threshold for each {self.policy.scope}, but here all gradients "
                f"are clipped together: use a policy such as RunningQuantile(percentile=50)"
            )
        self._controller = Controller(
            self.policy, choice("response", response or self.policy.response, Response), relearn_after
        )
        self._rule = skip_rule(skip)
        self._own(self.policy)
        self._history = History(sinks, max_nonfinite_in_a_row, self.policy, give_loss)

    @property
    def threshold(self) -> float:
        """Threshold of the next step, > 0, as far as it is known before that step's norm; inf: no clipping."""
        return self.policy.threshold()

    def _groups_state(self) -> dict[str, Any]:
        return {ALL: self._controller.state_dict()}

    def _load_groups(self, groups: Any) -> None:
        if list(groups) != [ALL]:
            raise ValueError(f"the state must be of one group called all, it is of {', '.join(groups)}")
        self._controller.load_state_dict(groups[ALL])

    @abstractmethod
    def __repr__(self) -> str: ...


class Tuner(OneThreshold):
    """Sets the threshold of somebody else's clipping, from the norms that this measured.

        tuner = autoclip.Tuner()
        for batch in loader:
            engine.optimizer.clip_grad = tuner.threshold           # before the step
            loss = engine(batch)
            engine.backward(loss)
            engine.step()
            tuner.observe(engine.get_global_grad_norm(), loss)     # after it: the norm before clipping

    (For DeepSpeed, whose engine this is, `autoclip.integrations.deepspeed.attach(engine)` does all that.)

    Call `observe` once for each optimizer step, so not for each micro-batch. Where several processes train together,
    each needs the same norm and the same loss, or their thresholds differ: average the loss over the ranks first.

    An engine scales the gradients down to the threshold. So responses other than "scale" have no effect, and the very
    first step has a threshold of inf unless the policy has a constant. What the engine does with a norm that is not
    finite is its own matter; nothing is learned from one.

    A step cannot be skipped from here. With `skip` the engine can ask: `tuner.skips(norm, loss)` before its step, or by
    its own rule with `tuner.skip_threshold` as the largest norm; it then says so by `observe(..., skipped=True)`.

    Args:
        policy: what sets the threshold; None is `ProbingQuantile()`.
        sinks: `autoclip.sinks.Sink` objects, which get the record of every step.
        max_nonfinite_in_a_row: this many steps in a row without a finite norm raise a RuntimeError; None: no number
            does. A warning tells of 10, 100 and 1000 in a row.
        relearn_after: after this many steps clipped in a row the policy starts again from their norms; "auto": ten
            windows of the policy; None: never.
        skip: a rule for steps to leave out, as of `Clipper`.

    Raises:
        TypeError: `policy` is no policy, or `sinks` holds something that is no sink.
        ValueError: the policy has a threshold for each parameter, or an argument is out of its range.

    >>> from autoclip import FixedPercentile
    >>> tuner = Tuner(FixedPercentile(percentile=50, warmup_steps=3, warmup_threshold=1.0))
    >>> [tuner.observe(norm).coefficient for norm in (0.5, 2.0, 4.0)], tuner.threshold
    ([1.0, 0.5, 0.25], 2.0)
    """

    give_loss: ClassVar[str] = "tuner.observe(norm, loss)"
    """Words for how to give it the loss."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        sinks: Iterable[Sink] = (),
        max_nonfinite_in_a_row: int | None = None,
        relearn_after: RelearnAfter = "auto",
        skip: Policy | None = None,
    ) -> None:
        super().__init__(policy, "scale", sinks, max_nonfinite_in_a_row, relearn_after, self.give_loss, skip)
        self._history.watch(self)

    @property
    def skip_threshold(self) -> float:
        """Norm above which the skip rule leaves the next step out; inf: none is left out for its norm."""
        return inf if self._rule is None else self._rule.skips_above

    def skips(self, norm: float, loss: float | None = None) -> SkippedBy | None:
        """What stands out, if the skip rule leaves a step of this norm and loss out; nothing is learned."""
        return None if self._rule is None else self._rule.judge(norm, loss=loss).skipped_by

    def observe(
        self, norm: SupportsFloat | None, loss: SupportsFloat | None = None, *, skipped: bool = False
    ) -> ClipRecord:
        """Learn from one optimizer step.

        Args:
            norm: of all gradients before clipping, without the factor of a loss scale. None: the engine measured none,
                which counts as NaN and is warned of.
            loss: of the step, for policies that look at it.
            skipped: the engine has left out this step, which so had no effect.

        Returns:
            What the step was: `clipped` and `coefficient` say what clipping at the threshold does to this norm; NaN for
            a norm that is not finite.

        Raises:
            ValueError: a negative norm; nothing is learned or counted.
            RuntimeError: it is the last of `max_nonfinite_in_a_row` steps; it is counted and recorded.
        """
        if norm is None:
            self._history.warn_once(
                "no norm",
                f"the engine has no gradient norm for step {self._history.steps}, so nothing is learned: let it "
                f"compute one in every step",
            )
        value = nan if norm is None else float(norm)
        given = None if loss is None else float(loss)
        decision = self._controller.decide(value, given, ahead=True)
        skipped_by = None if self._rule is None else self._history.ask(self._rule, value, given, ahead=True)
        shrunk = decision.clipped_norm / value if decision.clipped else 1.0
        coefficient = 0.0 if skipped else shrunk if isfinite(value) else nan
        self._history.add(
            {ALL: decision},
            decision.phase,
            value,
            decision.threshold,
            coefficient,
            decision.clipped,
            skipped=skipped,
            loss=given,
            skipped_by=skipped_by if skipped else None,
        )
        assert self.last is not None
        return self.last

    def __repr__(self) -> str:
        return f"Tuner({self.policy!r})"
