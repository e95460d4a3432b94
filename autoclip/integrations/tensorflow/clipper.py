"""The clipper of TensorFlow: a policy in Python, for gradients in eager mode and in graphs."""

from collections.abc import Iterable, Sequence
from functools import partial
from math import isfinite
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from autoclip.controller import RelearnAfter
from autoclip.history import BY_CLIPPER
from autoclip.integrations.tensorflow.gradients import (
    KEPT,
    SKIPPED,
    ZEROED,
    like,
    numbers,
    scaling,
    shrink,
    summed,
    total_norm,
)
from autoclip.integrations.tensorflow.losses import ReportedLosses, vector
from autoclip.policies import Policy
from autoclip.policies.parameters import choice
from autoclip.policies.policy import ALL, Response
from autoclip.records import Sink
from autoclip.tuner import OneThreshold

Tensor = Any  # TensorFlow comes without type information
OnNonfinite = Literal["skip", "zero", "propagate", "raise"]


class GradientClipper(OneThreshold):
    """Clips gradients at a threshold that a policy sets from the norms of earlier steps.

    In your own loop, eager or in a `tf.function`:

        gradients = tape.gradient(loss, variables)
        clipped, norm = clipper.apply(gradients, loss=loss)
        if not clipper.skipped:
            optimizer.apply(clipped, variables)

    Or inside an optimizer, where nothing else changes: `clipper.attach(optimizer)`. The norm is that of all gradients
    together. Gradients above the threshold c are multiplied as `tf.clip_by_global_norm` does, bit for bit:

        coefficient = c * min(1 / norm, 1 / c) where norm > c, else the gradients are not touched

    The policy runs in Python, once for every optimizer step, in graphs through `tf.numpy_function`: the update waits
    for the norm to reach the host. XLA cannot call Python, so `jit_compile=True` is an error. Keras chooses it by
    itself if there is a GPU; `model.compile(jit_compile=False)` turns it off. A graph with a clipper in it works only
    in the process that made it.

    Several replicas (`tf.distribute`) are an error, as each would see its own gradients only. One replica, and
    gradients that are summed over the replicas already, need nothing special.

    Args:
        policy: sets the threshold; each clipper needs its own. None is `ProbingQuantile()`.
        response: for a norm n above the threshold c. "scale": c. "reciprocal": c * c / n, or the policy's
            own formula. "skip": the step is left out. None is the policy's own.
        skip: a second policy, which clips nothing: a step whose norm is above its threshold (with `SkipStep` also one
            whose loss is) is left out, as by response "skip".
        on_nonfinite: for a step whose norm is NaN or Inf. "skip" leaves it out, "zero" takes it with gradients of zero,
            "propagate" passes the gradients on as they are, "raise" raises. The policy never learns from such a step.
        max_nonfinite_in_a_row: this many steps in a row with a non-finite norm raise a RuntimeError, once the last is
            recorded. None: never. A warning comes at the first, and after 10, 100 and 1000 in a row.
        sinks: `autoclip.sinks.Sink` objects, which get the record of every step.
        relearn_after: after this many steps clipped in a row the policy starts again from their norms. "auto": 20 if
            they are skipped, else ten windows of the policy. None: never.

    Raises:
        TypeError: `policy` or `skip` is not a `Policy`.
        ValueError: an argument is out of its range, or a policy is one for each parameter by itself.

    >>> import tensorflow as tf
    >>> from autoclip import Fixed
    >>> clipper = GradientClipper(Fixed(1.0))
    >>> (clipped,), norm = clipper.apply([tf.constant([3.0, 4.0])])
    >>> clipped.numpy().round(4).tolist(), float(norm)
    ([0.6000000238418579, 0.800000011920929], 5.0)
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        response: Response | None = None,
        skip: Policy | None = None,
        on_nonfinite: OnNonfinite = "skip",
        max_nonfinite_in_a_row: int | None = None,
        sinks: Iterable[Sink] = (),
        relearn_after: RelearnAfter = "auto",
    ) -> None:
        give_loss = BY_CLIPPER.format("clipper.apply(gradients, loss=loss)")
        super().__init__(policy, response, sinks, max_nonfinite_in_a_row, relearn_after, give_loss, skip)
        self.response: Response = self._controller.response
        self.on_nonfinite: OnNonfinite = choice("on_nonfinite", on_nonfinite, OnNonfinite)
        self.skipped = tf.Variable(False, trainable=False, name="autoclip_skipped")
        """True if the latest `apply` wants its step left out; a variable, so that graphs can read it."""
        self._losses = ReportedLosses()
        self._attachment: Any = None

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def apply(self, gradients: Any, loss: Tensor | float | None = None) -> tuple[Any, Tensor]:
        """Clip the gradients of one optimizer step and learn from them.

        For a skipped step it returns zeros. Those still move an optimizer with momentum, averages or weight decay: to
        leave everything as it was, do not apply them. `skipped` tells, as above.

        Args:
            gradients: a list, tuple, dict or nest of them, as `tape.gradient` returns it: tensors of any floating
                dtype, `tf.IndexedSlices` and None. Slices of the same row count with their sum, as they are applied
                (`tf.clip_by_global_norm` counts them one by one).
            loss: of the step, one number, for policies that read it; None: the mean of what `report_loss` got.

        Returns:
            The clipped gradients in the same structure, and their total norm before clipping: 0-d, float32 (float64 if
            a gradient is), for finite gradients at most the largest number of that dtype.

        Raises:
            RuntimeError: the norm is not finite, with `on_nonfinite="raise"` or as the last of `max_nonfinite_in_a_row`
                (from a graph TensorFlow raises `tf.errors.UnknownError`, with our message in its own); a graph for XLA;
                one replica of several.
            TypeError: gradients that are not floating-point numbers.
        """
        flat = tf.nest.flatten(gradients)
        live = {place: numbers(place, gradient) for place, gradient in enumerate(flat) if gradient is not None}
        if not live:
            self._history.warn_once("empty", "every gradient is None: does the loss depend on the variables?")
        losses = self._losses.take() if loss is None else vector([loss])
        action, coefficient, norm = self._decide_on([summed(flat[place]) for place in live], losses, loss is not None)
        self.skipped.assign(tf.equal(action, SKIPPED))
        for place, values in zip(live, shrink(list(live.values()), action, coefficient), strict=True):
            flat[place] = like(flat[place], values)
        return tf.nest.pack_sequence_as(gradients, flat), norm

    def attach(self, optimizer: Any) -> Any:
        """Let every step of a Keras optimizer clip its gradients first.

            model.compile(optimizer=clipper.attach(keras.optimizers.Adam()), loss="mse", jit_compile=False)

        It works for `model.fit`, `optimizer.apply` and `optimizer.apply_gradients`, eager or in a graph. A skipped step
        changes neither variables nor the optimizer, its count of iterations included. In a `LossScaleOptimizer` the
        inner optimizer clips: it sees true gradients, and is not called on an overflow. With
        `gradient_accumulation_steps` the accumulated gradient is clipped, once for every real update; one that is
        skipped empties the accumulators, and counts as an iteration.

        The loss is the one that Keras gives to `optimizer.scale_loss` before it computes gradients, as `fit` does. Your
        own loop calls that, or `report_loss`. If `compile` wraps the optimizer in a `LossScaleOptimizer` (policy
        "mixed_float16"), no loss arrives: wrap it by hand and attach to that.

        A model that was trained before has a graph without the clipper: call `model.compile` again. A saved model and a
        copy of the optimizer have no clipper: save `state_dict()` beside them, and attach again.

        Args:
            optimizer: a `keras.optimizers.Optimizer`, on the TensorFlow backend.

        Returns:
            The same optimizer.

        Raises:
            TypeError: it is not an optimizer of Keras 3.
            ValueError: it clips by itself or has a clipper already, this clipper has an optimizer already, or Keras
                runs on another backend.
        """
        from autoclip.integrations.tensorflow.optimizer import ClippingApply  # Keras is for those who use it

        if self._attachment is not None:
            raise ValueError("this clipper has an optimizer already: make one for each, or call detach() first")
        self._attachment = ClippingApply(optimizer, self._decide_on, self._losses)
        return optimizer

    def detach(self) -> None:
        """Take the clipper off its optimizer, and out of graphs that were made with it. Its sinks stay open."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None
        self.forget_losses()

    def report_loss(self, loss: Tensor | float) -> None:
        """Give the loss of a batch before the step; under accumulation that of every micro-batch: their mean counts.

        Args:
            loss: one number, without the factor of a loss scale. Report a tensor of a graph in the `tf.function` that
                makes the step.
        """
        self._losses.report(loss)

    def forget_losses(self) -> None:
        """Forget what `report_loss` got, for a step that is left out."""
        self._losses.forget()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()` made with the same policy; losses reported before are forgotten.

        Raises:
            ValueError: keys are missing, or the state is of another policy or of groups. Nothing is changed.
        """
        super().load_state_dict(state)
        self.forget_losses()

    def __repr__(self) -> str:
        return f"GradientClipper({self.policy!r}, response={self.response!r})"

    def _decide_on(self, values: Sequence[Tensor], losses: Tensor, only: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Measure and decide, here or in the graph being traced.

        Args:
            values: of the gradients, each in float32 or float64.
            losses: of the step, shape (n,).
            only: the step has no other loss.

        Returns:
            What to do with the gradients (KEPT, ...), the coefficient, float64, and the norm before clipping.
        """
        _require_python()
        exact, norm = total_norm(values)
        decide = partial(self._decide, single=norm.dtype == tf.float32, only=only)
        action, coefficient = tf.numpy_function(decide, [exact, losses], [tf.int32, tf.float64])
        return tf.ensure_shape(action, ()), tf.ensure_shape(coefficient, ()), norm

    def _decide(self, norm: Any, losses: Any, *, single: bool, only: bool) -> tuple[Any, Any]:
        """Decide on one step and record it. Only here does the policy learn.

        Args:
            norm: of all gradients.
            losses: reported with the step; the host may know more.
            single: the gradients are in float32 or narrower.
            only: the step has no other losses than these.
        """
        norm = float(norm)
        if only:
            self._losses.forget()
        loss = self._losses.mean_with(losses)
        finite = isfinite(norm)
        if not finite:
            self._history.meet_nonfinite("the norm of all together", self.on_nonfinite)
        decision = self._controller.decide(norm, loss)
        skipped_by = None if self._rule is None else self._history.ask(self._rule, norm, loss)
        own = decision.clipped_norm == 0 < norm if finite else self.on_nonfinite == "skip"
        skipped = own or skipped_by is not None
        action, coefficient = KEPT, 1.0
        if skipped:
            action, coefficient = SKIPPED, 0.0
        elif not finite and self.on_nonfinite == "zero":
            action, coefficient = ZEROED, 0.0
        elif decision.clipped:
            action, coefficient = scaling(norm, decision.clipped_norm, single)
        self._history.add(
            {ALL: decision},
            decision.phase,
            norm,
            decision.threshold,
            coefficient,
            decision.clipped,
            skipped=skipped,
            loss=loss,
            skipped_by=skipped_by or decision.skipped_by if skipped else None,
        )
        return np.int32(action), np.float64(coefficient)


def _require_python() -> None:
    """Raise if Python cannot be called, or would be called once for each replica.

    Raises:
        RuntimeError: the graph is for XLA, or this is one replica of several.
    """
    if not tf.executing_eagerly() and GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        raise RuntimeError(
            "a GradientClipper asks its policy in Python, which XLA cannot call: give jit_compile=False to "
            "model.compile() (Keras turns XLA on by itself if there is a GPU), or to tf.function()"
        )
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1 and not tf.distribute.in_cross_replica_context():
        raise RuntimeError(
            f"within one of {replicas} replicas a GradientClipper would see the gradients of that replica only: use a "
            f"strategy of one replica, or clip in cross-replica context after the gradients are summed"
        )
