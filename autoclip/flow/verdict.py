"""Vanishing, healthy or exploding: what the norms of the layers say, and how sure that is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, exp, fsum, isfinite, log, log10, sqrt
from statistics import fmean, median
from typing import Any, Literal

from scipy.special import stdtrit

from autoclip.findings import Finding, Level, span
from autoclip.flow.layers import Sample, by_layer, in_order

DECADES = 3.0
"""Decades between first and last layer that are too many: with one learning rate for all, a layer that moves a
thousandth as far as another is as good as frozen."""

VANISHED = 1e-7
"""Norm below which a layer with weights of order one does not move: float32 tells 1 from 1 + 1.2e-7, no closer."""

EXPLODED = 1e3
"""Norm above which plain SGD at a learning rate of .01 moves a layer by more than 10, the length of many layers'
weights."""

NONFINITE_SHARE = 0.25
"""A larger share of non-finite samples is no search for a loss scale, which overflows once or twice at the start."""

DEAD_SHARE = 0.25
"""A layer whose norm was zero in this last part of the samples is dead."""

CONFIDENCE = 0.95
LEAST_LAYERS = 8
"""With fewer layers one odd norm, as of a head, decides the slope."""

LEAST_SAMPLES = 2
LEAST_FREEDOM = 3

Verdict = Literal["vanishing", "healthy", "exploding", "undetermined"]

WORDS: dict[Verdict, str] = {"undetermined": "too little to tell"}
"""How a verdict is shown, if not by its name."""

LEVELS: dict[Verdict, Level] = {"healthy": "good", "undetermined": "note"}

ADVICE: dict[Verdict, str] = {
    "vanishing": "residual connections, normalisation layers, or an initialisation that suits the activation (He for "
    "ReLU, Xavier for tanh); clipping cannot lengthen a gradient",
    "exploding": "clip (autoclip.attach), and remove the cause: an initialisation with a smaller gain, normalisation "
    "within residual branches, a learning rate that warms up",
}
REVIVE = (
    "dead layers: a lower learning rate or clipping from the first step, as one large step can kill every ReLU and "
    "saturate every tanh; leaky ReLUs; and see that the layer's output reaches the loss"
)


@dataclass(frozen=True, slots=True)
class Slope:
    """Line through log10 of the layers' norms over depth, from 0 (first layer) to 1 (last).

    Attributes:
        decades: the slope: decades by which the norm rises from the first layer to the last; below 0 it falls.
        low: lower end of the 95 % confidence interval.
        high: upper end.
        layers: number of layers that the line was fitted to.
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
        dead_since: step of the first sample from which on every norm was zero, if those are a quarter of the samples or
            more; None: the layer is alive.
    """

    name: str
    norm: float | None
    dead_since: int | None


@dataclass(frozen=True, slots=True)
class GradientFlow:
    """The verdict on a run, and its evidence; `str()` gives both.

    Attributes:
        verdict: "vanishing", "healthy", "exploding" or "undetermined".
        layers: in forward order.
        slope: None: fewer than eight layers are alive.
        ratio: norm of the last living layer over that of the first: above 1 it rises. Unlike the slope it compares
            layers of any role. None: no layer is alive.
        level: median of the layers' norms; None: no layer has one.
        peak: largest finite norm of a layer in any sample; None: no norm is finite.
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
        """Name of each dead layer -> step since which it is dead."""
        return {layer.name: layer.dead_since for layer in self.layers if layer.dead_since is not None}

    @property
    def advice(self) -> str:
        """What to do; empty if there is nothing to say."""
        only_dead = self.verdict == "vanishing" and _judged(self.slope, self.level) != "vanishing"
        about_all = [ADVICE[self.verdict]] if self.verdict in ADVICE and not only_dead else []
        return "; ".join(about_all + [REVIVE] * bool(self.dead_layers))

    @property
    def words(self) -> str:
        """The verdict as it is shown."""
        return WORDS.get(self.verdict, self.verdict)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values, the layers included."""
        return asdict(self)

    @property
    def evidence(self) -> str:
        """What the verdict rests on."""
        samples = "1 sample, of step" if self.samples == 1 else f"{self.samples} samples of steps {self.first_step} to"
        return "; ".join([f"{samples} {self.last_step}", *_grounds([self])])

    def __str__(self) -> str:
        told = f"{self.words}: {self.evidence}"
        return f"{told}. What helps: {self.advice}" if self.advice else told


def flow_findings(flows: Mapping[str, GradientFlow]) -> list[Finding]:
    """The verdicts on runs; those with the same one share a sentence, with ranges for figures.

    Args:
        flows: run's label -> its verdict.
    """
    alike: dict[Verdict, dict[str, GradientFlow]] = {}
    for label, flow in flows.items():
        alike.setdefault(flow.verdict, {})[label] = flow
    found = []
    for verdict, own in alike.items():
        advice = "; ".join(dict.fromkeys(flow.advice for flow in own.values() if flow.advice))
        text = (
            f"{', '.join(own)}: gradient flow {WORDS.get(verdict, verdict)}: {'; '.join(_grounds(list(own.values())))}"
        )
        helps = f". What helps: {advice}" if advice else ""
        found.append(Finding(LEVELS.get(verdict, "bad"), f"{text}{helps}", {"runs": list(own), "verdict": verdict}))
    return found


def diagnose(samples: Iterable[Sample], order: Sequence[str] | None = None) -> GradientFlow:
    """Judge how the gradient flows, from the norms of parameters at some steps of a run.

    The norms of a layer (weight and bias together) are averaged over the finite samples as log10, so that a spike
    counts by its decades. A line is fitted to these over depth d, 0 for the first layer and 1 for the last:

        log10 norm = level of the layer's role + slope * d + error

    The fit is least squares, with a 95 % interval from the t distribution. Layers have the same role if their names
    differ in numbers only (blocks.0.fc, blocks.1.fc). So convolutions are compared with convolutions, and an embedding
    or a head, whose norms differ by nature, does not tilt the line. One level is fitted to all layers if that leaves
    fewer than three degrees of freedom, or half of the layers alone in their role. The interval takes the layers'
    errors for independent and of one spread. Neighbours deviate together, so it is rather too narrow; therefore the
    slope has to be large as well as certain:

        undetermined there are fewer than eight layers, or there is one sample
        exploding    more than a quarter of the samples, or the last, are not finite; or the slope is below -3 decades
                     (the norm grows a thousandfold on its way back to the first layer), its interval below 0; or the
                     median layer's norm lies above 1e3; or layers are dead, after a norm above 1e3
        vanishing    the slope is above 3 decades, its interval above 0; or the median layer's norm lies below 1e-7; or
                     layers are dead: their norm was exactly zero in the last quarter of the samples
        undetermined none of these, and the slope is that large and not certain, or fewer than eight layers are alive
        healthy      otherwise

    in this order. A layer counts if its parameters have gradients, even zero ones (dead). Slope and level need eight
    living layers. Dead layers and samples that are not finite are reported in any case.

    Why both slope and level: in a ReLU network without normalisation the product of a layer's weights and their
    gradient is the same sum for every layer, so that a large initialisation lifts all norms together and leaves no
    slope. The levels assume a loss of order one that is a mean over the batch. What a recurrent network does over time
    is not seen: its steps share their weights.

    Args:
        samples: of steps in ascending order. Norms are those before clipping, of one clipper in mode "norm" with
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
    if len(names) < LEAST_LAYERS or len(measured) < LEAST_SAMPLES:
        verdict = "undetermined"
    elif nonfinite > NONFINITE_SHARE * len(measured) or not is_finite[-1]:
        verdict = "exploding"
    elif verdict != "exploding" and any(layer.dead_since is not None for layer in layers):
        verdict = "exploding" if peak is not None and peak > EXPLODED else "vanishing"
    return GradientFlow(
        verdict=verdict,
        layers=layers,
        slope=slope,
        ratio=along[-1] / along[0] if along else None,
        level=level,
        peak=peak,
        samples=len(measured),
        nonfinite_samples=nonfinite,
        first_step=measured[0][0],
        last_step=measured[-1][0],
    )


def _judged(slope: Slope | None, level: float | None) -> Verdict:
    """The verdict by slope and level alone."""
    if slope is None or level is None:
        return "undetermined"
    is_certain = slope.low > 0 or slope.high < 0
    if (is_certain and slope.decades <= -DECADES) or level > EXPLODED:
        return "exploding"
    if (is_certain and slope.decades >= DECADES) or level < VANISHED:
        return "vanishing"
    return "undetermined" if abs(slope.decades) >= DECADES else "healthy"


def _layer(name: str, norms: Sequence[tuple[int, float]]) -> Layer:
    positive = [log(norm) for _, norm in norms if norm > 0]
    zeros = 0
    while zeros < len(norms) and norms[-1 - zeros][1] == 0:
        zeros += 1
    dead = zeros > 0 and (zeros == len(norms) or zeros >= max(2, ceil(DEAD_SHARE * len(norms))))
    return Layer(name, exp(fmean(positive)) if positive else None, norms[-zeros][0] if dead else None)


def _slope(names: Sequence[str], norms: Mapping[str, float]) -> Slope | None:
    """The line through the living layers, at their depth among all."""
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


def _grounds(flows: Sequence[GradientFlow]) -> list[str]:
    """What one verdict on runs rests on, as ranges over them: what is missing, slope, level, and what is broken."""
    found = []
    few = [len(flow.layers) for flow in flows if len(flow.layers) < LEAST_LAYERS]
    single = any(flow.samples < LEAST_SAMPLES for flow in flows)
    if few:
        found.append(f"{span(few, 'd')} layer{'' if max(few) == 1 else 's'}, {LEAST_LAYERS} are needed")
    if single:
        found.append(f"one sample, {LEAST_SAMPLES} are needed")
    slopes = [flow.slope for flow in flows if flow.slope is not None]
    if flows[0].verdict == "undetermined" and not few and not single:
        found.append("the slope is not certain" if slopes else f"fewer than {LEAST_LAYERS} layers are alive")
    if slopes:
        found.append(
            f"from first to last of {span([len(flow.layers) for flow in flows], 'd')} layers {_change(slopes)}"
        )
    levels = [flow.level for flow in flows if flow.level is not None]
    if levels:
        found.append(f"median layer {span(levels, '.1e')}")
    peaks = [flow.peak for flow in flows if flow.peak is not None and flow.peak > EXPLODED]
    if peaks:
        found.append(f"largest {span(peaks, '.1e')}")
    dead = [flow.dead_layers for flow in flows if flow.dead_layers]
    if dead:
        found.append(_dead(dead[0]) if len(flows) == 1 else f"{span(list(map(len, dead)), 'd')} dead layers")
    broken = [flow for flow in flows if flow.nonfinite_samples]
    if broken:
        counts, samples = [flow.nonfinite_samples for flow in broken], [flow.samples for flow in broken]
        found.append(f"not finite in {span(counts, 'd')} of {span(samples, 'd')} samples")
    return found


def _change(slopes: Sequence[Slope]) -> str:
    """By how much the norm changes from the first layer to the last, and in which direction."""
    decades = [slope.decades for slope in slopes]
    if min(decades) < 0 < max(decades):
        return f"the norm changes by {span(decades, '+.1f')} decades (+: it rises, -: it falls)"
    told = f"the norm {'rises' if max(decades) > 0 else 'falls'} by {span(list(map(abs, decades)), '.1f')} decades"
    if len(slopes) > 1:
        return told
    return f"{told} (slope {decades[0]:+.1f}, 95 % interval {slopes[0].low:+.1f} to {slopes[0].high:+.1f})"


def _dead(layers: Mapping[str, int]) -> str:
    shown = [f"{name} since step {step}" for name, step in list(layers.items())[:3]]
    more = f" and {len(layers) - len(shown)} more" if len(layers) > len(shown) else ""
    return f"{len(layers)} dead {'layer' if len(layers) == 1 else 'layers'}: {', '.join(shown)}{more}"
