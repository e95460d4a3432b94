"""The part of a run's page on its spikes: a table, and pictures of the layers around them."""

from collections.abc import Sequence
from math import inf, isfinite

import numpy as np
from matplotlib.colors import TwoSlopeNorm

from autoclip.findings import Table
from autoclip.flow.layers import by_layer
from autoclip.pictures.picture import (
    COLOURS,
    SMALL,
    Picture,
    new_figure,
    over_steps,
    plain,
    png_of,
    positive,
)
from autoclip.report.page import Block
from autoclip.report.spikes import Spikes
from autoclip.spikes import SpikeEvent
from autoclip.spikes.event import flat, some

EXPLAINED = (
    "Each row is a layer, each column a step, and the colour its norm over its own median before the spike (black: not "
    "finite). The line is the total norm, on a logarithmic axis of its own. Shown are the largest."
)
MOST_DRAWN = 6
"""Pictures of events on a page: of those whose norm rose most."""
MOST_LAYERS = 40
MOST_ROWS = 50
"""Events in the table."""
DECADES = (-1.0, 2.0)
"""Range of the colours, in decades around a layer's own median."""


def spike_blocks(spikes: Sequence[Spikes]) -> tuple[list[Block], list[Picture]]:
    """The blocks of the part, and its pictures; none where nothing stood out."""
    events = [(one.label, event) for one in spikes for event in one.events]
    if not events:
        return [], []
    blocks: list[Block] = [("heading", "Spikes"), ("table", _table(events, several=len(spikes) > 1))]
    drawn = sorted(events, key=lambda pair: -_size(pair[1]))[:MOST_DRAWN]
    pictures = [picture for label, event in drawn if (picture := layers_picture(label, event)) is not None]
    if pictures:
        blocks += [("paragraph", EXPLAINED), ("figures", pictures)]
    notes = dict.fromkeys(one.note for one in spikes if one.note and one.events)
    blocks += [("paragraph", f"{note[0].upper()}{note[1:]}.") for note in notes]
    return blocks, pictures


def layers_picture(label: str, event: SpikeEvent) -> Picture | None:
    """Norm of each layer over its own median, step by step around an event; None: layers are unknown."""
    rows, columns = [], event.norms.items()
    for place, _ in enumerate(event.steps):
        rows.append(by_layer({name: norms[place] for name, norms in columns if place < len(norms)}))
    medians = by_layer(dict(event.medians))
    layers = [name for name, middle in medians.items() if middle > 0]
    if not layers:
        return None
    at = [line["step"] for line in event.steps].index(event.step)
    most = sorted(layers, key=lambda name: -_known(rows[at].get(name)) / medians[name])[:MOST_LAYERS]
    layers = [name for name in layers if name in most]
    ratios = np.array([[_known(row.get(name), np.nan) / medians[name] for row in rows] for name in layers])
    decades = np.log10(positive(ratios))
    figure, axes = new_figure(1.9 + 0.13 * len(layers))
    steps = [line["step"] for line in event.steps]
    axes.grid(visible=False)
    axes.set_facecolor("black")
    image = axes.imshow(
        np.clip(decades, *DECADES),
        aspect="auto",
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0.0, *DECADES),
        extent=(steps[0] - 0.5, steps[-1] + 0.5, len(layers) - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.set_yticks(range(len(layers)), [plain(name) for name in layers], fontsize=SMALL - 2)
    axes.axvline(event.step - 0.5, color="black", linewidth=0.8, linestyle=":")
    over_steps(figure, [], "layer")
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1, 2], pad=0.02)
    bar.ax.set_yticklabels(["0.1", "1", "10", "100"], fontsize=SMALL - 1)
    bar.set_label("times its median", fontsize=SMALL)
    above = axes.twinx()
    totals = np.array([np.nan if line["total_norm"] is None else line["total_norm"] for line in event.steps])
    above.plot(steps, positive(totals), color=COLOURS[4], linewidth=1.4)
    above.set_yscale("log")
    above.set_yticks([])
    above.minorticks_off()
    return Picture(
        name=f"spike_{''.join(one if one.isalnum() else '_' for one in label)}_{event.step}",
        title=f"{label}, step {event.step}",
        caption=str(event),
        alt=f"Norms of {len(layers)} layers in {len(steps)} steps around step {event.step}.",
        png=png_of(figure),
    )


def _table(events: Sequence[tuple[str, SpikeEvent]], *, several: bool) -> Table:
    rows = []
    for label, event in events[:MOST_ROWS]:
        line = event.at
        done = "left out" if line["skipped"] else f"to {line['threshold']:.3g}" if line["clipped"] else "-"
        batch = some(flat(event.batch), 2) or "-"
        rows.append(
            [
                f"{label}, step {event.step}" if several else f"step {event.step}",
                event.kind,
                f"{event.norm:.3g}" if isfinite(event.norm) else "not finite",
                "-" if event.ratio is None else f"{event.ratio:.3g}",
                "-" if line["loss"] is None else f"{line['loss']:.3g}",
                event.first or "-",
                event.named or "-",
                batch,
                done if event.rewound_to is None else f"back to {event.rewound_to}",
                str(len(event.further)),
            ]
        )
    caption = (
        "First: what stood out first, norm or loss. Suspect: what the evidence names first. Further: steps of the 32 "
        "after it that stood out too."
    )
    if len(events) > MOST_ROWS:
        caption += f" {len(events) - MOST_ROWS} more are not shown."
    names = ("event", "kind", "norm", "times median", "loss", "first", "suspect", "batch", "clipped", "further")
    return Table(names, rows, caption)


def _size(event: SpikeEvent) -> float:
    return inf if event.ratio is None else event.ratio


def _known(norm: float | None, otherwise: float = 0.0) -> float:
    return otherwise if norm is None or not isfinite(norm) else norm
