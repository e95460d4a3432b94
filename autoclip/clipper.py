"""The clipper: parameters, a policy, and what happens above its threshold."""

from collections.abc import Iterable, Mapping
from math import inf, isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from autoclip.claims import Claim
from autoclip.clipping import ClipFn, Clipped, clip, clip_with, measure_all, name_nonfinite
from autoclip.eager import eager
from autoclip.gate import Decision, RelearnAfter
from autoclip.gradients import LeftGradients, Norms, Source, checked_norm_type, live_gradients
from autoclip.groups import Groups
from autoclip.losses import ProcessGroup, ReportedLosses, StepLoss, process_group
from autoclip.notices import Notices
from autoclip.policies import NoClip, Policy, RunningQuantile
from autoclip.policies.parameters import choice
from autoclip.policies.policy import Response, Scope
from autoclip.records import ClipRecord, Sink
from autoclip.shares import Share
from autoclip.watch import Watch

Mode = Literal["norm", "value", "agc"]
OnNonfinite = Literal["skip", "propagate", "raise"]


class Clipper:
    """Clips gradients at a threshold that a policy sets from the norms of earlier steps.

    Call `step()` between `backward()` and `optimizer.step()`, once per optimizer step (with a `GradScaler`: after
    `scaler.unscale_(optimizer)`), or let `autoclip.attach(optimizer)` do that. It measures the norm of all gradients,
    clips at the policy's threshold, and tells the policy the norm before clipping:

        coefficient = c / (norm + min(1e-6, c / 1000)) where norm > c, else the gradients are not touched

    With a scope other than "global" every group has a policy of its own, a clone of the one given, and is measured and
    clipped by itself. A group without a gradient in a step is left alone in that step.

    Under DDP, FSDP2 and tensor parallelism (DTensors) every rank measures the norm of the whole gradients and holds the
    same thresholds. For other ways of sharding give `step()` their own clip function.

    Args:
        source: a module, parameters, (name, parameter) pairs, parameter groups, or an optimizer. The parameters are
            those it has now; of an optimizer also those that are added or exchanged later.
        policy: what sets the threshold, one for each clipper; None is `RunningQuantile()`.
        scope: whose norm is meant: "global": of all gradients together; "parameter": of each parameter's by itself;
            "group": of each group's. None is the policy's own.
        mode: "norm" scales gradients by one factor; "value" clamps each element to the threshold, and the observed
            norm is the largest absolute element; "agc" shrinks the gradient of each unit (row, filter) to the threshold
            times the norm of its weights, and the observed norm is the largest such ratio (see
            `adaptive_grad_clip_`).
        norm_type: p > 0 or inf, the order of the norm in mode "norm" (not used in the others).
        response: what becomes of a norm n above the threshold c: "scale": c; "reciprocal": c * c / n, or the policy's
            own formula; "skip": the gradients are removed, and the step has no effect. None is the policy's own.
        on_nonfinite: "skip" removes the gradients of a step whose norm is NaN or Inf (each `grad` becomes None), so
            that the optimizer leaves parameters and momentum as they are; "propagate" does as torch; "raise" raises.
            None of them teaches the policy anything.
        sinks: objects with `log(record)` and `close()`, told of every step; where one has `watch(clipper)`, that is
            called first.
        groups: for scope "group": name -> regular expression found in the parameters' names; parameters that none fits
            are the group "rest". None takes the parameter groups of an optimizer.
        process_group: ranks over which a loss is averaged, each of which has to give one: "world": all, where
            `torch.distributed` is initialised; None: this rank alone.
        relearn_after: number of steps clipped in a row after which a policy begins anew from their norms; "auto": 20
            where they are skipped, else ten windows of the policy; None: never.

    >>> import torch
    >>> from autoclip import Fixed
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> clipper = Clipper([weight], Fixed(1.0))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> float(clipper.step())
    5.0
    >>> weight.grad
    tensor([0.6000, 0.8000])
    """

    def __init__(
        self,
        source: Source,
        policy: Policy | None = None,
        *,
        scope: Scope | None = None,
        mode: Mode = "norm",
        norm_type: float = 2.0,
        response: Response | None = None,
        on_nonfinite: OnNonfinite = "skip",
        sinks: Iterable[Sink] = (),
        groups: Mapping[str, str] | None = None,
        process_group: ProcessGroup | Literal["world"] | None = "world",
        relearn_after: RelearnAfter = "auto",
    ) -> None:
        if policy is not None and not isinstance(policy, Policy):
            raise TypeError(f"policy must be a Policy such as RunningQuantile(percentile=50), got {policy!r}")
        self.policy = policy if policy is not None else RunningQuantile()
        self.policy.clone()  # raises now what would keep it from being resumed later
        self.scope: Scope = choice("scope", scope or self.policy.scope, Scope)
        self.mode: Mode = choice("mode", mode, Mode)
        self.response: Response = choice("response", response or self.policy.response, Response)
        self.on_nonfinite: OnNonfinite = choice("on_nonfinite", on_nonfinite, OnNonfinite)
        order = checked_norm_type(norm_type)
        self.norm_type = order if mode == "norm" else inf
        self.sinks = tuple(sinks)
        self.process_group = process_group
        self._groups = Groups(source, self.policy, self.scope, self.response, groups, relearn_after)
        self._steps = 0
        self._skipped_steps = 0
        self._last: ClipRecord | None = None
        self._measured: tuple[list[str], Tensor] | None = None
        self._decisions: dict[str, Decision] = {}
        self._left: LeftGradients | None = None
        self._losses = ReportedLosses()
        self._claim, self._watch, self._notices = Claim(), Watch(), Notices()
        self._handles: list[Any] = []  # of the hooks that `attach` made
        for sink in self.sinks:
            if hasattr(sink, "watch"):
                sink.watch(self)

    @eager
    @torch.no_grad()
    def step(
        self,
        *,
        loss: float | Tensor | None = None,
        clip_fn: ClipFn | None = None,
        loss_scale: float | Tensor | None = None,
    ) -> Tensor:
        """Clip the gradients of this optimizer step and learn from them.

        A second call in the same step changes nothing and returns the norm of the first. It is told by the gradients
        being the same tensors, not written to since, with the norm they were left with; gradients that are rewritten
        without autograd's notice (through `.data`, or by a replayed CUDA graph) pass for new by their norm only.

        Args:
            loss: of this step (under accumulation the mean over its micro-batches), for policies that look at it;
                None: the mean of what `report_loss` was told since the step before. It is averaged over the ranks.
            clip_fn: somebody else's clipping, for gradients that are sharded in a way of their own: called with the
                threshold, it scales all gradients and returns their norm before that. For mode "norm" and scope
                "global".
            loss_scale: > 0, factor that the gradients still carry, as before `GradScaler.unscale_`; the norms are those
                without it. Non-finite gradients are then an overflow, which is the scaler's to handle: they are left as
                they are, and nothing is learned, counted or recorded.

        Returns:
            The total norm before clipping, 0-d.

        Raises:
            RuntimeError: a non-finite norm, with `on_nonfinite="raise"`; gradients and policy are as before.
            TypeError: gradients of an integer dtype, complex ones in mode "value", or sparse ones in mode "agc".
            ValueError: `clip_fn` with another mode or scope or a `loss_scale`, or that one is not above 0.
        """
        self._groups.read_added()
        device = next(iter(self._parameters.values())).device
        own = loss if loss is not None else self._losses.mean()
        pending = StepLoss(own, process_group(self.process_group), device)
        self._losses.forget()
        if clip_fn is not None:
            return self._step_by(clip_fn, pending, loss_scale)
        gradients = live_gradients(self._parameters)
        norms = measure_all(self._groups, gradients, self.mode, self.norm_type, loss_scale)
        if self._left is not None and self._left.is_still(list(gradients.values()), norms.value):
            return self._repeated(self._left)
        if not gradients:
            self._notices.say(
                "empty", "no parameter has a gradient: call step() after backward() and before zero_grad()"
            )
        if not isfinite(norms.value):
            if loss_scale is not None:
                return norms.total
            self._meet_nonfinite(name_nonfinite(list(gradients), norms))
        if self._claim.is_contested(gradients.values()):
            self._notices.say(
                "contested",
                "another clipper has clipped these gradients already, so that this one learns from norms that are not "
                "those of training: keep one of them (detach() removes an attached one)",
            )
        mean = pending.read()
        shares = self._groups.decide(gradients, norms, self.norm_type, mean)
        self._measured = (list(gradients), norms.each)
        clipped = self._clip(shares, gradients, norms)
        if clipped.kept and loss_scale is None and not self._handles:
            first = self._parameters[next(iter(gradients))]
            self._watch.expect(
                first, norms.value * clipped.coefficient, clipped.threshold, self.norm_now, self._notices.say
            )
        return self._finish(clipped, mean)

    @eager
    @torch.no_grad()
    def reclip(self, *, loss_scale: float | Tensor | None = None) -> Tensor:
        """Clip gradients that were computed anew within the same optimizer step, as a line search does.

        The thresholds are those of the step; nothing is learned, counted or recorded. Non-finite gradients are left as
        they are.

        Args:
            loss_scale: as of `step`.

        Returns:
            The total norm before clipping, 0-d.
        """
        gradients = live_gradients(self._parameters)
        norms = measure_all(self._groups, gradients, self.mode, self.norm_type, loss_scale)
        if isfinite(norms.value):
            shares = self._groups.decide_as(self._decisions, gradients, norms, self.norm_type)
            self._keep(self._clip(shares, gradients, norms))
        return norms.total

    def report_loss(self, loss: float | Tensor) -> None:
        """Tell the loss of a batch before the step, where the step itself is not called by hand.

        Under accumulation call it for every micro-batch, with the loss as it is (not divided by their number): the
        step's loss is the mean. Tensors are kept on their device until the step.

        Args:
            loss: one number, without the factor of a `GradScaler`.
        """
        self._losses.add(loss)

    @property
    def has_reported_loss(self) -> bool:
        """Whether `report_loss` was called since the step before."""
        return self._losses.count > 0

    @torch.no_grad()
    def norm_now(self) -> float:
        """Total norm of the gradients as they are; nothing is changed or learned."""
        return measure_all(self._groups, live_gradients(self._parameters), self.mode, self.norm_type, None).value

    def forget_losses(self) -> None:
        """Forget what `report_loss` was told, as for a step that is left out."""
        self._losses.forget()

    def detach(self) -> None:
        """Take the clipper off the optimizer that `autoclip.attach` put it on; its sinks stay open."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def last(self) -> ClipRecord | None:
        """Record of the latest step, None before the first.

        With several groups its threshold is the bound that theirs set on the norm of all gradients together, its
        coefficient the share of that norm that was left, and its phase "warmup" as long as a group's is.
        """
        return self._last

    @property
    def threshold(self) -> float | dict[str, float]:
        """Threshold of the next step, as far as it is known before that step's norm; inf: no clipping.

        A float for scope "global", else group's name -> threshold.
        """
        return self._groups.threshold

    @property
    def policies(self) -> dict[str, Policy]:
        """Group's name -> its policy; the one of scope "global" is called "all"."""
        return {name: gate.policy for name, gate in self._groups.gates.items()}

    @property
    def clip_rate(self) -> float:
        """Share of the active steps that were clipped, in [0, 1], over all groups; 0 before the first.

        Steps of the warm-up, and those whose norm is zero or not finite, do not count.
        """
        return self._groups.clip_rate

    @property
    def clip_rates(self) -> dict[str, float]:
        """Group's name -> its clip rate."""
        return self._groups.clip_rates

    @property
    def skipped_steps(self) -> int:
        """Number of steps that were made to have no effect."""
        return self._skipped_steps

    def layer_norms(self) -> dict[str, float]:
        """Norm of each parameter's gradient before clipping in the latest step, by parameter name.

        Parameters without a gradient are left out. The norms are those the total was made of.
        """
        names, each = self._measured or ([], None)
        return {} if each is None else dict(zip(names, each.tolist(), strict=True))  # host read

    def state_dict(self) -> dict[str, Any]:
        """Everything learned and counted, as plain JSON-able values, by the groups' names."""
        return {
            "steps": self._steps,
            "skipped_steps": self._skipped_steps,
            "groups": self._groups.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()` made with the same policy and the same groups.

        Raises:
            ValueError: keys are missing, or the state is that of another policy or of other groups; nothing is changed.
        """
        if missing := [name for name in ("steps", "skipped_steps", "groups") if name not in state]:
            raise ValueError(f"the state of a Clipper needs {', '.join(missing)}; it has {', '.join(state)}")
        counts = [state[name] for name in ("steps", "skipped_steps")]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"the counts in the state of a Clipper must be whole numbers, got {counts}")
        self._groups.load_state_dict(state["groups"])
        self._steps, self._skipped_steps = counts
        self._last = self._measured = self._left = None
        self._losses.forget()
        self._decisions = {}

    def close(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            sink.close()

    def __repr__(self) -> str:
        scope = "" if self.scope == "global" else f", scope={self.scope!r}"
        return f"Clipper({len(self._parameters)} parameters, {self.policy!r}, mode={self.mode!r}{scope})"

    def __getstate__(self) -> dict[str, Any]:
        # Weak references to gradients and hooks of an optimizer cannot be pickled, and mean nothing elsewhere.
        return {**vars(self), "_left": None, "_handles": [], "_claim": Claim(), "_watch": Watch()}

    @property
    def _parameters(self) -> dict[str, Tensor]:
        return self._groups.parameters

    def _step_by(self, clip_fn: ClipFn, pending: StepLoss, loss_scale: float | Tensor | None) -> Tensor:
        """The step where somebody else's function clips."""
        if self.mode != "norm" or self.scope != "global" or loss_scale is not None:
            raise ValueError(
                f"clip_fn scales all gradients by their one norm, without a loss scale: it needs mode='norm' and "
                f"scope='global', got mode={self.mode!r}, scope={self.scope!r}, loss_scale={loss_scale!r}"
            )
        live = list(live_gradients(self._parameters).values())
        # What a rank sees of its shards does not tell what the others see, and all of them have to clip together.
        alone = process_group("world") is None
        if alone and live and self._left is not None and self._left.is_still(live, None):
            return self._repeated(self._left)
        loss: list[float | None] = []

        def read_loss() -> float | None:
            loss.append(pending.read())
            return loss[0]

        clipped = clip_with(clip_fn, self._groups, live, read_loss, skip=self.on_nonfinite == "skip")
        if not isfinite(clipped.value):
            self._meet_nonfinite("the norm that clip_fn returned")
        self._measured = None
        if clipped.coefficient < 1 and clipped.kept:
            self._watch.check(clipped.value * clipped.coefficient, self.norm_now, self._notices.say)
        return self._finish(clipped, loss[0])

    def _clip(self, shares: list[Share], gradients: Mapping[str, Tensor], norms: Norms) -> Clipped:
        skip = self.on_nonfinite == "skip"
        return clip(self._groups, shares, gradients, norms, self.mode, self.norm_type, skip=skip)

    def _keep(self, clipped: Clipped) -> None:
        self._left = LeftGradients(clipped.kept, clipped.total, clipped.left, skipped=clipped.skipped)
        if not isinstance(self.policy, NoClip):
            self._claim.mark(clipped.kept)

    def _finish(self, clipped: Clipped, loss: float | None) -> Tensor:
        """Remember and record a step."""
        self._keep(clipped)
        self._decisions = {one.group: one.decision for one in clipped.shares}
        for group, decision in self._decisions.items():
            if decision.relearned:
                where = "" if self.scope == "global" else f" in {group}"
                self._notices.say(
                    "relearned",
                    f"{decision.relearned} steps in a row were clipped{where} by step {self._steps}: the policy begins "
                    f"anew from their norms",
                )
        self._last = clipped.record(self._steps, self._groups.phase(clipped.shares), loss)
        self._steps += 1
        self._skipped_steps += clipped.skipped
        for sink in self.sinks:
            sink.log(self._last)
        return clipped.total

    def _repeated(self, left: LeftGradients) -> Tensor:
        self._notices.say(
            "repeat",
            "step() was called again on the same gradients: nothing was clipped or learned anew; where that was meant "
            "to be a new step, call zero_grad() and backward() before it",
        )
        return left.total_norm

    def _meet_nonfinite(self, where: str) -> None:
        found = f"non-finite gradient norm at step {self._steps}, in {where}"
        if self.on_nonfinite == "raise":
            raise RuntimeError(f"{found}; on_nonfinite='skip' would leave such a step without effect")
        effect = "the step has no effect on the parameters" if self.on_nonfinite == "skip" else "passed on as it is"
        self._notices.say("nonfinite", f"{found}: {effect}")
