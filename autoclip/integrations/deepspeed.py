"""DeepSpeed: the engine clips as usual, at the threshold of a policy."""

from collections.abc import Mapping
from inspect import signature
from math import isfinite, nan
from typing import Any, Unpack
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from autoclip.clipper.losses import StepLoss
from autoclip.clipper.options import ClipperOptions
from autoclip.clipper.skipped import skips_missing
from autoclip.integrations.missing import missing
from autoclip.integrations.replaced import Around, Replaced
from autoclip.policies import Policy, checked_policy
from autoclip.tuner import Tuner

try:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.utils import clip_grad_norm_
except ModuleNotFoundError as error:
    raise missing("deepspeed", error) from error

STATE_KEY = "autoclip"
"""Where the client state of a checkpoint holds what was learned."""

_ATTACHED: "WeakSet[Any]" = WeakSet()

_FIXED: Mapping[str, tuple[Any, ...]] = {
    "scope": (None, "global"),
    "mode": ("norm",),
    "norm_type": (2.0,),
    "response": (None, "scale"),
    "on_nonfinite": ("skip",),
    "groups": (None,),
    "skip": (None,),
    "host_wait": ("auto", True),
}
"""Option of a clipper -> what it can be here."""


def attach(engine: Any, policy: Policy | None = None, **options: Unpack[ClipperOptions]) -> "EngineTuner":
    """Let every step of a DeepSpeed engine clip at the threshold of a policy.

        engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
        tuner = autoclip.integrations.deepspeed.attach(engine)

    The training loop stays as it is. Before each step the policy's threshold takes the place of `gradient_clipping` in
    the engine's configuration, whatever number that is, 0 too. After it the policy gets the norm before clipping, and
    the loss whose gradient the step took: what `engine.backward(loss)` was given, the mean over the micro-batches and
    the ranks. (A loss of which you call `backward()` yourself is not seen.) It works under ZeRO 0 to 3, in fp32 and
    bf16, and in fp16 from ZeRO 1 on.

    What was learned is part of the checkpoints that `engine.save_checkpoint` writes: it is `client_state["autoclip"]`.
    `engine.load_checkpoint` continues it, unless it is to load the weights alone.

    A step that DeepSpeed leaves out because its norm is not finite is recorded as skipped. In fp16 it is an overflow of
    the loss scale, which does not count. Where DeepSpeed takes such a step (ZeRO 1 and 2 in bf16, with
    `check_grad_overflow` off), it is recorded as it was, and a warning says so.

    Args:
        engine: what `deepspeed.initialize` returned; under accelerate the model that `accelerator.prepare` returned.
        policy: sets the threshold; None is `ProbingQuantile()`.
        options: as in `Clipper`. The engine scales all gradients at once by their 2-norm: `scope`, `mode`, `norm_type`,
            `response`, `groups`, `skip` and `on_nonfinite` can only be what they are without being given ("scale" for a
            policy that has another response). Sinks get the records of rank 0 only, and stay open.

    Returns:
        A `Tuner`, which the engine asks and tells by itself; its `detach()` takes it off again.

    Raises:
        TypeError: it is no DeepSpeed engine, or `policy` no policy.
        ValueError: the engine trains nothing, has a tuner already, runs a pipeline, computes no norm or not the right
            one (fp16 without ZeRO, `torch_autocast` in float16 with it), or has a `gradient_clipping` that is no
            number; or it cannot do what the policy or an option asks for.
    """
    _check_engine(engine)
    for name, value in options.items():
        if name in _FIXED and value not in _FIXED[name]:
            raise ValueError(
                f"{name}={value!r} cannot be had under DeepSpeed, whose engine scales all gradients at once by their "
                f"2-norm, and handles what is not finite in its own way: leave {name} out"
            )
    policy = checked_policy(policy)
    if policy.response != "scale" and options.get("response") is None:
        raise ValueError(
            f"{type(policy).__name__} has the response {policy.response!r}, but DeepSpeed can only scale gradients to "
            f"a threshold: take a policy such as RunningQuantile(percentile=90), or add response='scale', which uses "
            f"the threshold of this one alone"
        )
    kept: dict[str, Any] = {name: value for name, value in options.items() if name not in _FIXED}
    return EngineTuner(engine, policy, **kept)


def _check_engine(engine: Any) -> None:
    """Raise if no tuner can be attached to it."""
    if not isinstance(engine, DeepSpeedEngine):
        raise TypeError(
            f"attach() needs the engine that deepspeed.initialize() returned, got a {type(engine).__name__}; under "
            f"accelerate that is the model that accelerator.prepare() returned"
        )
    optimizer = engine.optimizer
    if not (hasattr(optimizer, "clip_grad") or isinstance(optimizer, Optimizer)):
        raise ValueError(
            f"this DeepSpeed engine has no optimizer that steps ({type(optimizer).__name__}): give "
            f"deepspeed.initialize() one, or the section 'optimizer' in its configuration"
        )
    if engine in _ATTACHED:
        raise ValueError("this engine has a tuner attached already: call its detach() first")
    if hasattr(engine, "train_batch"):
        raise ValueError(
            "a pipeline engine steps within train_batch(): use autoclip.Tuner() in the loop, with "
            "engine.optimizer.clip_grad = tuner.threshold before it, and tuner.observe(engine.get_global_grad_norm(), "
            "loss) after it"
        )
    if not getattr(optimizer, "compute_grad_norm", True):
        raise ValueError(
            "DeepSpeed computes no norm with compute_grad_norm=false: leave it out of zero_optimization in its "
            "configuration"
        )
    if engine.fp16_enabled() and not engine.zero_optimization():
        raise ValueError(
            "in fp16 without ZeRO DeepSpeed divides the gradients by a loss scale that the loss does not have: set "
            "zero_optimization to stage 1 in its configuration, or use bf16"
        )
    if getattr(optimizer, "torch_autocast_gradscaler", None) is not None:
        raise ValueError(
            "with torch_autocast in float16 under ZeRO DeepSpeed measures the norm with the factor of its GradScaler: "
            "use bfloat16 there, or the section fp16 of its configuration in its place"
        )
    if not isinstance(engine.gradient_clipping(), int | float):
        raise ValueError(
            f"gradient_clipping is {engine.gradient_clipping()!r} in DeepSpeed's configuration, which only the "
            f"Transformers Trainer and accelerate fill in: leave it out; the policy's threshold takes its place"
        )


class EngineTuner(Tuner):
    """The `Tuner` of an engine, made by `attach`: the engine asks it before each step, and tells it after it."""

    give_loss = "engine.backward(loss)"

    def __init__(self, engine: Any, policy: Policy, *, process_group: Any = "world", **options: Any) -> None:
        super().__init__(policy, **{**options, "sinks": options.get("sinks", ()) if engine.global_rank == 0 else ()})
        self._engine = engine
        self._ranks = process_group
        self._loss: Tensor | None = None
        self._configured = engine.gradient_clipping()
        around: dict[str, Around] = {
            "backward": self._backward,
            "step": self._step,
            "save_checkpoint": self._save_checkpoint,
            "load_checkpoint": self._load_checkpoint,
        }
        # Under ZeRO 0 in fp32 the engine has a plain optimizer, clips by a method of its own, and throws the norm away.
        self._is_plain = not hasattr(engine.optimizer, "clip_grad")
        self._measured: float | None = None
        if self._is_plain:
            around["gradient_clipping"] = lambda original: self.threshold
            around["clip_fp32_gradients"] = self._clip
            around["get_global_grad_norm"] = lambda original: self._measured
        self._replaced = [Replaced(engine, name, one) for name, one in around.items()]
        _ATTACHED.add(engine)

    def detach(self) -> None:
        """Give the engine its own `gradient_clipping` back. The sinks stay open."""
        for one in self._replaced:
            one.restore()
        if self._replaced and not self._is_plain:
            self._engine.optimizer.clip_grad = self._configured
        self._replaced = []
        _ATTACHED.discard(self._engine)

    def _backward(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        """In place of `engine.backward`, which returns the loss over the number of micro-batches."""
        part = original(*args, **kwargs)
        if isinstance(part, Tensor):
            wide = part.detach().to(torch.float64, copy=True)
            self._loss = wide if self._loss is None else self._loss + wide
        return part

    def _step(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        """In place of `engine.step`, which steps at the end of an accumulation only."""
        engine = self._engine
        before = engine.global_steps
        if not self._is_plain:
            engine.optimizer.clip_grad = self.threshold
        returned = original(*args, **kwargs)
        if engine.global_steps != before:
            self._tell()
        return returned

    def _tell(self) -> None:
        """Observe the step that the engine has taken, or left out."""
        engine = self._engine
        loss, self._loss = self._loss, None
        found = engine.get_global_grad_norm()
        norm = nan if found is None or found < 0 else float(found)
        if not isfinite(norm) and self._has_loss_scale():
            return
        applied = engine.was_step_applied() and not self._removes(norm)
        if not isfinite(norm):
            self._history.meet_nonfinite("some gradient", "propagate" if applied else "skip")
        mean = StepLoss(loss, self._ranks, torch.empty(0, device=engine.device)).read()
        self.observe(norm, mean, skipped=not applied)

    def _has_loss_scale(self) -> bool:
        return self._engine.fp16_enabled() or getattr(self._engine, "torch_autocast_z0_gradscaler", None) is not None

    def _clip(self, original: Around) -> None:
        """In place of `engine.clip_fp32_gradients`, with the function that it calls."""
        engine = self._engine
        self._measured = float(clip_grad_norm_(engine.module.parameters(), self.threshold, mpu=engine.mpu))
        if self._removes(self._measured):
            engine.zero_grad()

    def _removes(self, norm: float) -> bool:
        """Return True if these gradients are removed, upon which the plain optimizer changes nothing."""
        return self._is_plain and not isfinite(norm) and skips_missing(self._engine.optimizer)

    def _save_checkpoint(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        """In place of `engine.save_checkpoint`."""
        call = signature(original).bind(*args, **kwargs)
        call.arguments["client_state"] = {**(call.arguments.get("client_state") or {}), STATE_KEY: self.state_dict()}
        return original(*call.args, **call.kwargs)

    def _load_checkpoint(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        """In place of `engine.load_checkpoint`, which returns the path, None if it found nothing, and client state."""
        call = signature(original).bind(*args, **kwargs)
        path, client = original(*args, **kwargs)
        weights_only = call.arguments.get("load_module_only") or not call.arguments.get("load_optimizer_states", True)
        if path is not None and not weights_only:
            if STATE_KEY in client:
                self.load_state_dict(client[STATE_KEY])
            else:
                self._history.warn_once(
                    "unsaved", f"the checkpoint holds nothing that {self!r} has learned: its warm-up starts again"
                )
        return path, client

    def __repr__(self) -> str:
        return f"EngineTuner({self.policy!r})"
