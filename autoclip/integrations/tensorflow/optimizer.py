"""The clipper in place of a Keras optimizer's `apply`."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from autoclip.integrations.tensorflow.gradients import KEPT, SKIPPED, like, numbers, shrink, summed
from autoclip.integrations.tensorflow.losses import ReportedLosses

Tensor = Any  # TensorFlow comes without type information


class DecideOn(Protocol):
    """The clipper's method that decides."""

    def __call__(self, values: Sequence[Tensor], losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The action on gradients with these values (KEPT, ...), the coefficient, and their norm."""


def own_optimizer(optimizer: Any) -> Any:
    """The optimizer inside those that scale the loss, ready to be clipped.

    Raises:
        TypeError: it is not an optimizer of Keras 3.
        ValueError: it clips by itself or has a clipper already, or Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"attach() needs Keras on the TensorFlow backend, this is {keras.backend.backend()!r}")
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"attach() needs a keras.optimizers.Optimizer (Keras 3), got {optimizer!r:.200}")
    inner = optimizer
    while isinstance(inner, keras.optimizers.LossScaleOptimizer):
        inner = inner.inner_optimizer
    if isinstance(inner.apply, ClippingApply):
        raise ValueError("this optimizer has a clipper already: call detach() of that one first")
    own = [name for name in ("clipnorm", "global_clipnorm", "clipvalue") if getattr(inner, name) is not None]
    if own:
        raise ValueError(f"this optimizer clips by itself: make it without {', '.join(own)}")
    return inner


class ClippingApply:
    """`optimizer.apply(grads, trainable_variables)` that clips first, in place of the optimizer's own.

    Args:
        optimizer: of Keras; if it scales the loss, the one inside it is clipped.
        decide_on: called at every real update.
        losses: of the coming update.
    """

    def __init__(self, optimizer: Any, decide_on: DecideOn, losses: ReportedLosses) -> None:
        self._outer = optimizer
        self._inner = own_optimizer(optimizer)
        self._decide_on = decide_on
        self._losses = losses
        self._apply = self._inner.apply
        self._scale_loss = optimizer.scale_loss
        # Graphs that were made with the clipper outlive its removal, and ask this variable.
        self._removed = tf.Variable(False, trainable=False, name="autoclip_removed")
        self._inner.apply = self
        optimizer.scale_loss = self.scale_loss

    def remove(self) -> None:
        """Give the optimizer its own methods back."""
        self._removed.assign(True)
        del self._inner.apply
        del self._outer.scale_loss

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Note the loss of the coming step, and scale it as the optimizer does."""
        self._losses.expect(loss)
        return self._scale_loss(loss)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def __call__(self, grads: Iterable[Any], trainable_variables: Iterable[Any] | None = None) -> None:
        """Apply the gradients, clipped, or leave the step out."""
        optimizer = self._inner
        grads = list(grads)
        variables = None if trainable_variables is None else list(trainable_variables)
        if variables is not None and not optimizer.built:  # not within one of the branches below
            with keras.name_scope(optimizer.name, caller=optimizer):
                optimizer.build(variables)
        known = optimizer._trainable_variables if variables is None else variables
        places = [
            place
            for place, (gradient, variable) in enumerate(zip(grads, known, strict=False))
            # Such a variable takes its "gradient" as its value (scales of float8).
            if gradient is not None and not getattr(variable, "overwrite_with_gradient", False)
        ]
        if not places or len(grads) != len(known):
            self._apply(grads, variables)  # which raises if that is wrong
            return
        losses = self._losses.take()
        steps = optimizer.gradient_accumulation_steps
        if not steps:
            self._update(grads, variables, places, [], losses)
            return
        for place in places:
            grads[place] = tf.convert_to_tensor(grads[place])
        sums = [optimizer._accumulated_gradients[optimizer._get_variable_index(known[place])] for place in places]

        def accumulate() -> None:
            tf.numpy_function(self._keep, [losses], tf.int32)
            self._apply(grads, variables)

        # `optimizer.iterations` counts real updates, this every micro-batch.
        is_update = tf.equal((optimizer._iterations + 1) % steps, 0)
        tf.cond(is_update, lambda: self._update(grads, variables, places, sums, losses), accumulate)

    def _update(
        self, grads: list[Any], variables: list[Any] | None, places: list[int], sums: list[Any], losses: Tensor
    ) -> None:
        """One real update.

        Args:
            grads: one for each variable, or None.
            variables: as the optimizer's own `apply` takes them.
            places: of the gradients that are clipped.
            sums: accumulated gradients at these places; empty without accumulation.
            losses: of the step, shape (n,).
        """
        optimizer = self._inner
        values = [numbers(place, grads[place]) for place in places]

        def decide() -> tuple[Tensor, Tensor]:
            true = [summed(grads[place]) / (optimizer.loss_scale_factor or 1.0) for place in places]
            if sums:
                steps = optimizer.gradient_accumulation_steps
                true = [(new + tf.cast(old, new.dtype)) / steps for new, old in zip(true, sums, strict=True)]
            return self._decide_on(true, losses)[:2]

        action, coefficient = tf.cond(self._removed, lambda: (tf.constant(KEPT), tf.constant(1.0, tf.float64)), decide)

        def clipped() -> None:
            shrunk = shrink([*values, *(old.value for old in sums)], action, coefficient)
            given = list(grads)
            for place, smaller in zip(places, shrunk, strict=False):
                given[place] = like(grads[place], smaller)
            for old, smaller in zip(sums, shrunk[len(places) :], strict=True):
                old.assign(smaller)
            self._apply(given, variables)

        def left_out() -> None:
            if sums:  # the next accumulation begins
                optimizer._backend_reset_gradient_accumulators()
                optimizer._iterations.assign_add(1)

        tf.cond(tf.equal(action, SKIPPED), left_out, clipped)

    def _keep(self, losses: Any) -> Any:
        if not self._removed:
            self._losses.keep(losses)
        return np.int32(0)
