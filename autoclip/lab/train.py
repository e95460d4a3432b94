"""The only training loop: one task, one configuration, one seed, one run directory."""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from autoclip.clipper import Clipper
from autoclip.errors import RunError, UsageError
from autoclip.flow import UseOrder
from autoclip.gradients.updates import UpdateNorm
from autoclip.lab.checkpoint import LATEST, load_checkpoint, random_state, restore_random_state, save_checkpoint
from autoclip.lab.code_version import code_version, warn_of_other_code
from autoclip.lab.config import ExperimentConfig, clip_arguments, policies_of
from autoclip.lab.device import choose_device, to_device
from autoclip.lab.loading import described, method_of
from autoclip.lab.log_sinks import make_sinks
from autoclip.lab.on_spike import react
from autoclip.lab.task import (
    Task,
    batches_of,
    description_of,
    ids_of,
    loss_of,
    lr_factor_of,
    model_of,
    validation_loss_of,
)
from autoclip.records import ClipRecord, Sink
from autoclip.run_directory import LAYERS, METRICS, SPIKES, SUMMARY, LineLog, earlier_lines
from autoclip.spikes import SpikeEvent, SpikeRecorder

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_NONFINITE_IN_A_ROW = 50
"""A run ends as diverged after this many steps in a row without a finite loss and norm, unless `clip` names another
number; float16 needs some to find its scale."""
RECENT = 20
"""Number of steps whose mean is the final training loss."""

Status = Literal["finished", "diverged", "interrupted"]


@dataclass
class Tally:
    """The progress of a run, beyond its model, optimizer and clipper; part of every checkpoint."""

    steps: int = 0
    seconds: float = 0.0
    initial_validation_loss: float | None = None
    recent_losses: list[float] = field(default_factory=list)
    nonfinite_steps: int = 0
    nonfinite_in_a_row: int = 0
    threshold: float | None = None  # of the last step; None: nothing was to be clipped
    diverged: bool = False
    validation: list[dict[str, float | None]] = field(default_factory=list)
    left_out: int = 0  # batches, by rewinds
    rewinds: list[dict[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """One optimizer step as the progress bar shows it."""

    record: ClipRecord
    clip_rate: float
    mean_coefficient: float
    update_norm: float | None = None

    @property
    def loss(self) -> float:
        """Mean over the batches of the step."""
        assert self.record.loss is not None
        return self.record.loss


class Training:
    """A run in memory: everything that a checkpoint holds, and the step.

    Args:
        config: the experiment.
        task: what is trained.
        seed: of weights, batches and the global random generators.
    """

    def __init__(self, config: ExperimentConfig, task: Task, seed: int) -> None:
        torch.set_num_threads(config.threads)
        self.config, self.task, self.seed = config, task, seed
        self.device = choose_device(config.device)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        self.model = model_of(task, seed).to(self.device)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        assert config.optimizer is not None
        self.lr = config.optimizer.lr
        self.optimizer = OPTIMIZERS[config.optimizer.kind](parameters, **config.optimizer.model_dump(exclude={"kind"}))
        try:
            # A run that diverges ends with a summary, see `_count`.
            self.clipper = Clipper(self.model, **clip_arguments(config.clip) | {"max_nonfinite_in_a_row": None})
        except ValueError as error:  # patterns that fit none of the model's parameters
            raise UsageError(f"clip: {error}") from None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.batches = batches_of(task, seed)
        self.tally = Tally()
        self.update = UpdateNorm()
        self.code = code_version(type(task), *map(type, policies_of(config.clip)))
        description_of(task)  # fails before anything is trained
        self._order: list[str] = []  # in which the parameters are used, known after a step
        self.recorder: SpikeRecorder | None = None
        self.spikes: list[SpikeEvent] = []  # that began in the latest step

    def record_spikes(self, directory: Path) -> None:
        """Write an event for every spike, and keep those of the latest step in `spikes`."""
        self.recorder = SpikeRecorder(directory, optimizer=self.optimizer, on_event=self.spikes.append)
        self.clipper.sinks = [self.recorder]

    def step(self) -> Step:
        """Take one optimizer step over `accumulate` batches."""
        self.spikes.clear()
        if self._order or not (self.config.log.layers_every or self.recorder):
            return self._step()
        with UseOrder(dict(self.model.named_parameters())) as used:
            step = self._step()
        self._order = used.names
        if self.recorder is not None:
            self.recorder.use_order(self._order)
        return step

    def layer_norms(self) -> dict[str, float]:
        """Norm of each parameter's gradient in the latest step, in forward order."""
        norms = self.clipper.layer_norms()
        return {name: norms[name] for name in self._order if name in norms}

    def _step(self) -> Step:
        lr = self.lr * lr_factor_of(self.task, self.tally.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number in range(self.drawn, self.drawn + self.config.accumulate):
            try:
                batch = next(self.batches)
            except StopIteration:
                step = self.tally.steps
                raise RunError(f"the task's batches() ended at step {step}; it must never end") from None
            self.clipper.note(ids_of(self.task, batch, number))
            with torch.autocast(
                self.device.type, PRECISIONS[self.config.precision], enabled=self.config.precision != "float32"
            ):
                loss = loss_of(self.task, self.model, to_device(batch, self.device)) / self.config.accumulate
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        self.clipper.step(loss=total)
        if (every := self.config.log.updates_every) and self.tally.steps % every == 0:
            self.update.before(self.clipper.parameters)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        record = self.clipper.last
        assert record is not None
        self._count(total, record)
        return Step(record, self.clipper.clip_rate, self.clipper.mean_coefficient, self.update.after())

    @property
    def drawn(self) -> int:
        """Number of batches before the next step, with those that were left out."""
        return self.tally.steps * self.config.accumulate + self.tally.left_out

    def evaluate(self) -> float:
        """Validation loss of the current model."""
        self.model.eval()
        with torch.no_grad():
            loss = validation_loss_of(self.task, self.model)
        self.model.train()
        return loss

    def metrics(self, step: Step) -> dict[str, Any]:
        """The line of `metrics.jsonl`."""
        update = {} if step.update_norm is None else {"update_norm": step.update_norm}
        return step.record.as_json(self.optimizer.param_groups[0]["lr"]) | update

    def state_dict(self) -> dict[str, Any]:
        """Everything that the run's future depends on, loadable with `torch.load(weights_only=True)`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "clipper": self.clipper.state_dict(),
            "spikes": self.recorder and self.recorder.state_dict(),
            "random": random_state(),
            "tally": asdict(self.tally),
            "data_hash": getattr(self.task, "data_hash", None),
            "code": self.code,
        }

    def load_state_dict(self, state: dict[str, Any], drawn: int | None = None) -> None:
        """Continue exactly from a `state_dict()` of the same configuration and seed.

        Args:
            state: of a checkpoint.
            drawn: go on after this many batches; None: after those of the state.

        Raises:
            UsageError: the data changed since the run began.
        """
        data_hash = getattr(self.task, "data_hash", None)
        if state["data_hash"] != data_hash:
            raise UsageError(
                f"the task's data changed since the run began (sha256 {state['data_hash']}, now {data_hash}); "
                f"choose another --output-dir for a new run"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.clipper.load_state_dict(state["clipper"])
        if self.recorder is not None and state.get("spikes"):
            self.recorder.load_state_dict(state["spikes"])
        self.tally = Tally(**state["tally"])
        if drawn is not None:
            self.tally.left_out += drawn - self.drawn
        self.batches = batches_of(self.task, self.seed)
        deque(islice(self.batches, self.drawn), maxlen=0)
        # Last, as making the batches may draw from them.
        restore_random_state(state["random"])

    def _count(self, loss: float, record: ClipRecord) -> None:
        tally = self.tally
        tally.steps += 1
        tally.threshold = record.threshold
        if isfinite(loss):
            tally.recent_losses = [*tally.recent_losses[1 - RECENT :], loss]
        if isfinite(loss) and record.finite:
            tally.nonfinite_in_a_row = 0
            return
        tally.nonfinite_steps += 1
        tally.nonfinite_in_a_row += 1
        broken = not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        most = self.config.clip.max_nonfinite_in_a_row or MAX_NONFINITE_IN_A_ROW
        tally.diverged = broken or tally.nonfinite_in_a_row >= most


def train(
    config: ExperimentConfig,
    task: Task,
    seed: int,
    directory: Path,
    *,
    resume: bool,
    on_step: Callable[[Step], None],
    should_stop: Callable[[], bool],
    say: Callable[[str], None],
    last_checkpoint: bool = True,
) -> tuple[Status, Training]:
    """Train one seed into its run directory, from the latest whole checkpoint if `resume` is set.

    A run ends as diverged when a parameter is non-finite, or after 50 steps in a row (or `clip.max_nonfinite_in_a_row`,
    or all) without a finite loss and norm; otherwise non-finite steps are left to `clip.on_nonfinite`.

    Args:
        config: the experiment.
        task: what is trained.
        seed: of weights and batches.
        directory: the run directory, which exists.
        resume: continue; without a checkpoint the run starts from step 0, and its files with it.
        on_step: called with every step.
        should_stop: called after every step; True saves a checkpoint and ends the run as interrupted.
        say: called with anything the user should know.
        last_checkpoint: True: a finished run leaves a checkpoint, so that it can be extended.
    """
    training = Training(config, task, seed)
    if config.on_spike is not None:
        training.record_spikes(directory / SPIKES)
    damaged: list[str] = []
    if resume:
        state, damaged = load_checkpoint(directory)
        for line in damaged:
            say(line)
        if state is not None:
            warn_of_other_code(state.get("code", {}), training.code, directory, say)
            _continue_from(state, training, directory)
        if training.tally.steps > config.steps:
            taken = training.tally.steps
            raise UsageError(f"{directory} has {taken} steps already, more than the configured steps={config.steps}")
    sinks: list[Sink] = []
    try:
        while True:
            with _earlier(directory, training.tally.steps, say) as logs:
                if damaged:  # else the next save would keep the damaged file as the previous one
                    (directory / LATEST).unlink(missing_ok=True)
                sinks = sinks or make_sinks(config, seed, directory, training.clipper, say)
                status = _until_done(training, directory, *logs, sinks, on_step, should_stop, last_checkpoint, say)
            if status != "rewound":
                return status, training
    finally:
        for sink in [*sinks, *training.clipper.sinks]:
            sink.close()


@contextmanager
def _earlier(directory: Path, keep: int, say: Callable[[str], None]) -> Iterator[tuple[LineLog, LineLog]]:
    """The logs of steps and layers, without what is later than the steps to keep. From here on the directory changes.

    Raises:
        RunError: steps are missing.
    """
    earlier, earlier_layers = (earlier_lines(directory / name, keep) for name in (METRICS, LAYERS))
    if len(earlier.steps) != keep:
        raise RunError(
            f"{directory / METRICS} holds {len(earlier.steps)} steps, the checkpoint {keep}: lines were removed or "
            f"damaged, and the run cannot be continued without a gap; choose another --output-dir"
        )
    if earlier_layers.damaged:
        say(f"{directory / LAYERS} has a gap: {earlier_layers.damaged} damaged lines are left out")
    (directory / SUMMARY).unlink(missing_ok=True)
    with LineLog(directory / METRICS, earlier) as metrics, LineLog(directory / LAYERS, earlier_layers) as layers:
        yield metrics, layers


def _continue_from(state: dict[str, Any], training: Training, directory: Path) -> None:
    try:
        training.load_state_dict(state)
    except UsageError:
        raise
    except Exception as error:  # a state of another layout can raise anything
        if method_of(lambda one: one is training.task, error):
            raise
        raise RunError(
            f"the checkpoint in {directory} does not fit this task or this version of autoclip ({described(error)}); "
            f"choose another --output-dir to start over"
        ) from error


def _until_done(
    training: Training,
    directory: Path,
    metrics: LineLog,
    layers: LineLog,
    sinks: Sequence[Sink],
    on_step: Callable[[Step], None],
    should_stop: Callable[[], bool],
    last_checkpoint: bool,
    say: Callable[[str], None],
) -> Status | Literal["rewound"]:
    config, tally = training.config, training.tally
    began = time.monotonic() - tally.seconds

    def checkpoint(save: bool = True) -> None:
        tally.seconds = time.monotonic() - began
        if save:
            metrics.sync()
            layers.sync()
            save_checkpoint(directory, training.state_dict())

    def validate() -> None:
        loss = training.evaluate()
        tally.validation.append({"step": tally.steps, "loss": loss})
        tally.diverged = tally.diverged or not isfinite(loss)

    if tally.initial_validation_loss is None and not tally.steps:
        tally.initial_validation_loss = training.evaluate()
        checkpoint(save=config.on_spike == "rewind")
    while tally.steps < config.steps and not tally.diverged:
        step = training.step()
        metrics.append(training.metrics(step))
        if config.log.layers_every and step.record.step % config.log.layers_every == 0:
            layers.append({"step": step.record.step, "norms": training.layer_norms()})
        for sink in sinks:
            sink.log(step.record)
        on_step(step)
        reaction = react(training, directory, say) if training.spikes else None
        if reaction == "rewound":
            return reaction
        if config.evaluate_every and tally.steps % config.evaluate_every == 0:
            validate()
        if (reaction == "stop" or should_stop()) and tally.steps < config.steps:
            checkpoint()
            return "interrupted"
        if tally.steps % config.checkpoint_every == 0 and tally.steps < config.steps:
            checkpoint()
    if not tally.validation or tally.validation[-1]["step"] != tally.steps:
        validate()
    tally.diverged = tally.diverged or tally.nonfinite_steps == tally.steps
    checkpoint(save=last_checkpoint)
    return "diverged" if tally.diverged else "finished"
