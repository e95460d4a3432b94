"""The steps of a training loop as curves in Weights & Biases."""

from importlib import import_module
from typing import Any

from autoclip.records import ClipRecord, Sink
from autoclip.sinks.scalars import Scalars, Watched


class WandbSink(Sink):
    """Plots norms before and after clipping, thresholds, coefficients, losses and clip rates as `autoclip/...`.

    `autoclip/total_norm` is the norm before clipping, `autoclip/clipped_norm` the one that the optimizer sees; all
    names are those of `Scalars`. Their axis is `autoclip/step`, the clipper's step. The sink also logs at that W&B
    step, or at the run's own if it is ahead: W&B drops whatever comes late. So nothing is lost if your loop leaves
    W&B's step to W&B, or gives `run.log` optimizer steps or anything larger, such as samples. Only epochs as W&B steps
    would come late: log those under a name of their own.

    Without a network give `mode="offline"`, or set WANDB_MODE=offline. Under distributed training give the sink to one
    rank.

    Args:
        run: what `wandb.init()` returned; closing the sink leaves it open. None: the run that is active at the first
            record, else one of its own from then on, which closing finishes.
        every: steps of a point. With more than one it is their mean, and `_max` and `_min` are curves of their own.
        layers_every: steps between `autoclip/layer_norm/<name>`, read from the clipper given to `watch`; None: never.
        updates_every: steps between `autoclip/update_norm`, each of which costs a copy of the parameters; None: never.
        init: arguments of `wandb.init` for a run of its own, such as `project`.

    Raises:
        ImportError: wandb is missing.
        ValueError: `every`, `layers_every` or `updates_every` is not a whole number >= 1.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        every: int = 10,
        layers_every: int | None = None,
        updates_every: int | None = None,
        **init: Any,
    ) -> None:
        self._scalars = Scalars(every, layers_every, updates_every)
        _wandb()
        self.run = run
        self.init = init
        self._owned = False
        self._described = False
        self._logged = -1  # latest W&B step of ours

    def watch(self, clipper: Watched) -> None:
        """Take layer norms and the overall clip rate from this clipper."""
        self._scalars.watch(clipper)

    def announce(self, step: int) -> None:
        """Look at the parameters before a step whose record follows later."""
        self._scalars.announce(step)

    def log(self, record: ClipRecord) -> None:
        """Take the record of one step.

        Raises:
            wandb.errors.Error: no run can be begun, or the run is finished.
        """
        self._write(record.step, self._scalars.take(record))

    def close(self) -> None:
        """Write out what is left. If the run was the sink's own, a further record begins another.

        Raises:
            wandb.errors.Error: there was no run yet, and none can be begun.
        """
        step, scalars = self._scalars.rest()
        if scalars and self.run is None:
            self._begun()
        try:
            self._write(step, scalars)
        except _wandb().errors.UsageError:
            pass  # the loop has finished its run before it closed the sink
        if self._owned:
            self.run.finish()
            self.run, self._owned, self._described, self._logged = None, False, False, -1

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        if not scalars:
            return
        run = self._begun()
        # Never a step that is over, which W&B drops, nor one of ours, which this would replace.
        self._logged = max(step, run.step, self._logged + 1)
        values = {f"autoclip/{name}": value for name, value in scalars.items()}
        run.log({"autoclip/step": step, **values}, step=self._logged)

    def _begun(self) -> Any:
        if self.run is None:
            wandb = _wandb()
            self._owned = wandb.run is None
            self.run = wandb.init(**self.init) if self._owned else wandb.run
        if not self._described:
            self.run.define_metric("autoclip/step", hidden=True)
            self.run.define_metric("autoclip/*", step_metric="autoclip/step")
            self._described = True
        return self.run

    def __getstate__(self) -> dict[str, Any]:
        # A run belongs to its process; a copy logs to the one that is active where its first record comes.
        return {**vars(self), "run": None, "_owned": False, "_described": False, "_logged": -1}

    def __repr__(self) -> str:
        return f"WandbSink({getattr(self.run, 'name', None)!r}, every={self._scalars.every})"


def _wandb() -> Any:
    try:
        return import_module("wandb")
    except ImportError as error:
        raise ImportError(f"WandbSink needs wandb ({error}): pip install 'autoclip-tuner[wandb]'") from error
