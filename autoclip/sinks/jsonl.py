"""The steps of a training loop as a file of JSON lines."""

import copy
import weakref
from collections.abc import Callable
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from autoclip.records import ClipRecord, Sink
from autoclip.run_directory import METRICS, LineLog, earlier_lines
from autoclip.warn_once import WarnOnce


class HasLearningRate(Protocol):
    """The part of an optimizer that is read."""

    param_groups: list[dict[str, Any]]


class JSONLSink(Sink):
    """Writes `metrics.jsonl`, as `autoclip run` does, for your own loop.

    The file is opened at the first record, and keeps the lines of earlier steps only. So a loop resumed with
    `clipper.load_state_dict()` continues it without a gap or a repeat, and so does a clipper that is set back in the
    middle. A loop that begins at step 0 begins a new file: the old one is kept beside it as `metrics.jsonl.1`, and a
    warning says so. A kill loses at most the line being written. If lines of earlier steps are otherwise damaged or
    missing, a warning tells of the gap. A copy by `copy.deepcopy` writes nothing and says so: the file is the
    original's.

    Args:
        path: a file that ends in `.jsonl`; anything else is a directory, which gets `metrics.jsonl`. What is missing is
            created.
        optimizer: the learning rate of its first group is noted; None: `lr` is null.

    >>> import tempfile
    >>> from autoclip.records import ClipRecord, Sink
    >>> record = ClipRecord(0, "active", 5.0, 1.0, 0.2, clipped=True, skipped=False, finite=True, loss=0.7)
    >>> with tempfile.TemporaryDirectory() as directory, JSONLSink(directory) as sink:
    ...     sink.log(record)
    ...     print(sink.path.name, sink.path.read_text()[:40])
    metrics.jsonl {"step": 0, "loss": 0.7, "total_norm": 5
    """

    def __init__(self, path: str | PathLike[str], optimizer: HasLearningRate | None = None) -> None:
        given = Path(path)
        self.path = given if given.suffix == ".jsonl" and not given.is_dir() else given / METRICS
        self.optimizer = optimizer
        self._log: LineLog | None = None
        self._next = 0
        self._announced: tuple[int, Any] = (-1, None)
        self._clipper: Callable[[], Any] | None = None  # a weak reference
        self._is_copy = False
        self._warn_once = WarnOnce()

    def watch(self, clipper: Any) -> None:
        """Remember the clipper, to get its last record before the file is closed."""
        self._clipper = weakref.ref(clipper)

    def announce(self, step: int) -> None:
        """Note the learning rate of a step whose record comes at the next step."""
        lr = None if self.optimizer is None else self.optimizer.param_groups[0]["lr"]
        if lr is not None and hasattr(lr, "detach"):  # a tensor; whoever has none needs no torch
            from autoclip.gradients.host import PinnedCopy

            lr = PinnedCopy(lr.detach().reshape(1))
        self._announced = (step, lr)

    def log(self, record: ClipRecord) -> None:
        """Write the line of one step.

        Raises:
            OSError: the file cannot be written.
        """
        if self._is_copy:
            self._warn_once(
                "copy",
                f"a copy of a JSONLSink writes nothing, as {self.path} is its original's: give the copied clipper "
                f"sinks of its own, `clipper.sinks = [...]`",
            )
            return
        if self._log is None or record.step < self._next:
            self.close()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if record.step == 0:
                self._keep_what_is_there()
            earlier = earlier_lines(self.path, record.step)
            if earlier.damaged or (earlier.steps and record.step - earlier.steps[0] > len(earlier.steps)):
                self._warn_once("gap", f"{self.path} has a gap: lines of earlier steps are damaged or missing")
            self._log = LineLog(self.path, earlier)
        announced, lr = self._announced
        if announced != record.step:
            lr = None if self.optimizer is None else self.optimizer.param_groups[0]["lr"]
        if hasattr(lr, "read"):  # a copy from a device
            (lr,) = lr.read()
        self._log.append(record.as_json(None if lr is None else float(lr)))
        self._next = record.step + 1

    def _keep_what_is_there(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        number = next(n for n in count(1) if not self.path.with_name(f"{self.path.name}.{n}").exists())
        aside = self.path.rename(self.path.with_name(f"{self.path.name}.{number}"))
        self._warn_once("aside", f"this training begins at step 0: what {self.path} held is kept as {aside.name}")

    def close(self) -> None:
        """Close the file; a further record opens it again."""
        clipper = self._clipper and self._clipper()
        if clipper:
            clipper.settle()
        if self._log is not None:
            self._log.close()
            self._log = None

    def __getstate__(self) -> dict[str, Any]:
        # An open file cannot be pickled; whoever unpickles it, in another process, opens it again.
        return {**vars(self), "_log": None, "_clipper": None, "_announced": (-1, None)}

    def __deepcopy__(self, memo: dict[int, Any]) -> "JSONLSink":
        copied = copy.copy(self)
        copied.optimizer = copy.deepcopy(self.optimizer, memo)
        copied._is_copy = True
        return copied

    def __repr__(self) -> str:
        return f"JSONLSink({str(self.path)!r})"
