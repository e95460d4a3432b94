"""The clipper as a hook of an optimizer: nothing else changes in the training loop."""

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from autoclip.clipper import Clipper
from autoclip.clipping import ClipFn
from autoclip.policies import Policy

STEP_WRAPPER = Optimizer.profile_hook_step.__code__.co_filename
"""Where torch wraps `step` in a function that calls the hooks."""


def attach(optimizer: Any, policy: Policy | None = None, *, clip_fn: ClipFn | None = None, **options: Any) -> Clipper:
    """Let every `optimizer.step()` clip its gradients first, at the threshold of a policy.

        clipper = autoclip.attach(optimizer)

    Right under closures (the gradients are clipped after the closure has computed them; those that a line search
    computes anew are clipped at the same threshold), under a `GradScaler` with and without `unscale_`, with fused
    optimizers, under accumulation, and where `step` is compiled. A step that a scaler leaves out because of an overflow
    is none. The loss is what the closure returns, or what `clipper.report_loss(loss)` was told.

    A step of gradients that are all zero at a learning rate of zero is none either: so `torch.distributed.checkpoint`
    makes the state of an optimizer. A copy of the optimizer (`copy.deepcopy`) has no clipper; neither is the clipper
    part of the optimizer's `state_dict`: save `clipper.state_dict()` beside it.

    Args:
        optimizer: of torch, or a wrapper around one (accelerate, Fabric, Lightning).
        policy: what sets the threshold; None is `RunningQuantile()`.
        clip_fn: somebody else's clipping, as of `Clipper.step`.
        options: as of `Clipper`. Names of parameters are the optimizer's, where it was given `named_parameters()`.

    Returns:
        The clipper; its `detach()` takes it off again.

    Raises:
        TypeError: there is no optimizer of torch in what was given.
        ValueError: the optimizer has a clipper already, or its engine clips by itself.

    >>> import torch, autoclip
    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> clipper = autoclip.attach(optimizer, autoclip.Fixed(1.0))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> optimizer.step()
    >>> weight.detach(), clipper.last.total_norm
    (tensor([-0.6000, -0.8000]), 5.0)
    """
    inner = innermost(optimizer)
    if any(isinstance(hook, _ClipBeforeStep) for hook in inner._optimizer_step_pre_hooks.values()):
        raise ValueError(
            "this optimizer has a clipper attached already; call its detach() first, or use the one that attach() "
            "returned then"
        )
    clipper = Clipper(inner, policy, **options)
    clipper._handles = [inner.register_step_pre_hook(_ClipBeforeStep(clipper, clip_fn))]
    return clipper


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer of torch within wrappers, whose hooks are called however it is stepped.

    Raises:
        TypeError: there is none.
        ValueError: it belongs to an engine that clips by itself.
    """
    found = optimizer
    while True:
        if type(found).__module__.partition(".")[0] == "deepspeed":
            raise ValueError(
                "DeepSpeed clips by itself, and its optimizers hold parts of the gradients only: set "
                "gradient_clipping in its configuration; autoclip can only watch the norm that the engine reports"
            )
        inner = getattr(found, "optimizer", None)
        if inner is None or inner is found or isinstance(inner, torch.nn.Module):
            break
        found = inner
    if not isinstance(found, Optimizer):
        raise TypeError(f"attach() needs an optimizer of torch or a wrapper around one, got {optimizer!r:.200}")
    return found


class _ClipBeforeStep:
    """The hook: `hook(optimizer, args, kwargs)`, called at the beginning of `optimizer.step(*args, **kwargs)`."""

    def __init__(self, clipper: Clipper, clip_fn: ClipFn | None) -> None:
        self.clipper = clipper
        self.clip_fn = clip_fn

    # A threshold that changes would have a compiled step compiled anew each time.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if _is_nested(optimizer):
            return None
        scaler = kwargs.get("grad_scaler")
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._step(optimizer, scaler, None)
            return None
        evaluations = 0

        def closure_and_clip() -> Any:
            nonlocal evaluations
            # An optimizer calls its closure with gradients enabled; clipping is none of the graph's business.
            returned = closure()
            with torch.no_grad():
                if evaluations == 0:
                    self._step(optimizer, scaler, returned)
                elif self.clip_fn is None:
                    self.clipper.reclip(loss_scale=_loss_scale(optimizer, scaler))
                else:
                    self.clip_fn(self.clipper.last.threshold if self.clipper.last else float("inf"))
            evaluations += 1
            return returned

        if len(args) > 1:
            return (args[0], closure_and_clip, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_and_clip}

    def _step(self, optimizer: Optimizer, scaler: Any, returned: Any) -> None:
        """Clip, with the loss that was reported, else the one that the closure returned."""
        if _overflowed(optimizer):
            self.clipper.forget_losses()
            return
        # torch.distributed.checkpoint has optimizers make their state by a step of zero gradients at a rate of zero.
        if all(float(group.get("lr", 1)) == 0 for group in optimizer.param_groups) and self.clipper.norm_now() == 0:
            return
        is_loss = isinstance(returned, float) or (isinstance(returned, Tensor) and returned.numel() == 1)
        if is_loss and not self.clipper.reported_losses:
            self.clipper.report_loss(returned)
        self.clipper.step(clip_fn=self.clip_fn, loss_scale=_loss_scale(optimizer, scaler))


def _is_nested(optimizer: Optimizer) -> bool:
    """Whether the step was called from a step of the same optimizer, as where a subclass calls `super().step()`.

    torch calls the hooks in both. It wraps the `step` of every class in one function, whose frames tell by the wrapped
    `func` how many classes are at it; unlike a count kept by hooks, that holds after a step that raised.
    """
    steps = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == STEP_WRAPPER and frame.f_locals.get("self") is optimizer:
            steps.add(frame.f_locals.get("func"))
        frame = frame.f_back
    return len(steps - {None}) > 1


def _loss_scale(optimizer: Optimizer, scaler: Any) -> float | Tensor | None:
    """What the gradients are still multiplied by; None: nothing.

    A `GradScaler` leaves it to a fused optimizer as `grad_scale`, or gives itself to an optimizer that takes it.
    """
    if scaler is None:
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        return scale
    stage = scaler._per_optimizer_states.get(id(optimizer), {}).get("stage")
    return None if getattr(stage, "name", "") == "UNSCALED" else float(scaler.get_scale())


def _overflowed(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer is going to leave out this step, as its `GradScaler` found an overflow."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and float(found) != 0  # host read
