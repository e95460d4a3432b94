"""The clipper as a hook of an optimizer: the training loop stays as it is."""

import sys
from math import inf
from types import FrameType
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from autoclip.clipper import Clipper
from autoclip.clipper.checks import CHECKED_STEPS
from autoclip.clipper.clip_function import ClipFn, check_clip_fn
from autoclip.clipper.found_inf import FoundInf
from autoclip.clipper.losses import process_group
from autoclip.clipper.options import ClipperOptions
from autoclip.clipper.skipped import PASS_ON, Undo, skips_missing
from autoclip.clipper.uncompiled import uncompiled
from autoclip.policies import NoClip, Policy
from autoclip.warn_once import WarnOnce

STEP_WRAPPER = Optimizer.profile_hook_step.__code__.co_filename
"""Where torch wraps `step` in a function that calls the hooks."""


def attach(
    optimizer: Any, policy: Policy | None = None, *, clip_fn: ClipFn | None = None, **options: Unpack[ClipperOptions]
) -> Clipper:
    """Let every `optimizer.step()` clip its gradients first, at the threshold of a policy.

        clipper = autoclip.attach(optimizer)

    It works with closures, a `GradScaler` (with and without `unscale_`), fused optimizers, accumulation and a compiled
    `step`. The gradients of a closure are clipped after it has computed them; those that a line search computes again
    are clipped at the same threshold. A step that a scaler leaves out because of an overflow does not count.

    The loss is what you give to `clipper.report_loss(loss)`, else what the closure returns. Without one the default
    goes by the norms alone, cannot react to a rising loss, and says so once, after 100 steps.

    A skipped step changes nothing, under optimizers too that take a missing gradient for zeros (Muon): outside torch
    the parameters and their state are copied before such a step, and put back after it. A wrapper may still move them,
    and a warning says so.

    `LBFGS` gets a warning: it builds on the differences of gradients, which clipping falsifies.

    A step of zero gradients at a learning rate of zero does not count: `torch.distributed.checkpoint` makes an
    optimizer's state so. A copy of the optimizer (`copy.deepcopy`) has no clipper. The optimizer's `state_dict` does
    not hold the clipper's: save `clipper.state_dict()` beside it.

    Args:
        optimizer: of torch, or a wrapper that steps one (accelerate, Fabric, Lightning, opacus, Lookahead, SAM).
        policy: sets the threshold; None is `ProbingQuantile()`.
        clip_fn: somebody else's clip function, as in `Clipper.step`.
        options: as in `Clipper`. Parameters have the optimizer's names, if it was given `named_parameters()`.

    Returns:
        The clipper; its `detach()` takes it off again.

    Raises:
        TypeError: what was given holds no optimizer of torch, or one whose hooks nobody calls; or it is a scheduler.
        ValueError: the optimizer has a clipper already, or its engine clips by itself; or `clip_fn` with a mode other
            than "norm" or a scope other than "global".

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
    if clip_fn is not None:
        check_clip_fn(clipper.mode, clipper.scope)
    moves = isinstance(optimizer, Optimizer) and optimizer is not inner and _package(optimizer) not in PASS_ON
    hook = _ClipBeforeStep(clipper, inner, clip_fn, type(optimizer).__name__ if moves else None)
    clipper.connect(hook.found_inf, hook.register)
    return clipper


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer of torch inside wrappers, whose hooks are called however it is stepped.

    Raises:
        TypeError: there is no optimizer whose hooks are called, or several; or a scheduler was given.
        ValueError: it belongs to an engine that clips by itself.
    """
    found, seen = optimizer, list[Any]()
    while not any(found is one for one in seen):
        seen.append(found)
        if type(found).__module__.partition(".")[0] == "deepspeed":
            raise ValueError(
                "DeepSpeed clips by itself, and its optimizers hold parts of the gradients only: attach to its engine, "
                "by autoclip.integrations.deepspeed.attach(engine)"
            )
        if isinstance(found, LRScheduler):
            raise TypeError(
                f"attach() needs the optimizer, got its scheduler, a {type(found).__name__}: write "
                f"autoclip.attach(optimizer)"
            )
        found = _inner(found)
    if not isinstance(found, Optimizer):
        cure = ": a model is clipped by autoclip.Clipper(model)" if isinstance(found, torch.nn.Module) else ""
        raise TypeError(f"attach() needs an optimizer of torch or a wrapper around one, got {optimizer!r:.200}{cure}")
    if not _calls_hooks(found):
        raise TypeError(
            f"{type(found).__name__} calls no hooks, because its constructor does not call that of "
            f"torch.optim.Optimizer: attach to the optimizer inside it, or call clipper.step() before optimizer.step()"
        )
    return found


def _inner(found: Any) -> Any:
    """The optimizer that a wrapper steps; the object itself, if it is no wrapper.

    An optimizer counts as a wrapper if it holds one of the same parameters, or if nobody calls its own hooks.
    """
    inner = getattr(found, "optimizer", None)
    if inner is not None and not isinstance(found, Optimizer) and not isinstance(inner, torch.nn.Module):
        return inner
    held = (
        {id(one): one for one in vars(found).values() if isinstance(one, Optimizer)}
        if hasattr(found, "__dict__")
        else {}
    )
    if isinstance(found, Optimizer) and _calls_hooks(found):
        own = _identities(found)
        held = {key: one for key, one in held.items() if _identities(one) == own}
    held.pop(id(found), None)
    if len(held) > 1 and not _calls_hooks(found):
        raise TypeError(
            f"{type(found).__name__} holds {len(held)} optimizers: attach to each of them, or call clipper.step() "
            f"before optimizer.step()"
        )
    return next(iter(held.values())) if len(held) == 1 else found


def _package(optimizer: Any) -> str:
    return type(optimizer).__module__.partition(".")[0]


def _calls_hooks(found: Any) -> bool:
    """Return True if torch has prepared `step` of this optimizer to call hooks."""
    step = getattr(type(found), "step", None)
    return getattr(step, "hooked", False) and hasattr(found, "_optimizer_step_pre_hooks")


def _identities(optimizer: Any) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _is_in_parts(optimizer: Optimizer, given: set[int]) -> bool:
    """Return True if all parameters were exchanged for plain tensors, as ZeRO does; FSDP exchanges them for others."""
    now = [one for group in optimizer.param_groups for one in group["params"]]
    return not any(id(one) in given or isinstance(one, torch.nn.Parameter) for one in now)


class _ClipBeforeStep:
    """The hook: `hook(optimizer, args, kwargs)`, called at the beginning of `optimizer.step(*args, **kwargs)`."""

    def __init__(self, clipper: Clipper, optimizer: Optimizer, clip_fn: ClipFn | None, wrapper: str | None) -> None:
        self.clipper = clipper
        self.clip_fn = clip_fn
        self.found_inf = FoundInf(optimizer)
        self._optimizer = optimizer
        self._given: set[int] | None = _identities(optimizer)  # until the first step
        self._evaluations: int | None = None  # of the closure of the step under way; None: it has none
        self._is_in_step = False
        self._nested = 0  # calls of `step` within the one under way
        self._skips_missing = skips_missing(optimizer)
        self._wrapper = wrapper  # name of what may change parameters around the optimizer
        self._undo: Undo | None = None
        self._looks = CHECKED_STEPS
        self._handle: Any = None  # of `_look`
        self._warn_once = WarnOnce()
        if isinstance(optimizer, torch.optim.LBFGS) and not isinstance(clipper.policy, NoClip):
            self._warn_once(
                "curvature",
                "LBFGS measures curvature by the differences of gradients, which clipping falsifies: training may "
                "diverge; give it line_search_fn='strong_wolfe', and clip rarely (a high percentile), or not at all",
            )

    def register(self) -> list[Any]:
        """Register the hooks, and return their handles."""
        return [
            self._optimizer.register_step_pre_hook(self),
            self._optimizer.register_step_post_hook(self.after),
            self,
        ]

    def remove(self) -> None:
        """Remove the hook that looks behind others."""
        if self._handle is not None:
            self._handle.remove()

    # The compiler would compile the step again for each new threshold.
    @uncompiled
    def __call__(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._is_in_step and _is_nested(optimizer):
            self._nested += 1
            return None
        if self._given is not None and "deepspeed" in sys.modules and _is_in_parts(optimizer, self._given):
            raise RuntimeError(
                "DeepSpeed has exchanged the parameters of this optimizer for its own parts of them since attach(), of "
                "which no norm can be taken here, and clips by itself: attach to its engine, by "
                "autoclip.integrations.deepspeed.attach(engine)"
            )
        self._given = None
        self._is_in_step, self._nested, self._undo = True, 0, None
        self.found_inf.forget()  # of a step that raised
        scaler = kwargs.get("grad_scaler")
        positional = len(args) > 1 and callable(args[1])
        closure = args[1] if positional else kwargs.get("closure")
        if not callable(closure):
            self._evaluations = None
            self._step(optimizer, scaler, None)
            return None
        self._evaluations = 0

        def closure_and_clip() -> Any:
            # An optimizer calls its closure with gradients enabled; clipping does not belong in the graph.
            returned = closure()
            with torch.no_grad():
                self._evaluations = (self._evaluations or 0) + 1
                if self._evaluations == 1:
                    self._step(optimizer, scaler, returned)
                    return returned
                self.clipper.forget_losses()  # of an evaluation that is not learned from
                if self.clip_fn is None:
                    self.clipper.reclip(loss_scale=_loss_scale(optimizer, scaler))
                else:
                    self.clip_fn(self.clipper.last.threshold if self.clipper.last else float("inf"))
            return returned

        if positional:
            return (args[0], closure_and_clip, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_and_clip}

    @uncompiled
    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The hook at the end of the step."""
        if self._nested:
            self._nested -= 1
            return
        self._is_in_step = False
        self.found_inf.forget()
        if self._undo is not None:
            self._undo.restore()
            self._undo = None
        if self._evaluations == 0:
            self._warn_once(
                "unclipped",
                f"{type(optimizer).__name__} was given a closure and did not call it, so nothing was clipped: call "
                f"clipper.step() by hand, before optimizer.step()",
            )
        hooks = optimizer._optimizer_step_pre_hooks
        if self._looks > 0 and next(reversed(hooks.values())) not in (self, self._look):
            self.remove()
            self._handle = optimizer.register_step_pre_hook(self._look)  # after all others

    @uncompiled
    def _look(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Warn if a hook that was registered later made the gradients larger again."""
        if self._looks == 0 or self._nested or process_group("world") is not None:
            return
        self._looks -= 1
        last = self.clipper.last  # waits
        scale = _loss_scale(optimizer, kwargs.get("grad_scaler"))
        norm = self.clipper.norm_now() / (1.0 if scale is None else float(scale))
        if last is not None and last.finite and 1.01 * last.threshold < norm < inf:  # an overflow is left as it is
            self._warn_once(
                "changed",
                f"the gradients have a norm of {norm:.4g} after they were clipped at {last.threshold:.4g}: a hook of "
                f"this optimizer that was registered later changes them; attach() after it",
            )

    def _step(self, optimizer: Optimizer, scaler: Any, returned: Any) -> None:
        """Clip, with the loss that was reported, else the one that the closure returned."""
        if self._makes_state(optimizer):
            return
        is_loss = isinstance(returned, float) or (isinstance(returned, Tensor) and returned.numel() == 1)
        if is_loss and not self.clipper.has_reported_loss:
            self.clipper.report_loss(returned)
        scale = _loss_scale(optimizer, scaler)
        if self._skips_missing and self._wrapper is None:
            self.clipper.step(clip_fn=self.clip_fn, loss_scale=scale)
            return
        had = [one for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        self.clipper.step(clip_fn=self.clip_fn, loss_scale=scale)
        removed = [one for one in had if one.grad is None]
        by_closure = bool(self._evaluations)
        if removed and (self._wrapper is not None or (by_closure and not self._skips_missing)):
            self._warn_once(
                "moved",
                f"a step was skipped, but {self._wrapper or type(optimizer).__name__} may have changed parameters all "
                f"the same: call clipper.step() by hand, and optimizer.step() only if not clipper.last.skipped",
            )
        # What an optimizer did before it called its closure is not known.
        if removed and not (by_closure or self._skips_missing):
            self._undo = Undo(optimizer, removed, whole=len(removed) == len(had))

    def _makes_state(self, optimizer: Optimizer) -> bool:
        """Return True if this is a step of zero gradients at a rate of zero, by an optimizer without state.

        `torch.distributed.checkpoint` makes an optimizer's state by such a step. The norm is that of the whole
        gradients, so that all ranks agree. With a `clip_fn`, only that function knows how they are sharded: there is no
        norm, and the step counts.
        """
        if optimizer.state or self.clip_fn is not None:
            return False
        return all(_is_zero(group.get("lr", 1)) for group in optimizer.param_groups) and self.clipper.norm_now() == 0


def _is_zero(rate: Any) -> bool:
    """Return True if a learning rate is zero. One on a device is not read: the zero that torch sets is on the host."""
    return rate.device.type == "cpu" and not rate.any() if isinstance(rate, Tensor) else bool(rate == 0)


def _is_nested(optimizer: Optimizer) -> bool:
    """Return True if a step of the same optimizer called this one, as when a subclass calls `super().step()`.

    torch calls the hooks in both. It wraps the `step` of every class in one function, whose frames tell by the wrapped
    `func` how many classes are at it. Unlike a count kept by hooks, this holds after a step that raised.
    """
    steps = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == STEP_WRAPPER and frame.f_locals.get("self") is optimizer:
            steps.add(frame.f_locals.get("func"))
        frame = frame.f_back
    return len(steps - {None}) > 1


def _loss_scale(optimizer: Optimizer, scaler: Any) -> float | Tensor | None:
    """Factor that the gradients still carry; None: none.

    A `GradScaler` leaves it to a fused optimizer as `grad_scale`, or gives itself to an optimizer that takes it.
    """
    if scaler is None:
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        return scale
    stage = scaler._per_optimizer_states.get(id(optimizer), {}).get("stage")
    return None if getattr(stage, "name", "") == "UNSCALED" else float(scaler.get_scale())
