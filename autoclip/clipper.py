"""The clipper: parameters, a policy, and what happens above its threshold."""

import warnings
import weakref
from collections.abc import Iterable
from math import inf, isclose, isfinite
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from autoclip.gradients import (
    Norms,
    Source,
    checked_norm_type,
    clamp_,
    clip_coefficient,
    live_gradients,
    measure,
    named_parameters,
    scale_,
)
from autoclip.policies import Policy, RunningQuantile
from autoclip.records import ClipRecord

Scope = Literal["global"]
Mode = Literal["norm", "value"]
Response = Literal["scale"]
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

    Args:
        source: a module, parameters, (name, parameter) pairs, parameter groups, or an optimizer. The parameters are
            those it has now; of an optimizer also those of groups that are added later.
        policy: what sets the threshold, one for each clipper; None is `RunningQuantile()`.
        scope: whose norm is meant; "global": of all gradients together. None is the policy's own.
        mode: "norm" scales all gradients by one factor; "value" clamps each element to the threshold, and the observed
            norm is the largest absolute element.
        norm_type: p > 0 or inf, the order of the norm in mode "norm" (not used in mode "value").
        response: what happens above the threshold; "scale" shrinks to it. None is the policy's own.
        on_nonfinite: "skip" removes the gradients of a step whose norm is NaN or Inf (each `grad` becomes None), so
            that the optimizer leaves parameters and momentum as they are; "propagate" does as torch; "raise" raises.
            None of them teaches the policy anything.
        sinks: objects with `log(record)` and `close()`, told of every step.

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
    ) -> None:
        if policy is not None and not isinstance(policy, Policy):
            raise TypeError(f"policy must be a Policy such as RunningQuantile(percentile=50), got {policy!r}")
        self.policy = policy if policy is not None else RunningQuantile()
        self.policy.clone()  # raises now what would keep it from being resumed later
        self.scope: Scope = _choice("scope", scope or "global", Scope)
        self.mode: Mode = _choice("mode", mode, Mode)
        self.response: Response = _choice("response", response or "scale", Response)
        self.on_nonfinite: OnNonfinite = _choice("on_nonfinite", on_nonfinite, OnNonfinite)
        order = checked_norm_type(norm_type)
        self.norm_type = inf if mode == "value" else order
        self.sinks = tuple(sinks)
        self._optimizer = source if isinstance(source, Optimizer) else None
        self._read_parameters(source)
        self._steps = 0
        self._active_steps = 0
        self._clipped_steps = 0
        self._skipped_steps = 0
        self._last: ClipRecord | None = None
        self._measured: tuple[list[str], Tensor] | None = None
        self._left: _Left | None = None
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
            TypeError: gradients of an integer dtype, or complex ones in mode "value".
        """
        if self._optimizer and sum(len(group["params"]) for group in self._optimizer.param_groups) != self._given:
            self._read_parameters(self._optimizer)
        named = live_gradients(self._parameters)
        gradients = list(named.values())
        norms = measure(named, self.norm_type)
        if self._left is not None and self._left.is_still(gradients, norms.value):
            self._warn("repeat", "step() was called again on the same gradients: nothing was clipped or learned anew")
            return self._left.total_norm
        if not gradients:
            self._warn("empty", "no parameter has a gradient: call step() after backward() and before zero_grad()")
        finite = isfinite(norms.value)
        names = list(named)
        if not finite:
            found = f"non-finite gradient norm at step {self._steps}, in {_name_nonfinite(names, norms)}"
            if self.on_nonfinite == "raise":
                raise RuntimeError(f"{found}; on_nonfinite='skip' would leave such a step without effect")
            skipped = "the step has no effect on the parameters"
            self._warn("nonfinite", f"{found}: {skipped if self.on_nonfinite == 'skip' else 'passed on as it is'}")
        loss = None if loss is None else _scalar(loss)
        if self.policy.inclusive:
            self.policy.observe(norms.value, loss)
            threshold, phase = self.policy.threshold(), self.policy.phase
        else:
            threshold, phase = self.policy.threshold(), self.policy.phase
            self.policy.observe(norms.value, loss)
        coefficient = self._shrink(gradients, norms, threshold)
        self._measured = (names, norms.each)
        left = min(norms.value, threshold) if self.mode == "value" else norms.value * coefficient
        self._left = _Left(gradients, norms.total, left, skipped=coefficient == 0.0)
        self._record(
            ClipRecord(
                step=self._steps,
                phase=phase,
                total_norm=norms.value,
                threshold=threshold,
                coefficient=coefficient,
                clipped=finite and norms.value > threshold,
                skipped=not finite and self.on_nonfinite == "skip",
                finite=finite,
                loss=loss,
            )
        )
        return norms.total

    @property
    def last(self) -> ClipRecord | None:
        """Record of the latest step, None before the first."""
        return self._last

    @property
    def threshold(self) -> float:
        """Threshold of the next step, as far as it is known before that step's norm; inf: no clipping."""
        return self.policy.threshold()

    @property
    def clip_rate(self) -> float:
        """Share of the active steps that were clipped, in [0, 1]; 0 before the first.

        Steps of the warm-up, and those whose norm is zero or not finite, do not count.
        """
        return self._clipped_steps / self._active_steps if self._active_steps else 0.0

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
        """Everything learned and counted, as plain JSON-able values."""
        return {
            "steps": self._steps,
            "active_steps": self._active_steps,
            "clipped_steps": self._clipped_steps,
            "skipped_steps": self._skipped_steps,
            "policy": self.policy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()` made with the same policy.

        Raises:
            ValueError: keys are missing, or the state is that of another policy; nothing is changed.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"the state of a Clipper needs {', '.join(missing)}; it has {', '.join(state)}")
        counts = [state[name] for name in ("steps", "active_steps", "clipped_steps", "skipped_steps")]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"the counts in the state of a Clipper must be whole numbers, got {counts}")
        self.policy.load_state_dict(state["policy"])
        self._steps, self._active_steps, self._clipped_steps, self._skipped_steps = counts
        self._last = self._measured = self._left = None

    def close(self) -> None:
        """Close the sinks."""
        for sink in self.sinks:
            sink.close()

    def __repr__(self) -> str:
        return f"Clipper({len(self._parameters)} parameters, {self.policy!r}, mode={self.mode!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference to a gradient cannot be pickled, and means nothing elsewhere.
        return {**vars(self), "_left": None}

    def _read_parameters(self, source: Source) -> None:
        self._parameters = named_parameters(source)
        if not self._parameters:
            raise ValueError("the source holds no parameters: nothing can be clipped")
        groups = self._optimizer.param_groups if self._optimizer else []
        self._given = sum(len(group["params"]) for group in groups)

    def _shrink(self, gradients: list[Tensor], norms: Norms, threshold: float) -> float:
        """Do to the gradients what this step asks for; return the factor that they were multiplied by."""
        if not isfinite(norms.value) and self.on_nonfinite == "skip":
            for parameter in self._parameters.values():
                parameter.grad = None
            return 0.0
        # "not >" lets NaN through, as torch does: this is "propagate".
        if norms.value <= threshold or threshold == inf:
            return 1.0
        coefficient = clip_coefficient(norms.total, threshold)
        if self.mode == "value":
            clamp_(gradients, threshold)
        else:
            scale_(gradients, coefficient)
        return float(coefficient)  # host read

    def _record(self, record: ClipRecord) -> None:
        self._steps += 1
        self._skipped_steps += record.skipped
        if record.phase == "active" and 0 < record.total_norm < inf:
            self._active_steps += 1
            self._clipped_steps += record.clipped
        self._last = record
        for sink in self.sinks:
            sink.log(record)

    def _warn(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(f"{message} (said once)", stacklevel=3)


class _Left:
    """How a step left the gradients: tells a second call in the same optimizer step from a new step."""

    def __init__(self, gradients: list[Tensor], total_norm: Tensor, left: float, skipped: bool) -> None:
        self.total_norm = total_norm
        self._skipped = skipped  # the gradients were removed
        self._first = weakref.ref(gradients[0]) if gradients else None
        self._version = gradients[0]._version if gradients else 0
        self._norm = left
        # Scaled gradients are rounded in their own precision.
        self._tolerance = max([1e-6, *(torch.finfo(gradient.dtype).eps for gradient in gradients)])

    def is_still(self, gradients: list[Tensor], norm: float) -> bool:
        """Whether these are the same gradients, not written to since, with the norm they were left with."""
        if not gradients or self._first is None:
            return self._skipped and not gradients
        return (
            self._first() is gradients[0]
            and self._version == gradients[0]._version
            and isclose(self._norm, norm, rel_tol=self._tolerance)
        )


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
