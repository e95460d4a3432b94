"""Vanishing, healthy or exploding: what the norms of the layers say, and how sure that is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, exp, fsum, isfinite, log, log10, sqrt
from statistics import fmean, median
from typing import Any, Literal

from scipy.special import stdtrit

from autoclip.flow.layers import Sample, by_layer, in_order

DECADES = 3.0
"""So many decades between first and last layer are too many: with one learning rate for all, a layer that is moved by
a thousandth of another's is as good as frozen."""

VANISHED = 1e-7
"""Norm below which a layer with weights of order one does not move: float32 tells 1 from 1 + 1.2e-7, no closer."""

EXPLODED = 1e3
"""Norm above which plain SGD at a learning rate of .01 moves a layer by more than 10, the length of many layers'
weights."""

NONFINITE_SHARE = 0.25
"""More non-finite samples than this are no search for a loss scale, which overflows once or twice at the start."""

DEAD_SHARE = 0.25
"""A layer whose norm was zero in this last part of the samples is dead."""

CONFIDENCE = 0.95
LEAST_LAYERS = 3
LEAST_FREEDOM = 3

Verdict = Literal["vanishing", "healthy", "exploding", "undetermined"]

ADVICE: dict[Verdict, str] = {
    "vanishing": "residual connections, normalisation layers, or an initialisation that suits the activation (He for "
    "ReLU, Xavier for tanh); clipping cannot lengthen a gradient",
    "healthy": "nothing",
    "exploding": "clip (autoclip.attach), and remove the cause: an initialisation with a smaller gain, normalisation "
    "within residual branches, a learning rate that warms up",
    "undetermined": f"samples of more steps; a verdict needs at least {LEAST_LAYERS} layers that have a gradient",
}
REVIVE = (
    "dead layers: a lower learning rate or clipping from the first step, as one large step can kill every ReLU and "
    "saturate every tanh; leaky ReLUs; and see that the layer's output reaches the loss"
)


@dataclass(frozen=True, slots=True)
class Slope:
    """Line through log10 of the layers' norms over depth, which runs from 0 (first layer) to 1 (last).

    Attributes:
        decades: slope: decades by which the norm rises from the first layer to the last; below 0: it falls.
        low: lower end of the 95 % confidence interval.
        high: upper end.
        layers: number that the line was fitted to.
    """

    decades: float
    low: float
    high: float
    layers: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer over all samples.

    Attributes:
        name: of the layer.
        norm: geometric mean of its norms above zero; None: there was none.
        dead_since: step of the first sample from which on every norm was zero, where those are a quarter of the samples
            or more; None: the layer is alive.
    """

    name: str
    norm: float | None
    dead_since: int | None


@dataclass(frozen=True, slots=True)
class GradientFlow:
    """The verdict on a run, and its evidence; `str()` tells both.

    Attributes:
        verdict: "vanishing", "healthy", "exploding" or "undetermined".
        layers: in forward order.
        slope: None: fewer than three layers have a gradient.
        ratio: norm of the first layer that is alive over that of the last; None: there is none.
        level: median of the layers' norms; None: there is none.
        peak: largest norm of a layer in any sample; None: there is none that is finite.
        samples: number of steps that were measured.
        nonfinite_samples: number of those in which a layer's norm was not finite.
        first_step: of the first sample.
        last_step: of the last.
    """

    verdict: Verdict
    layers: tuple[Layer, ...]
    slope: Slope | None
    ratio: float | None
    level: float | None
    peak: float | None
    samples: int
    nonfinite_samples: int
    first_step: int
    last_step: int

    @property
    def dead_layers(self) -> dict[str, int]:
        """Name of each dead layer -> step since which it is."""
        return {layer.name: layer.dead_since for layer in self.layers if layer.dead_since is not None}

    @property
    def advice(self) -> str:
        """What to do."""
        return "; ".join(([ADVICE[self.verdict]] if not self._only_dead else []) + [REVIVE] * bool(self.dead_layers))

    @property
    def _only_dead(self) -> bool:
        """Whether the verdict rests on dead layers alone."""
        return self.verdict == "vanishing" and _judged(self.slope, self.level) in ("healthy", "undetermined")

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values, the layers included."""
        return asdict(self)

    @property
    def evidence(self) -> str:
        """What the verdict rests on."""
        found = []
        if self.slope is not None:
            slope, direction = self.slope, "rises" if self.slope.decades >= 0 else "falls"
            sign = 1 if slope.decades >= 0 else -1
            low, high = sorted((sign * slope.low, sign * slope.high))
            found.append(
                f"from first to last of {len(self.layers)} layers the norm {direction} by {abs(slope.decades):.1f} "
                f"decades (95 % interval {low:.1f} to {high:.1f})"
            )
        if self.ratio is not None:
            found.append(f"first to last {self.ratio:.1e}")
        if self.level is not None:
            found.append(f"median layer {self.level:.1e}")
        if self.peak is not None and self.peak > EXPLODED:
            found.append(f"largest {self.peak:.1e}")
        if self.dead_layers:
            found.append(_dead(self.dead_layers))
        if self.nonfinite_samples:
            found.append(f"not finite in {self.nonfinite_samples} of them")
        samples = "1 sample, of step" if self.samples == 1 else f"{self.samples} samples of steps {self.first_step} to"
        return "; ".join([f"{samples} {self.last_step}", *found])

    def __str__(self) -> str:
        told = f"{self.verdict}: {self.evidence}"
        return told if self.verdict == "healthy" else f"{told}. What helps: {self.advice}"


def diagnose(samples: Iterable[Sample], order: Sequence[str] | None = None) -> GradientFlow:
    """Judge how the gradient flows, from the norms of parameters at some steps of a run.

    The norms of a layer (weight and bias together) are averaged over the finite samples as log10, so that a spike
    counts by its decades. A line is fitted to these over depth d, 0 for the first layer and 1 for the last:

        log10 norm = level of the layer's role + slope * d + error

    by least squares, with a 95 % interval from the t distribution. Layers have the same role where their names differ
    in numbers only (blocks.0.fc, blocks.1.fc): so convolutions are compared with convolutions, and an embedding or a
    head, which have other norms by nature, do not tilt the line. Where that leaves fewer than three degrees of freedom,
    or half of the layers alone in their role, one level is fitted to all. The interval takes the layers' errors for
    independent and of one spread; neighbours deviate together, so it is rather too narrow, which is why the size of the
    slope has to be large as well as certain:

        exploding    more than a quarter of the samples, or the last, are not finite; or the slope is below -3 decades
                     (the norm grows a thousandfold on its way back to the first layer), its interval below 0; or the
                     median layer's norm lies above 1e3; or layers are dead, after a norm above 1e3
        vanishing    the slope is above 3 decades, its interval above 0; or the median layer's norm lies below 1e-7; or
                     layers are dead: their norm was exactly zero in the last quarter of the samples
        undetermined none of these, and fewer than three layers have a gradient, or the slope is that large and not
                     certain
        healthy      otherwise

    in this order. Both kinds of evidence are needed: in a ReLU network without normalisation the product of a layer's
    weights and their gradient is the same sum for every layer, so that a large initialisation lifts all norms together
    and leaves no slope. The levels suppose a loss of order one that is a mean over the batch. What a recurrent network
    does over time is not seen: its steps share their weights.

    Args:
        samples: of steps in ascending order; norms are those before clipping, of one clipper in mode "norm" with
            `norm_type=2`.
        order: names of the parameters (or layers) in forward order, see `forward_order`; None: that of the samples.

    Raises:
        ValueError: there are no samples, or the order names none of the layers.
    """
    measured = [(sample.step, by_layer(sample.norms)) for sample in samples]
    names = in_order(dict.fromkeys(name for _, norms in measured for name in norms), order)
    if not names:
        raise ValueError("there are no norms of layers to judge: log them every few steps first")
    is_finite = [all(isfinite(norm) for norm in norms.values()) for _, norms in measured]
    finite = [sample for sample, well in zip(measured, is_finite, strict=True) if well]
    layers = tuple(_layer(name, [(step, norms[name]) for step, norms in finite if name in norms]) for name in names)
    alive = {layer.name: layer.norm for layer in layers if layer.norm is not None and layer.dead_since is None}
    slope = _slope(names, alive)
    level = median(alive.values()) if alive else None
    along = list(alive.values())
    peak = max((norm for _, norms in finite for norm in norms.values()), default=None)
    nonfinite = len(measured) - len(finite)
    verdict = _judged(slope, level)
    if nonfinite > NONFINITE_SHARE * len(measured) or not is_finite[-1]:
        verdict = "exploding"
    elif verdict != "exploding" and any(layer.dead_since is not None for layer in layers):
        verdict = "exploding" if peak is not None and peak > EXPLODED else "vanishing"
    return GradientFlow(
        verdict=verdict,
        layers=layers,
        slope=slope,
        ratio=along[0] / along[-1] if along else None,
        level=level,
        peak=peak,
        samples=len(measured),
        nonfinite_samples=nonfinite,
        first_step=measured[0][0],
        last_step=measured[-1][0],
    )


def _judged(slope: Slope | None, level: float | None) -> Verdict:
    """The verdict by profile and level, without regard to dead layers and samples that are not finite."""
    certain = slope is not None and (slope.low > 0 or slope.high < 0)
    decades = slope.decades if slope is not None else 0.0
    if (certain and decades <= -DECADES) or (level is not None and level > EXPLODED):
        return "exploding"
    if (certain and decades >= DECADES) or (level is not None and level < VANISHED):
        return "vanishing"
    return "undetermined" if slope is None or abs(decades) >= DECADES else "healthy"


def _layer(name: str, norms: Sequence[tuple[int, float]]) -> Layer:
    positive = [log(norm) for _, norm in norms if norm > 0]
    zeros = 0
    while zeros < len(norms) and norms[-1 - zeros][1] == 0:
        zeros += 1
    dead = zeros > 0 and (zeros == len(norms) or zeros >= max(2, ceil(DEAD_SHARE * len(norms))))
    return Layer(name, exp(fmean(positive)) if positive else None, norms[-zeros][0] if dead else None)


def _slope(names: Sequence[str], norms: Mapping[str, float]) -> Slope | None:
    """The line through the layers that are alive, at their depth among all."""
    if len(norms) < LEAST_LAYERS:
        return None
    points = {name: (index / (len(names) - 1), log10(norms[name])) for index, name in enumerate(names) if name in norms}
    roles: dict[str, list[tuple[float, float]]] = {}
    for name, point in points.items():
        roles.setdefault(re.sub(r"\d+", "#", name), []).append(point)
    shared = [role for role in roles.values() if len(role) > 1]
    used = sum(map(len, shared))
    if used - len(shared) - 1 < LEAST_FREEDOM or 2 * used < len(points):
        shared, used = [list(points.values())], len(points)
    around: list[tuple[float, float]] = []
    for role in shared:
        x_mean, y_mean = fmean(x for x, _ in role), fmean(y for _, y in role)
        around += [(x - x_mean, y - y_mean) for x, y in role]
    spread = fsum(x * x for x, _ in around)
    decades = fsum(x * y for x, y in around) / spread
    freedom = used - len(shared) - 1
    variance = fsum((y - decades * x) ** 2 for x, y in around) / freedom
    margin = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * sqrt(variance / spread)
    return Slope(decades, decades - margin, decades + margin, used)


def _dead(layers: Mapping[str, int]) -> str:
    shown = [f"{name} since step {step}" for name, step in list(layers.items())[:3]]
    more = f" and {len(layers) - len(shown)} more" if len(layers) > len(shown) else ""
    return f"{len(layers)} dead {'layer' if len(layers) == 1 else 'layers'}: {', '.join(shown)}{more}"
