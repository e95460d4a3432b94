"""The clipper: parameters, a policy, and what happens above its threshold."""

import warnings
from collections.abc import Iterable, Mapping
from math import inf, isfinite
from typing import Any, Literal, Protocol, get_args

from torch import Tensor
from torch.optim import Optimizer

from autoclip.gate import Gate, RelearnAfter
from autoclip.gradients import (
    ALL,
    LeftGradients,
    Norms,
    Source,
    checked_norm_type,
    group_by_parameter,
    kept_source,
    live_gradients,
    measure,
    measure_units,
    named_parameters,
)
from autoclip.policies import Policy, RunningQuantile
from autoclip.policies.policy import Phase, Response, Scope
from autoclip.records import ClipRecord
from autoclip.shares import Share, allowed_norm, combined, group_norms, shrink_

Mode = Literal["norm", "value", "agc"]
OnNonfinite = Literal["skip", "propagate", "raise"]


class Sink(Protocol):
    """Takes the record of every step."""

    def log(self, record: ClipRecord) -> None:
        """Take the record of one step."""

    def close(self) -> None:
        """Write out what is left."""


class Clipper:
    """Clips gradients at a threshold that a policy sets from the norms of earlier steps.

    Call `step()` between `backward()` and `optimizer.step()`, once per optimizer step (with a `GradScaler`: always
    after `scaler.unscale_(optimizer)`). It measures the norm of all gradients, clips at the policy's threshold, and
    tells the policy the norm before clipping:

        coefficient = c / (norm + min(1e-6, c / 1000)) where norm > c, else the gradients are not touched

    With a scope other than "global" every group has a policy of its own, a clone of the one given, and is measured and
    clipped by itself. A group without a gradient in a step is left alone in that step.

    Args:
        source: a module, parameters, (name, parameter) pairs, parameter groups, or an optimizer. The parameters are
            those it has now; of an optimizer also those of groups that are added later.
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
        sinks: objects with `log(record)` and `close()`, told of every step.
        groups: for scope "group": name -> regular expression found in the parameters' names; parameters that none fits
            are the group "rest". None takes the parameter groups of an optimizer.
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
        relearn_after: RelearnAfter = "auto",
    ) -> None:
        if policy is not None and not isinstance(policy, Policy):
            raise TypeError(f"policy must be a Policy such as RunningQuantile(percentile=50), got {policy!r}")
        self.policy = policy if policy is not None else RunningQuantile()
        self.policy.clone()  # raises now what would keep it from being resumed later
        self.scope: Scope = _choice("scope", scope or self.policy.scope, Scope)
        self.mode: Mode = _choice("mode", mode, Mode)
        self.response: Response = _choice("response", response or self.policy.response, Response)
        self.on_nonfinite: OnNonfinite = _choice("on_nonfinite", on_nonfinite, OnNonfinite)
        order = checked_norm_type(norm_type)
        self.norm_type = order if mode == "norm" else inf
        self.sinks = tuple(sinks)
        if groups and self.scope != "group":
            raise ValueError(f"groups are for scope='group', got scope={self.scope!r}")
        self._patterns = dict(groups) if groups else None
        self._relearn_after = relearn_after
        self._gates: dict[str, Gate] = {}
        self._optimizer = source if isinstance(source, Optimizer) else None
        self._read_parameters(kept_source(source))
        self._steps = 0
        self._skipped_steps = 0
        self._last: ClipRecord | None = None
        self._measured: tuple[list[str], Tensor] | None = None
        self._left: LeftGradients | None = None
        self._warned: set[str] = set()

    def step(self, *, loss: float | Tensor | None = None) -> Tensor:
        """Clip the gradients of this optimizer step and learn from them.

        A second call in the same step changes nothing and returns the norm of the first. It is told by the gradients
        being the same tensors, not written to since, with the norm they were left with; gradients that are rewritten
        without autograd's notice (through `.data`, or by a replayed CUDA graph) pass for new by their norm only.

        Args:
            loss: of this step (under accumulation the mean over its micro-batches), for policies that look at it.

        Returns:
            The total norm before clipping, 0-d.

        Raises:
            RuntimeError: a non-finite norm, with `on_nonfinite="raise"`; gradients and policy are as before.
            TypeError: gradients of an integer dtype, complex ones in mode "value", or sparse ones in mode "agc".
        """
        self._read_added_groups()
        named = live_gradients(self._parameters)
        norms = measure_units(named, self._parameters) if self.mode == "agc" else measure(named, self.norm_type)
        if self._left is not None and self._left.is_still(list(named.values()), norms.value):
            self._warn("repeat", "step() was called again on the same gradients: nothing was clipped or learned anew")
            return self._left.total_norm
        if not named:
            self._warn("empty", "no parameter has a gradient: call step() after backward() and before zero_grad()")
        finite = isfinite(norms.value)
        if not finite:
            found = f"non-finite gradient norm at step {self._steps}, in {_name_nonfinite(list(named), norms)}"
            if self.on_nonfinite == "raise":
                raise RuntimeError(f"{found}; on_nonfinite='skip' would leave such a step without effect")
            skipped = "the step has no effect on the parameters"
            self._warn("nonfinite", f"{found}: {skipped if self.on_nonfinite == 'skip' else 'passed on as it is'}")
        loss = None if loss is None else _scalar(loss)
        shares = self._decide(named, norms, loss)
        kept, coefficient = self._shrink(named, norms, shares)
        self._measured = (list(named), norms.each)
        self._left = LeftGradients(kept, norms.total, norms.value * coefficient, skipped=bool(named) and not kept)
        self._record(
            ClipRecord(
                step=self._steps,
                phase=self._phase(shares),
                total_norm=norms.value,
                threshold=allowed_norm(shares, self.policy.warmup_total, self.norm_type),
                coefficient=coefficient,
                clipped=any(one.decision.clipped for one in shares),
                skipped=bool(named) and not kept,
                finite=finite,
                loss=loss,
            )
        )
        return norms.total

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
        if self.scope == "global":
            return self.policy.threshold()
        return {name: gate.policy.threshold() for name, gate in self._gates.items()}

    @property
    def policies(self) -> dict[str, Policy]:
        """Group's name -> its policy; the one of scope "global" is called "all"."""
        return {name: gate.policy for name, gate in self._gates.items()}

    @property
    def clip_rate(self) -> float:
        """Share of the active steps that were clipped, in [0, 1], over all groups; 0 before the first.

        Steps of the warm-up, and those whose norm is zero or not finite, do not count.
        """
        active = sum(gate.active_steps for gate in self._gates.values())
        return sum(gate.clipped_steps for gate in self._gates.values()) / active if active else 0.0

    @property
    def clip_rates(self) -> dict[str, float]:
        """Group's name -> its clip rate."""
        return {
            name: gate.clipped_steps / gate.active_steps if gate.active_steps else 0.0
            for name, gate in self._gates.items()
        }

    @property
    def skipped_steps(self) -> int:
        """Number of steps that were made to have no effect."""
        return self._skipped_steps

    def layer_norms(self) -> dict[str, float]:
        """Norm of each parameter's gradient before clipping in the latest step, by parameter name.

        Parameters without a gradient are left out. The norms are those the total was made of.
        """
        if self._measured is None:
            return {}
        names, each = self._measured
        return dict(zip(names, each.tolist(), strict=True))  # host read

    def state_dict(self) -> dict[str, Any]:
        """Everything learned and counted, as plain JSON-able values, by the groups' names."""
        self._read_added_groups()
        return {
            "steps": self._steps,
            "skipped_steps": self._skipped_steps,
            "groups": {name: gate.state_dict() for name, gate in self._gates.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()` made with the same policy and the same groups.

        Raises:
            ValueError: keys are missing, or the state is that of another policy or of other groups; nothing is changed.
        """
        missing = [name for name in ("steps", "skipped_steps", "groups") if name not in state]
        if missing:
            raise ValueError(f"the state of a Clipper needs {', '.join(missing)}; it has {', '.join(state)}")
        counts = [state[name] for name in ("steps", "skipped_steps")]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"the counts in the state of a Clipper must be whole numbers, got {counts}")
        self._read_added_groups()
        if state["groups"].keys() != self._gates.keys():
            differing = sorted(state["groups"].keys() ^ self._gates.keys())
            raise ValueError(
                f"the state is of other groups than this Clipper's; not in both: {', '.join(differing[:5])}"
            )
        # First into copies, so that nothing is changed where one of the states does not fit.
        for gates in ({name: self._new_gate(self.policy.clone()) for name in self._gates}, self._gates):
            for name, gate in gates.items():
                gate.load_state_dict(state["groups"][name])
        self._steps, self._skipped_steps = counts
        self._last = self._measured = self._left = None

    def close(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            sink.close()

    def __repr__(self) -> str:
        scope = "" if self.scope == "global" else f", scope={self.scope!r}"
        return f"Clipper({len(self._parameters)} parameters, {self.policy!r}, mode={self.mode!r}{scope})"

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference to a gradient cannot be pickled, and means nothing elsewhere.
        return {**vars(self), "_left": None}

    def _read_parameters(self, source: Source) -> None:
        self._parameters = named_parameters(source)
        if not self._parameters:
            raise ValueError("the source holds no parameters: nothing can be clipped")
        groups = self._optimizer.param_groups if self._optimizer else []
        self._given = sum(len(group["params"]) for group in groups)
        self._group_of = group_by_parameter(source, self._parameters, self.scope, self._patterns)
        for name in self._group_of.values():
            if name not in self._gates:
                policy = self.policy if self.scope == "global" else self.policy.clone()
                self._gates[name] = self._new_gate(policy)

    def _read_added_groups(self) -> None:
        if self._optimizer and sum(len(group["params"]) for group in self._optimizer.param_groups) != self._given:
            self._read_parameters(self._optimizer)

    def _new_gate(self, policy: Policy) -> Gate:
        return Gate(policy, self.response, self._relearn_after)

    def _decide(self, named: Mapping[str, Tensor], norms: Norms, loss: float | None) -> list[Share]:
        """Ask the policies; nothing is learned from a step that is not finite."""
        names = list(named)
        if self.scope == "global":
            decision = self._gates[ALL].decide(norms.value, loss)
            return self._said([Share(ALL, names, norms.total, norms.value, decision)])
        members: dict[str, list[int]] = {}
        for position, name in enumerate(names):
            members.setdefault(self._group_of[name], []).append(position)
        totals, values = group_norms(list(members.values()), named, norms, self.norm_type)
        finite = isfinite(norms.value)
        bound = self.policy.warmup_total
        together = min(1.0, bound / norms.value) if bound is not None and norms.value > 0 else 1.0
        shares = []
        for (name, own), total, value in zip(members.items(), totals, values, strict=True):
            gate = self._gates[name]
            if not finite and isfinite(value):
                decision = gate.look(value)
            elif bound is not None and finite and value > 0 and gate.policy.phase == "warmup":
                decision = gate.decide_together(value, loss, together, bound)
            else:
                decision = gate.decide(value, loss)
            shares.append(Share(name, [names[position] for position in own], total, value, decision))
        return self._said(shares)

    def _said(self, shares: list[Share]) -> list[Share]:
        """The shares, after a warning where a policy began anew."""
        for one in shares:
            if one.decision.relearned:
                where = "" if self.scope == "global" else f" in {one.group}"
                self._warn(
                    "relearned",
                    f"{one.decision.relearned} steps in a row were clipped{where} by step {self._steps}: the policy "
                    f"begins anew from their norms",
                )
        return shares

    def _shrink(self, named: Mapping[str, Tensor], norms: Norms, shares: list[Share]) -> tuple[list[Tensor], float]:
        """Do to the gradients what was decided; return those that are left, and the share of their norm."""
        if not isfinite(norms.value) and self.on_nonfinite == "skip":
            for parameter in self._parameters.values():
                parameter.grad = None
            return [], 0.0
        removed, factor = shrink_(shares, named, self._parameters, self.mode)
        if removed:
            for name, group in self._group_of.items():
                if group in removed:
                    self._parameters[name].grad = None
        kept = [gradient for name, gradient in named.items() if self._group_of[name] not in removed]
        if factor is not None:
            return kept, factor
        if all(one.limit is None for one in shares) or not norms.value > 0:
            return kept, 1.0
        left = combined([one.left(self.mode) for one in shares], self.norm_type)
        return kept, min(left / norms.value, 1.0)

    def _phase(self, shares: list[Share]) -> Phase:
        if not shares:
            return "warmup" if any(gate.policy.phase == "warmup" for gate in self._gates.values()) else "active"
        return "warmup" if any(one.decision.phase == "warmup" for one in shares) else "active"

    def _record(self, record: ClipRecord) -> None:
        self._steps += 1
        self._skipped_steps += record.skipped
        self._last = record
        for sink in self.sinks:
            sink.log(record)

    def _warn(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(f"{message} (said once)", stacklevel=5 if topic == "relearned" else 3)


def _scalar(loss: float | Tensor) -> float:
    if not isinstance(loss, Tensor):
        return float(loss)
    if loss.numel() != 1:
        raise ValueError(f"loss must be one number, such as the mean over the batch, got shape {tuple(loss.shape)}")
    return float(loss.detach())  # host read


def _choice(name: str, value: Any, allowed: Any) -> Any:
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")
    return value


def _name_nonfinite(names: list[str], norms: Norms) -> str:
    """The first parameter whose gradient is not finite, and how many more there are."""
    bad = [name for name, norm in zip(names, norms.each.tolist(), strict=True) if not isfinite(norm)]
    return bad[0] + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
