"""Lightning: a callback that puts a clipper on every optimizer of the Trainer."""

from importlib import import_module
from importlib.util import find_spec
from math import isfinite
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from autoclip.clipper import Clipper
from autoclip.clipper.attach import attach, innermost
from autoclip.clipper.clip_function import ClipFn
from autoclip.clipper.options import ClipperOptions
from autoclip.clipper.uncompiled import uncompiled
from autoclip.integrations.missing import missing
from autoclip.policies import Policy
from autoclip.records import ClipRecord
from autoclip.spikes.event import batch_name
from autoclip.warn_once import WarnOnce

if TYPE_CHECKING:
    from autoclip.integrations.deepspeed import EngineTuner

# The older package is a copy of the newer one, and calls a callback of either by the names of its methods.
_OLDER = find_spec("pytorch_lightning") and not find_spec("lightning")
try:
    Callback: Any = import_module("pytorch_lightning" if _OLDER else "lightning.pytorch").Callback
except ModuleNotFoundError as error:
    raise missing("lightning", error) from error


class AutoClipCallback(Callback):
    """Clips the gradients of every optimizer step of a Lightning Trainer, at the threshold of a policy.

        trainer = lightning.Trainer(callbacks=[AutoClipCallback(autoclip.RunningQuantile(percentile=50))])

    While `fit` runs, each optimizer has a clipper with a clone of the policy attached (see `autoclip.attach`): in
    automatic and manual optimization, at every precision, under accumulation and with fused optimizers. Every `fit`
    starts with nothing learned, as its optimizers do; so does a run whose optimizers are exchanged while it trains.
    With `ckpt_path` it continues exactly: what was learned is part of the Trainer's checkpoints. The module's own
    `configure_gradient_clipping` is called first.

    Every `log_every_n_steps` the Trainer's loggers get `autoclip/total_norm` (before clipping), `autoclip/threshold`
    (while it is inf, only if it was finite before) and `autoclip/coefficient` of the latest step, and
    `autoclip/clip_rate` and `autoclip/mean_coefficient` of the steps since the warm-up. With several optimizers they
    are `autoclip/total_norm/0` and so on, in the order of `configure_optimizers`.

    The policy gets the loss that backward was called with, without the factors of accumulation and `GradScaler`: its
    mean over the micro-batches of the step and over all ranks. In manual optimization the losses are those given to
    `manual_backward` since an optimizer last stepped; each optimizer that steps before the next loss is given gets
    them.

    Strategies: one device, DDP and `ModelParallelStrategy` (FSDP2, tensor parallelism) need nothing else. Under
    `FSDPStrategy` the root module clips, which works for one optimizer. Under `DeepSpeedStrategy` its engine clips, at
    the policy's threshold (see `autoclip.integrations.deepspeed.attach`): the clipper is an `EngineTuner`.

    Args:
        policy: sets the threshold; each optimizer gets a clone. None is `ProbingQuantile()`.
        clipper_options: as in `autoclip.Clipper`. Parameters have the optimizer's names, if `configure_optimizers`
            gives it `self.named_parameters()`. Sinks get the records of rank 0 only, are for one optimizer, and stay
            open.

    Raises:
        TypeError, ValueError: as in `autoclip.Clipper`. In `fit` also: the Trainer has a `gradient_clip_val`, an
            optimizer has a clipper already, or the checkpoint is of other policies or other optimizers.
    """

    def __init__(self, policy: Policy | None = None, **clipper_options: Unpack[ClipperOptions]) -> None:
        super().__init__()
        self._options: dict[str, Any] = {**clipper_options, "sinks": tuple(clipper_options.get("sinks", ()))}
        # Wrong options show now, not when the model has been set up; patterns of names have to wait.
        checked = {name: option for name, option in self._options.items() if name != "groups"}
        self.policy = Clipper(torch.optim.SGD([torch.zeros(1)]), policy, **checked).policy
        self._optimizers: list[Any] = []
        self._clippers: list[Clipper | EngineTuner] = []
        self._handles: list[Any] = []
        self._has_stepped = False
        self._pending: dict[str, Any] = {}
        self._logged: dict[int, ClipRecord] = {}
        self._bounded: set[str] = set()
        self._warn_once = WarnOnce()

    @property
    def clipper(self) -> "Clipper | EngineTuner":
        """The clipper of the one optimizer, from the first training step on; after training that of the last `fit`.

        Raises:
            RuntimeError: no clipper is there yet, or there are several.
        """
        if len(self._clippers) != 1:
            raise RuntimeError(
                f"there are {len(self._clippers)} clippers, one for each optimizer: use `clippers`"
                if self._clippers
                else "there is no clipper before training has started"
            )
        return self._clippers[0]

    @property
    def clippers(self) -> "list[Clipper | EngineTuner]":
        """One for each of `trainer.optimizers`, in their order; empty before training starts."""
        return list(self._clippers)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget an earlier `fit`, and refuse a second clipping beside this one."""
        if stage != "fit":
            return
        self._detach()
        self._optimizers, self._clippers, self._pending, self._bounded = [], [], {}, set()
        searching = {type(one).__name__ for one in trainer.callbacks} & {"BatchSizeFinder", "LearningRateFinder"}
        if searching:
            self._warn_once(
                "search",
                f"{' and '.join(sorted(searching))} makes its trial steps without other callbacks, so that they are "
                f"not clipped: what it finds holds for a training without clipping",
            )
        if trainer.gradient_clip_val and not _is(trainer.strategy, "DeepSpeedStrategy"):
            raise ValueError(
                f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) would clip beside AutoClipCallback, which "
                f"would learn from norms that are clipped already: leave gradient_clip_val out of the Trainer "
                f"(AutoClipCallback(autoclip.Fixed({trainer.gradient_clip_val})) clips as it does)"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the clippers: by now the optimizers exist, and so does the callback's part of a checkpoint."""
        self._attach(trainer)
        if self._pending and self._clippers:
            self._restore(self._pending)
        self._pending = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Attach new clippers if the optimizers were exchanged; name the batch, for `SpikeRecorder`."""
        current = _trained(trainer)
        if len(current) != len(self._optimizers) or any(
            new is not old for new, old in zip(current, self._optimizers, strict=True)
        ):
            self._detach()
            self._attach(trainer)
        for clipper in self._clippers:
            clipper.note(batch_name(batch, f"{batch_idx} of epoch {trainer.current_epoch}"))

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Forget the losses of gradients that are thrown away (called in automatic optimization only)."""
        self._forget_losses()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Report the loss, without the factors of accumulation and `GradScaler`, to each clipper that may step next."""
        if not self._clippers or loss.numel() != 1:
            return
        value = loss.detach()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # by way of `scale`, as `get_scale` would wait for the device
            value = value / scaler.scale(torch.ones_like(value, dtype=torch.float32))
        if pl_module.automatic_optimization:
            value = value * trainer.accumulate_grad_batches
        if self._has_stepped:
            self._forget_losses()
        for clipper in self._clippers:
            if isinstance(clipper, Clipper):
                clipper.report_loss(value)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Let the next loss belong to a new step, even if this one turns out to have overflowed."""
        self._has_stepped = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the latest step of each optimizer that has stepped."""
        if trainer.barebones:
            return
        logs_now = getattr(trainer._logger_connector, "should_update_logs", True)
        for index, clipper in enumerate(self._clippers):
            if not (clipper.is_settled or logs_now):
                continue  # reading values that are not logged would wait for the device
            record, suffix = clipper.last, f"/{index}" if len(self._clippers) > 1 else ""
            if record is None or record is self._logged.get(index):
                continue
            self._logged[index] = record
            metrics = {
                f"autoclip/total_norm{suffix}": record.total_norm,
                f"autoclip/coefficient{suffix}": record.coefficient,
            }
            if isfinite(clipper.clip_rate):  # not before the first active step
                metrics[f"autoclip/clip_rate{suffix}"] = clipper.clip_rate
                metrics[f"autoclip/mean_coefficient{suffix}"] = clipper.mean_coefficient
            # Lightning goes on logging the latest value, so inf has to replace it.
            threshold = f"autoclip/threshold{suffix}"
            if isfinite(record.threshold) or threshold in self._bounded:
                self._bounded.add(threshold)
                metrics[threshold] = record.threshold
            for metric, value in metrics.items():
                # A tensor of the host stays there; a number would be copied to the device, and back to be logged.
                on_host = torch.tensor(value, dtype=torch.float64)
                pl_module.log(metric, on_host, on_step=True, on_epoch=False)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take the clippers off the optimizers."""
        self._detach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the clippers off the optimizers."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """State of the clippers as plain values, in the order of the optimizers."""
        if not self._clippers:
            return self._pending
        return {"clippers": [clipper.state_dict() for clipper in self._clippers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the optimizers exist."""
        self._pending = state_dict

    def _attach(self, trainer: Any) -> None:
        self._optimizers, self._clippers, self._logged = _trained(trainer), [], {}
        if _is(trainer.strategy, "DeepSpeedStrategy"):
            from autoclip.integrations import deepspeed

            self._clippers = [deepspeed.attach(trainer.strategy.deepspeed_engine, self.policy.clone(), **self._options)]
            return
        options = dict(self._options)
        if options["sinks"] and len(self._optimizers) > 1:
            raise ValueError(
                f"sinks are for one optimizer; the records of these {len(self._optimizers)} would be mixed: "
                f"leave them out; the Trainer's loggers get the norms of each"
            )
        if not trainer.is_global_zero:
            options["sinks"] = ()
        clip_fn = None
        if _is(trainer.strategy, "FSDPStrategy"):
            clip_fn = _root_clip_fn(trainer.strategy.model, options.get("norm_type", 2.0), len(self._optimizers))
        for optimizer in self._optimizers:
            self._clippers.append(attach(optimizer, self.policy.clone(), clip_fn=clip_fn, **options))
            self._handles.append(innermost(optimizer).register_step_post_hook(self._after_step))

    def _detach(self) -> None:
        for clipper in self._clippers:
            clipper.detach()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _forget_losses(self) -> None:
        self._has_stepped = False
        for clipper in self._clippers:
            if isinstance(clipper, Clipper):
                clipper.forget_losses()

    # This must not recompile a compiled step.
    @uncompiled
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Lightning does not report steps of torch's own optimizers in manual optimization."""
        self._has_stepped = True

    def _restore(self, state: dict[str, Any]) -> None:
        states = state.get("clippers", [])
        if len(states) != len(self._clippers):
            raise ValueError(
                f"the checkpoint's AutoClipCallback had {len(states)} optimizers, this run has {len(self._clippers)}"
            )
        for index, (clipper, own) in enumerate(zip(self._clippers, states, strict=True)):
            try:
                clipper.load_state_dict(own)
            except ValueError as error:
                raise ValueError(
                    f"the checkpoint was made with another AutoClipCallback, and its optimizer {index} cannot be "
                    f"continued: {error}. Give the callback the policy and scope it had, or load only the weights"
                ) from error


def _trained(trainer: Any) -> list[Any]:
    """The optimizers with parameters: without `configure_optimizers` Lightning makes one without any."""
    return [one for one in trainer.optimizers if any(group["params"] for group in one.param_groups)]


def _is(strategy: Any, name: str) -> bool:
    """Return True if it is a strategy of that name, of either package."""
    return any(each.__name__ == name for each in type(strategy).__mro__)


def _root_clip_fn(root: Any, norm_type: float, optimizers: int) -> ClipFn:
    """Clip function of FSDP1's root module, which alone knows how the gradients are sharded.

    Raises:
        ValueError: there is no such module, or it would clip the gradients of several optimizers.
    """
    if not hasattr(root, "clip_grad_norm_"):
        raise ValueError(
            "under FSDPStrategy the module as a whole has to be wrapped, so that one norm can be taken of its "
            "gradients: leave the wrapping to Lightning (auto_wrap_policy), or use ModelParallelStrategy"
        )
    if optimizers > 1:
        raise ValueError(
            f"under FSDPStrategy the module clips all its gradients at once, which cannot be done for {optimizers} "
            f"optimizers: use ModelParallelStrategy"
        )

    def clip_fn(max_norm: float) -> Any:
        return root.clip_grad_norm_(max_norm, norm_type)

    return clip_fn
