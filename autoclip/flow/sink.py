"""Collects the norms of the layers during training."""

from collections import deque
from collections.abc import Sequence

from autoclip.flow.layers import Sample
from autoclip.flow.verdict import GradientFlow, diagnose
from autoclip.records import ClipRecord, Sink
from autoclip.sinks.scalars import Watched, checked_every
from autoclip.warn_once import WarnOnce


class FlowSink(Sink):
    """Keeps the layers' norms of every `every`-th step, and judges from them how the gradient flows.

    Args:
        every: steps between samples. Each reads from the device the norms that the clipper has measured.
        order: names of the parameters in forward order, see `forward_order`; None: that of registration.
        keep: number of latest samples to keep.

    Raises:
        ValueError: `every` or `keep` is not a whole number >= 1.
    """

    def __init__(self, every: int = 50, order: Sequence[str] | None = None, keep: int = 1000) -> None:
        self.every = checked_every("every", every)
        self.order = order
        self.samples: deque[Sample] = deque(maxlen=checked_every("keep", keep))
        self._watched: Watched | None = None
        self._warn_once = WarnOnce()

    def watch(self, clipper: Watched) -> None:
        """Read the norms of this clipper."""
        self._watched = clipper

    def log(self, record: ClipRecord) -> None:
        """Take a sample if the step is due."""
        while self.samples and self.samples[-1].step >= record.step:  # the loop was set back
            self.samples.pop()
        if record.step % self.every:
            return
        if self._watched is None:
            self._warn_once("unwatched", "the sink knows no clipper to read norms from: call its watch(clipper)")
            return
        norms = self._watched.layer_norms()
        if norms:
            self.samples.append(Sample(record.step, dict(norms)))

    def verdict(self) -> GradientFlow:
        """Judge the samples, see `diagnose`.

        Raises:
            ValueError: there are no samples yet, or the order names none of the layers.
        """
        return diagnose(self.samples, self.order)
