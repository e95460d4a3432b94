"""The clipper: it holds the parameters, a policy, and what happens above its threshold."""

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from autoclip.clipper.clip_function import ClipFn
from autoclip.clipper.deferred import Deferred, why_wait
from autoclip.clipper.found_inf import FoundInf
from autoclip.clipper.groups import Groups
from autoclip.clipper.losses import Number, ProcessGroup
from autoclip.clipper.options import Mode, OnNonfinite
from autoclip.clipper.step import Step
from autoclip.clipper.uncompiled import uncompiled
from autoclip.controller import RelearnAfter
from autoclip.gradients import Source, checked_norm_type
from autoclip.history import History
from autoclip.policies import Policy, checked_policy
from autoclip.policies.parameters import choice
from autoclip.policies.policy import Response, Scope
from autoclip.recorded import Recorded, skip_rule
from autoclip.records import Sink


class Clipper(Recorded):
    """Clips gradients at a threshold that a policy sets from the norms of earlier steps.

    Call `step()` once per optimizer step, between `backward()` and `optimizer.step()` (with a `GradScaler`: after
    `scaler.unscale_(optimizer)`), or let `autoclip.attach(optimizer)` do that. It measures the norm of all gradients,
    clips at the policy's threshold, and tells the policy the norm before clipping:

        coefficient = c / (norm + min(1e-6, c / 1000)) where norm > c, else the gradients are not touched

    With a scope other than "global" each group has its own clone of the policy, and is measured and clipped by itself.
    A group without a gradient in a step is left alone in that step.

    Under DDP, FSDP2 and tensor parallelism (DTensors) every rank measures the norm of the whole gradients and holds the
    same thresholds. For other ways of sharding give `step()` their own clip function.

    Args:
        source: a module, parameters, (name, parameter) pairs, parameter groups, or an optimizer. The parameters are
            those it has now; of an optimizer also those added or exchanged later, of a module too, within 50 steps.
        policy: sets the threshold; each clipper needs its own. None is `ProbingQuantile()`.
        scope: whose norm is compared: "global": of all gradients together; "parameter": of each parameter's; "group":
            of each group's. None is the policy's own.
        mode: "norm" multiplies the gradients by one factor. "value" clamps each element to the threshold, and observes
            the largest absolute element as the norm. "agc" shrinks the gradient of each unit (row, filter) to the
            threshold times the norm of its weights, and observes the largest such ratio (see `adaptive_grad_clip_`).
            "param_rms" multiplies as "norm", but the norm of each gradient counts times the RMS of its parameter, at
            least 1e-5: what ScaledAdam (icefall) goes by.
        norm_type: p > 0 or inf, order of the norm in mode "norm"; unused in the others.
        response: what becomes of a norm n above the threshold c. "scale": c. "reciprocal": c * c / n, or the policy's
            own formula. "skip": the gradients are removed, and the step has no effect. None is the policy's own.
        skip: a second policy, which clips nothing: a step whose norm, of all gradients, is above its threshold has no
            effect, as by response "skip". `SkipStep` judges the loss too.
        on_nonfinite: for a step whose norm is NaN or Inf. "skip" removes its gradients (each `grad` becomes None), so
            that the optimizer leaves parameters and momentum as they are (without a host wait they stay, and a fused
            optimizer leaves out the step). "zero" makes them zeros: any optimizer takes its step, momentum decays.
            "propagate" does as torch. "raise" raises. No policy learns from such a step.
        max_nonfinite_in_a_row: this many steps in a row with a non-finite norm raise a RuntimeError, once the last is
            recorded. None: never. A warning comes at the first, and after 10, 100 and 1000 in a row.
        sinks: `autoclip.sinks.Sink` objects, which get the record of every step.
        groups: for scope "group": name -> regular expression searched in the parameters' names. Parameters that match
            none are the group "rest". None takes the parameter groups of an optimizer.
        process_group: ranks over which the loss is averaged; each of them has to give one. "world": all, if
            `torch.distributed` is initialised. None: this rank alone.
        relearn_after: after this many steps clipped in a row a policy starts again from their norms. "auto": 20 if they
            are skipped, else ten windows of the policy. None: never.
        host_wait: whether the host waits in `step()` for the norm of that step. False: the device clips at the
            threshold, which is known before; the norm is read, learned from and recorded at the next step, with the
            same result. "auto": False on a CUDA device, if the other choices allow it (table in docs/gpu.md).

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
        skip: Policy | None = None,
        on_nonfinite: OnNonfinite = "skip",
        max_nonfinite_in_a_row: int | None = None,
        sinks: Iterable[Sink] = (),
        groups: Mapping[str, str] | None = None,
        process_group: ProcessGroup | Literal["world"] | None = "world",
        relearn_after: RelearnAfter = "auto",
        host_wait: bool | Literal["auto"] = "auto",
    ) -> None:
        policy = checked_policy(policy)
        policy.clone()  # raises now what would keep it from being resumed later
        self.scope: Scope = choice("scope", scope or policy.scope, Scope)
        self.mode = choice("mode", mode, Mode)
        self.response: Response = choice("response", response or policy.response, Response)
        self.on_nonfinite: OnNonfinite = choice("on_nonfinite", on_nonfinite, OnNonfinite)
        order = checked_norm_type(norm_type)
        self.norm_type = order if mode == "norm" else 2.0 if mode == "param_rms" else inf
        self.process_group = process_group
        self._groups = Groups(source, policy, self.scope, self.response, groups, relearn_after)
        self._history = History(sinks, max_nonfinite_in_a_row, policy)
        self._rule = skip_rule(skip)
        obstacle = why_wait(policy, self.mode, self.response, self.on_nonfinite, self._rule)
        self._step = Step(
            self._groups,
            Deferred(host_wait, obstacle, self.on_nonfinite, self._rule),
            self._history,
            mode=self.mode,
            norm_type=self.norm_type,
            on_nonfinite=self.on_nonfinite,
            rule=self._rule,
            ranks=process_group,
        )
        self._own(policy)
        self._handles: list[Any] = []  # of the hooks that `attach` made
        self._history.watch(self)

    @uncompiled
    def step(
        self, *, loss: Number | None = None, clip_fn: ClipFn | None = None, loss_scale: Number | None = None
    ) -> Tensor:
        """Clip the gradients of this optimizer step and learn from them.

        A second call in the same step changes nothing and returns the norm of the first. It is known by its gradients:
        the same tensors, not written to since (as far as autograd has noticed), with the norm they were left with.

        Args:
            loss: of this step, for policies that read it (under accumulation the mean over its micro-batches). None:
                the mean of what `report_loss` got since the step before. It is averaged over the ranks. Without any
                the default goes by the norms alone, cannot react to a rising loss, and says so after 100 steps.
            clip_fn: somebody else's clip function, for gradients that are sharded in a way of their own. Called with
                the threshold, it scales all gradients and returns their norm before that. For mode "norm" and scope
                "global".
            loss_scale: > 0, factor that the gradients still carry, as before `GradScaler.unscale_`. The norms are those
                without it. Non-finite gradients are left to the scaler: nothing is learned, counted or recorded.

        Returns:
            The total norm before clipping, 0-d.

        Raises:
            RuntimeError: the norm is not finite and `on_nonfinite="raise"`: policy and gradients are as before (except
                for what a `clip_fn` did). Or it is the last of `max_nonfinite_in_a_row` steps, which is recorded and
                handled as `on_nonfinite` says. Or the step is captured in a CUDA graph, but has to wait.
            TypeError: gradients of integers, eight bits, a compressed or nested layout, the meta device or inference
                mode; complex ones in mode "value"; sparse or complex ones in mode "agc".
            ValueError: `clip_fn` with another mode or scope or with a `loss_scale`; steps that are skipped with one; or
                a `loss_scale` that is not above 0.
        """
        skips = self.response == "skip" or self._rule is not None
        if loss_scale is not None and skips and self._step.deferred.found_inf is None:
            raise ValueError(
                "response='skip' or a skip rule, and a loss_scale do not go together, as a GradScaler needs gradients "
                "to look at: call scaler.unscale_(optimizer) before step()"
            )
        return self._step.run(loss, clip_fn, loss_scale)

    def settle(self) -> None:
        """Wait for the norm of the latest step, learn from it, record it, as all that reads the clipper does first."""
        self._step.settle()

    def replay(self, graph: Any) -> None:
        """Replay a CUDA graph in which `step()` was captured, at the current threshold; docs/gpu.md has an example.

        With several graphs replay each once before you capture the next. Use a new graph for another capture. Report
        the loss within the captured step.

        Args:
            graph: a `torch.cuda.CUDAGraph`.

        Raises:
            RuntimeError: no step was captured.
        """
        self._step.replay(graph)

    @uncompiled
    def reclip(self, *, loss_scale: Number | None = None) -> Tensor:
        """Clip gradients that were computed again within the same optimizer step, as in a line search.

        The thresholds are those of the step. Nothing is learned, counted or recorded. Non-finite gradients are left as
        they are, or become zeros under `on_nonfinite="zero"`. `loss_scale` and what is returned are as of `step`.
        """
        return self._step.clip_again(loss_scale)

    def report_loss(self, loss: Number) -> None:
        """Give the loss of a batch before the step, when you do not call `step` yourself.

        Under accumulation call it for every micro-batch, with the loss as it is (not divided by their number): the
        step's loss is their mean. Tensors stay on their device until the step. By `attach` the losses of a step that a
        `GradScaler` skips count in the next one's mean, unless the optimizer is fused.

        Args:
            loss: one number, without the factor of a `GradScaler`.
        """
        self._step.losses.add(loss)

    @property
    def has_reported_loss(self) -> bool:
        """True if `report_loss` was called since the last step."""
        return self._step.losses.count > 0

    def forget_losses(self) -> None:
        """Forget what `report_loss` got, for a step that is left out."""
        self._step.losses.forget()

    @torch.no_grad()
    def norm_now(self) -> float:
        """Total norm of the gradients as they are. Changes nothing, learns nothing."""
        return self._step.norm_now()

    def connect(self, found_inf: FoundInf, register: Callable[[], Iterable[Any]]) -> None:
        """Work as a hook of an optimizer, for `autoclip.attach`; `detach` removes the hooks that `register` returns."""
        self._step.deferred.found_inf = found_inf
        self._step.deferred.check()
        self._handles = list(register())

    def detach(self) -> None:
        """Take the clipper off the optimizer that `autoclip.attach` put it on. Its sinks stay open."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        try:
            self.settle()
        finally:
            self._step.deferred.detach()

    @property
    def is_settled(self) -> bool:
        """True if every step was learned from and recorded, so that reading the clipper does not wait."""
        return self._step.deferred.pending is None

    @property
    def threshold(self) -> float | dict[str, float]:
        """Threshold of the next step, as far as it is known before that step's norm; inf: no clipping.

        A float for scope "global", else group's name -> threshold.
        """
        self.settle()
        return self._groups.threshold

    @property
    def policy(self) -> Policy:
        """The policy that was given: scope "global" uses it, other scopes use clones of it."""
        self.settle()
        return self._groups.policy

    @property
    def policies(self) -> dict[str, Policy]:
        """Group's name -> its policy; the one group of scope "global" is called "all"."""
        self.settle()
        return {name: controller.policy for name, controller in self._groups.controllers.items()}

    @property
    def clip_rates(self) -> dict[str, float]:
        """Group's name -> share of its own active steps in which it was clipped; NaN before the first."""
        self.settle()
        return self._groups.clip_rates

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Name -> parameter that is clipped."""
        return self._groups.parameters

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer that the clipper was made from; None: it was made from something else."""
        return self._groups.optimizer

    def _groups_state(self) -> dict[str, Any]:
        return self._groups.state_dict()

    def _load_groups(self, groups: Any) -> None:
        self._groups.load_state_dict(groups)
        self._step.forget()

    def __repr__(self) -> str:
        scope = "" if self.scope == "global" else f", scope={self.scope!r}"
        scope += f", skip={self._rule.policy!r}" if self._rule is not None else ""
        policy, steps = self.policy, self._history.without_loss
        loss = f", no loss in {steps} steps" if steps else ""
        return f"Clipper({len(self._groups.parameters)} parameters, {policy!r}, mode={self.mode!r}{scope}{loss})"

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {**vars(self), "_handles": []}  # the hooks of an optimizer, which mean nothing elsewhere
