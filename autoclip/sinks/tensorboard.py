"""The steps of a training loop as curves in TensorBoard."""

from os import PathLike, fspath
from typing import Any

from autoclip.records import ClipRecord, Sink
from autoclip.sinks.scalars import Scalars, Watched


class TensorBoardSink(Sink):
    """Plots norms before and after clipping, thresholds, coefficients, losses and clip rates as `autoclip/...`.

    `autoclip/total_norm` is the norm before clipping, `autoclip/clipped_norm` the one that the optimizer sees. All tags
    are those of `Scalars`, each at the clipper's step.

    In a directory the events begin at the first record, and hide later ones that are already there: a loop resumed with
    `clipper.load_state_dict()` continues the curves, and one that starts over starts them anew. In your own writer
    nothing is hidden, and closing the sink leaves it open. Under distributed training give the sink to one rank.

    Args:
        log_dir: a directory, or a `SummaryWriter`.
        every: steps of a point. With more than one it is their mean, and `_max` and `_min` are curves of their own.
        layers_every: steps between `autoclip/layer_norm/<name>`, read from the clipper given to `watch`; None: never.
        updates_every: steps between `autoclip/update_norm`, each of which costs a copy of the parameters; None: never.

    Raises:
        ImportError: tensorboard is missing.
        ValueError: `every`, `layers_every` or `updates_every` is not a whole number >= 1.
    """

    def __init__(
        self,
        log_dir: str | PathLike[str] | Any,
        *,
        every: int = 1,
        layers_every: int | None = None,
        updates_every: int | None = None,
    ) -> None:
        self._scalars = Scalars(every, layers_every, updates_every)
        given: Any = log_dir
        self._owned = not isinstance(given, _summary_writer())
        self._hides = self._owned
        self._writer: Any = None if self._owned else given
        self.log_dir = fspath(given if self._owned else given.log_dir)
        self._next = 0

    def watch(self, clipper: Watched) -> None:
        """Take layer norms and the overall clip rate from this clipper."""
        self._scalars.watch(clipper)

    def announce(self, step: int) -> None:
        """Look at the parameters before a step whose record follows later."""
        self._scalars.announce(step)

    def log(self, record: ClipRecord) -> None:
        """Take the record of one step.

        Raises:
            OSError: the directory cannot be written.
        """
        if self._hides and record.step < self._next:
            self._close_writer()
        if self._writer is None:
            self._writer = _summary_writer()(self.log_dir, purge_step=record.step if self._hides else None)
        self._next = record.step + 1
        self._write(record.step, self._scalars.take(record))

    def close(self) -> None:
        """Write out what is left; a further record continues in the same directory."""
        if self._writer is None:
            return
        self._write(*self._scalars.rest())
        if self._owned:
            self._close_writer()
        else:
            self._writer.flush()

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(f"autoclip/{name}", value, step)

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __getstate__(self) -> dict[str, Any]:
        # An open writer cannot be pickled; the copy has one of its own in the same directory.
        return {**vars(self), "_writer": None, "_owned": True}

    def __repr__(self) -> str:
        return f"TensorBoardSink({self.log_dir!r})"


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"TensorBoardSink needs tensorboard ({error}): pip install 'autoclip-tuner[tensorboard]'"
        ) from error
    return SummaryWriter
