"""Hugging Face transformers: the Trainer clips as usual, at the threshold of a policy."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from math import inf, isfinite
from types import FrameType
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from autoclip.clipper import Clipper
from autoclip.clipper.attach import innermost
from autoclip.clipper.clip_function import ClipFn
from autoclip.clipper.options import ClipperOptions
from autoclip.gradients import clip_grad_norm_
from autoclip.integrations.missing import missing
from autoclip.integrations.replaced import Around, Replaced
from autoclip.policies import POLICIES, Policy, checked_policy
from autoclip.spikes.event import batch_name
from autoclip.warn_once import WarnOnce

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as error:
    raise missing("transformers", error) from error

if TYPE_CHECKING:
    from autoclip.integrations.deepspeed import EngineTuner

HALF = (torch.float16, torch.bfloat16)


def _trainer_of(callback: TrainerCallback) -> Any:
    """The trainer that is calling the callback.

    A callback is given nothing that refers to the trainer or its accelerator. But the trainer is a few calls up the
    stack, and has the callback in its list.

    Raises:
        RuntimeError: no trainer that has the callback is calling it.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer) and _has(caller, callback):
            return caller
        frame = frame.f_back
    raise RuntimeError(
        "AutoClipCallback works within a Trainer only: give it to Trainer(callbacks=[...]) or trainer.add_callback(...)"
    )


def _has(trainer: Any, callback: TrainerCallback) -> bool:
    return any(one is callback for one in trainer.callback_handler.callbacks)


def _has_one_norm(clipper: Clipper) -> bool:
    return clipper.mode == "norm" and clipper.scope == "global"


def _has_whole_gradients(accelerator: Any) -> bool:
    """Return True if each rank can measure whole gradients (DTensors, if they are sharded)."""
    if accelerator.distributed_type == "FSDP":
        return bool(accelerator.is_fsdp2)
    return bool(accelerator.distributed_type != "XLA")


@contextmanager
def _unscaled(accelerator: Any) -> Iterator[bool]:
    """Unscale the gradients, and keep the accelerator's clipping from doing it again: a scaler does so once a step.

    Yields whether the scaler found an overflow, and so will leave out the step.
    """
    if accelerator.scaler is None:
        yield False
        return
    accelerator.unscale_gradients()
    accelerator.unscale_gradients = lambda *args, **kwargs: None
    try:
        yield any(_overflowed(optimizer, accelerator.scaler) for optimizer in accelerator._optimizers)
    finally:
        del accelerator.unscale_gradients


def _overflowed(optimizer: Any, scaler: Any) -> bool:
    inner = innermost(optimizer)
    return any(found.item() for found in scaler._found_inf_per_device(inner).values())  # host read


def _described(policy: Policy, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments to make the callback again, as JSON."""
    kinds = {cls: kind for kind, cls in POLICIES.items()}
    unheld = [] if type(policy) in kinds else [type(policy).__name__]
    unheld += [name for name, value in options.items() if not isinstance(value, str | int | float | dict | None)]
    if unheld:
        return {"policy": {"unheld": ", ".join(unheld)}}
    parameters = {"kind": kinds[type(policy)], **_finite(policy.parameters())}
    return {"policy": parameters, **_finite(options)}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: "inf" if value == inf else value for name, value in values.items()}


def _policy_from(described: Mapping[str, Any]) -> Policy:
    """The policy that `_described` describes.

    Raises:
        ValueError: a checkpoint cannot hold it.
    """
    parameters = dict(described)
    kind = parameters.pop("kind", None)
    if kind not in POLICIES:
        raise ValueError(
            f"a checkpoint cannot hold {parameters.get('unheld', kind)}, so no AutoClipCallback can be made from "
            f"it: leave restore_callback_states_from_checkpoint=False; learned values are continued without it"
        )
    arguments: dict[str, Any] = {name: inf if value == "inf" else value for name, value in parameters.items()}
    return POLICIES[kind](**arguments)


class AutoClipCallback(TrainerCallback, ExportableState):
    """Lets a `Trainer` clip at the threshold of a policy instead of `max_grad_norm`.

        trainer = Trainer(..., callbacks=[AutoClipCallback(autoclip.RunningQuantile(percentile=50))])

    The trainer clips as usual, once per optimizer step and however the gradients are sharded; only the threshold is the
    policy's. `max_grad_norm` has to be above 0 (it is by default); its value does not matter. The policy gets the norm
    before clipping, which the trainer logs as `grad_norm`, and the loss whose gradient the step takes: the mean over
    micro-batches, or over their tokens, as the trainer has it. A step that a scaler leaves out because of an overflow
    does not count.

    With each logged loss the trainer logs `autoclip/total_norm`, `autoclip/threshold` and `autoclip/coefficient` of the
    latest step, and `autoclip/clip_rate`, `autoclip/mean_coefficient` and `autoclip/skipped_steps` so far. What is not
    finite is left out. What was learned is part of the trainer's checkpoints; `train(resume_from_checkpoint=...)`
    continues it, and a training that does not resume starts from nothing.

    Under DeepSpeed the engine clips, at the policy's threshold (see `autoclip.integrations.deepspeed.attach`).

    Attributes:
        clipper: of the current training, else of the latest; None before the first, and if `max_grad_norm` has turned
            clipping off. Under DeepSpeed an `EngineTuner`.
        learned: what the next training starts from, if the callback was made from a checkpoint.

    Args:
        policy: sets the threshold; None is `ProbingQuantile()`. Every training starts with a copy of it. (A mapping is
            what a checkpoint holds instead.)
        options: as in `Clipper`. With a `scope` other than "global", a `mode` other than "norm", or gradients in half
            precision the clipper clips instead of the trainer. Sinks get the records of the main process only, and stay
            open.
    """

    def __init__(self, policy: Policy | Mapping[str, Any] | None = None, **options: Unpack[ClipperOptions]) -> None:
        if isinstance(policy, Mapping):
            policy = _policy_from(policy)
        self.clipper: Clipper | EngineTuner | None = None
        self.learned: dict[str, Any] | None = None
        self._policy = checked_policy(policy)
        self._options: dict[str, Any] = dict(options)
        self._loss: Tensor | None = None
        self._noted = (0, 0)  # a step, and the number of its micro-batches so far
        self._replaced: list[Replaced] = []
        self._warn_once = WarnOnce()

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any = None, **kwargs: Any) -> None:
        """Take over the trainer's clipping."""
        self._release()
        self.clipper, self._loss, self._noted = None, None, (-1, 0)
        trainer = _trainer_of(self)
        if sum(isinstance(one, AutoClipCallback) for one in trainer.callback_handler.callbacks) > 1:
            raise ValueError("the trainer has two AutoClipCallbacks: keep one, see trainer.remove_callback(...)")
        if not 0 < (args.max_grad_norm or 0) < inf:
            state.stateful_callbacks[type(self).__name__] = self.state()
            self._warn_once(
                "off",
                f"max_grad_norm={args.max_grad_norm} turns clipping off, so AutoClipCallback neither clips nor learns: "
                f"leave max_grad_norm at its default for the policy's threshold to take its place",
            )
            return
        accelerator = trainer.accelerator
        self.clipper = self._new_clipper(accelerator, model, state)
        self._continue(state)
        self._replace(trainer, trainer, "log", self._log)
        self._replace(trainer, trainer, "training_step", partial(self._note, state))
        if not isinstance(self.clipper, Clipper):  # DeepSpeed's engine asks it
            return
        self._replace(trainer, accelerator, "clip_grad_norm_", partial(self._clip_grad_norm, accelerator))
        self._replace(trainer, accelerator, "backward", partial(self._backward, accelerator))
        if hasattr(trainer, "_mixed_mesh_grad_norm"):
            mixed = partial(self._mixed_mesh_grad_norm, accelerator)
            self._replace(trainer, trainer, "_mixed_mesh_grad_norm", mixed)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the trainer its clipping back."""
        self._release()

    def state(self) -> dict[str, Any]:
        """The trainer's checkpoints hold this: the constructor's arguments, and what was learned."""
        learned = None if self.clipper is None else self.clipper.state_dict()
        return {"args": _described(self._policy, self._options), "attributes": {"learned": learned}}

    def _new_clipper(self, accelerator: Any, model: Any, state: Any) -> "Clipper | EngineTuner":
        options = self._options if state.is_world_process_zero else {**self._options, "sinks": ()}
        if accelerator.distributed_type == "DEEPSPEED":
            from autoclip.integrations import deepspeed

            return deepspeed.attach(accelerator.deepspeed_engine_wrapped.engine, deepcopy(self._policy), **options)
        clipper = Clipper(model, deepcopy(self._policy), **options)
        if not (_has_one_norm(clipper) or _has_whole_gradients(accelerator)):
            raise ValueError(
                f"under FSDP 1 and XLA accelerate has to clip, which it does by the norm of all gradients together: "
                f"mode must be 'norm' and scope 'global' there, got {clipper.mode!r} and {clipper.scope!r}"
            )
        return clipper

    def _continue(self, state: Any) -> None:
        """Load what was learned from the checkpoint that the trainer resumes from."""
        assert self.clipper is not None
        name = type(self).__name__
        learned, self.learned = self.learned, None
        if state.global_step > 0:
            # The trainer makes a list of several callbacks of one name, the latest last.
            saved = state.stateful_callbacks.get(name)
            learned = ((saved[-1] if isinstance(saved, list) else saved) or {}).get("attributes", {}).get("learned")
            if learned is None:
                self._warn_once(
                    "unsaved", f"the checkpoint holds nothing that {name} has learned: its warm-up starts again"
                )
        if learned is not None:
            self.clipper.load_state_dict(learned)
        state.stateful_callbacks[name] = self.state()  # without an entry the trainer fails to save

    def _note(self, state: Any, original: Around, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of `trainer.training_step`, once per micro-batch: spikes name it."""
        assert self.clipper is not None
        step, part = self._noted
        part = part + 1 if step == state.global_step else 0
        self._noted = state.global_step, part
        self.clipper.note(batch_name(inputs, f"{part} of step {state.global_step}"))
        return original(model, inputs, *args, **kwargs)

    def _clip_grad_norm(
        self, accelerator: Any, original: Around, parameters: Any, max_norm: float, norm_type: float = 2
    ) -> Any:
        """In place of `accelerator.clip_grad_norm_`, which the trainer calls once per optimizer step."""
        if max_norm == inf:  # the trainer only measures
            return original(parameters, max_norm, norm_type)
        assert isinstance(self.clipper, Clipper)
        parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        with _unscaled(accelerator) as overflowed:
            if overflowed:
                self._loss = None
                return original(parameters, inf, norm_type)
            order = self.clipper.norm_type
            return self._step(accelerator, parameters, lambda max_norm: original(parameters, max_norm, order))

    def _mixed_mesh_grad_norm(self, accelerator: Any, original: Around, model: Any, max_norm: float) -> Any:
        """In place of what the trainer calls for gradients on several device meshes."""
        if max_norm == inf:
            return original(model, max_norm)
        return self._step(accelerator, list(model.parameters()), lambda max_norm: original(model, max_norm))

    def _step(self, accelerator: Any, parameters: list[Tensor], clip_fn: ClipFn) -> Tensor:
        """Clip by the trainer's function, or by the clipper if only that can do it; returns the norm before."""
        assert isinstance(self.clipper, Clipper)
        if self.clipper.mode != "norm":  # what those measure is no norm
            norm = clip_grad_norm_(parameters, inf)
            self.clipper.step(loss=self._step_loss())
            return norm
        # Torch measures gradients of half precision in half precision: three digits of the norm are right.
        rounded = any(one.grad is not None and one.grad.dtype in HALF for one in parameters)
        by_clipper = not _has_one_norm(self.clipper) or (rounded and _has_whole_gradients(accelerator))
        return self.clipper.step(clip_fn=None if by_clipper else clip_fn, loss=self._step_loss())

    def _backward(self, accelerator: Any, original: Around, loss: Tensor, **kwargs: Any) -> Any:
        """In place of `accelerator.backward`, once per micro-batch.

        The trainer has divided the loss by the number of micro-batches, or of tokens in all of them, so the sum is the
        loss of the step.
        """
        part = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))
        part = part / accelerator.gradient_accumulation_steps
        self._loss = part if self._loss is None else self._loss + part
        return original(loss, **kwargs)

    def _step_loss(self) -> Tensor | None:
        loss, self._loss = self._loss, None
        return loss

    def _log(self, original: Around, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        """In place of `trainer.log`: callbacks that report are called before this one, and would see no more."""
        if "loss" in logs and self.clipper is not None and self.clipper.last is not None:
            last = self.clipper.last
            figures = {
                "total_norm": last.total_norm,
                "threshold": last.threshold,
                "coefficient": last.coefficient,
                "clip_rate": self.clipper.clip_rate,
                "mean_coefficient": self.clipper.mean_coefficient,
                "skipped_steps": self.clipper.skipped_steps,
            }
            logs.update({f"autoclip/{name}": value for name, value in figures.items() if isfinite(value)})
        return original(logs, *args, **kwargs)

    def _replace(self, trainer: Any, owner: Any, name: str, around: Around) -> None:
        self._replaced.append(Replaced(owner, name, around, lambda: _has(trainer, self)))

    def _release(self) -> None:
        for one in self._replaced:
            one.restore()
        self._replaced = []
        if not isinstance(self.clipper, Clipper | None):
            self.clipper.detach()
