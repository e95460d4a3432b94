"""The steps of a training loop as lines that a person reads."""

import sys
from collections.abc import Callable

from autoclip.records import ClipRecord, Sink, rate_text
from autoclip.sinks.scalars import Scalars, Watched


class ConsoleSink(Sink):
    """Prints one line of plain text every `every` steps.

        step     99  loss 0.53 (max 4.2)  norm 12.3 (max 873) -> 4.1  threshold 4.08  clipped 52% (45% of all)  left 71%

    Norms are means over the steps of the line, before and after clipping. "clipped" is the share of the last hundred
    active steps (or of the line's, if those are more), then of all. "left" is the mean coefficient of all active steps.
    Until a step is active the line says "warm-up". Numbers that were not finite are counted, not averaged.

    Args:
        every: steps of a line.
        say: gets each line, as `print` or a logger's `info`; None writes to stderr.

    Raises:
        ValueError: `every` is not a whole number >= 1.
    """

    def __init__(self, every: int = 50, say: Callable[[str], object] | None = None) -> None:
        self.say = say
        self._scalars = Scalars(every)
        self._phase = "warmup"
        self._unusual: dict[str, float] = {}  # numbers of non-finite and skipped steps that were told

    def watch(self, clipper: Watched) -> None:
        """Take the overall clip rate from this clipper; it survives a resume."""
        self._scalars.watch(clipper)

    def log(self, record: ClipRecord) -> None:
        """Take the record of one step."""
        self._phase = record.phase
        self._tell(record.step, self._scalars.take(record))

    def close(self) -> None:
        """Print what is left."""
        self._tell(*self._scalars.rest())

    def _tell(self, step: int, scalars: dict[str, float]) -> None:
        if not scalars:
            return
        line = self._line(step, scalars)
        if self.say is None:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - this is what the sink is for
        else:
            self.say(line)

    def _line(self, step: int, scalars: dict[str, float]) -> str:
        parts = [f"step {step:>6}"]
        if "loss" in scalars:
            parts.append(f"loss {_with_extreme(scalars, 'loss')}")
        if "total_norm" in scalars:
            parts.append(f"norm {_with_extreme(scalars, 'total_norm')} -> {scalars['clipped_norm']:.3g}")
        parts.append(f"threshold {scalars['threshold']:.3g}" if "threshold" in scalars else "threshold none")
        if self._phase == "warmup":
            parts.append("warm-up")
        else:
            recent, overall = (rate_text(scalars.get(name), 0) for name in ("recent_clip_rate", "clip_rate"))
            parts.append(f"clipped {recent} ({overall} of all)")
            parts.append(f"left {rate_text(scalars.get('mean_coefficient'), 0)}")
        counts = ("nonfinite_steps", "skipped_steps", "skipped_by_norm", "skipped_by_loss")
        unusual = {name: scalars.get(name, 0.0) for name in counts}
        nonfinite, skipped, *by = (count - self._unusual.get(name, 0.0) for name, count in unusual.items())
        if nonfinite > 0:
            parts.append(f"norm not finite in {nonfinite:.0f}")
        if skipped > 0:
            why = [f"{count:.0f} by {name}" for name, count in zip(("norm", "loss"), by, strict=True) if count > 0]
            parts.append(f"skipped {skipped:.0f}" + (f" ({', '.join(why)})" if why else ""))
        self._unusual = unusual
        return "  ".join(parts)

    def __repr__(self) -> str:
        return f"ConsoleSink(every={self._scalars.every})"


def _with_extreme(scalars: dict[str, float], name: str) -> str:
    extreme = scalars.get(f"{name}_max", scalars[name])
    mean = f"{scalars[name]:.3g}"
    return mean if f"{extreme:.3g}" == mean else f"{mean} (max {extreme:.3g})"
