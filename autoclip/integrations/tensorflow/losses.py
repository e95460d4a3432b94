"""Losses that are reported before their step, which may run or be traced."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Tensor = Any  # TensorFlow comes without type information


def vector(losses: Sequence[Any]) -> Tensor:
    """Losses as float64 numbers, shape (n,)."""
    if not losses:
        return tf.zeros((0,), tf.float64)
    return tf.stack([tf.cast(_number(loss), tf.float64) for loss in losses])


def _number(loss: Any) -> Any:
    """One number: a float of the host, or a 0-d tensor of a graph.

    Raises:
        TypeError: it is a text.
        ValueError: it is several.
    """
    if isinstance(loss, str | bytes):
        raise TypeError(f"loss must be a number or a tensor of one, got the text {loss!r:.100}: give float(...) of it")
    if not tf.is_tensor(loss):
        return float(loss)
    if loss.shape.num_elements() not in (1, None):
        raise ValueError(f"loss must be one number, such as the mean over the batch, got shape {tuple(loss.shape)}")
    number = tf.reshape(loss, ())
    return float(number) if tf.executing_eagerly() else number


class ReportedLosses:
    """The losses of one step: some known to the host, some still tensors of the graph being traced."""

    def __init__(self) -> None:
        self._known: list[float] = []
        self._pending: list[Tensor] = []

    def report(self, loss: Tensor | float) -> None:
        """Take one more loss, a number or a 0-d tensor."""
        if tf.is_tensor(loss) and not tf.executing_eagerly():
            self._pending.append(loss)
        else:
            self._known.append(_number(loss))

    def expect(self, loss: Tensor) -> None:
        """Take the loss of the coming step; it replaces one whose step never came."""
        self._pending = [loss]

    def take(self) -> Tensor:
        """The losses of the step that now runs or is traced, besides those that the host knows: shape (n,), float64."""
        pending, self._pending = self._pending, []
        if tf.executing_eagerly():
            return vector([loss for loss in pending if hasattr(loss, "numpy")])
        graphs = [tf.compat.v1.get_default_graph()]
        while (outer := getattr(graphs[-1], "outer_graph", None)) is not None:
            graphs.append(outer)
        # A loss of another graph was reported, and no step followed.
        return vector([loss for loss in pending if any(getattr(loss, "graph", None) is graph for graph in graphs)])

    def keep(self, losses: Any) -> None:
        """Keep the losses of a micro-batch, an array, for its step."""
        self._known.extend(float(loss) for loss in losses)

    def mean_with(self, losses: Any) -> float | None:
        """Mean of the losses on the host and of these, an array; then forget all. None: there are no losses."""
        self.keep(losses)
        known, self._known = self._known, []
        return sum(known) / len(known) if known else None

    def forget(self) -> None:
        """Forget the reported losses."""
        self._known, self._pending = [], []
