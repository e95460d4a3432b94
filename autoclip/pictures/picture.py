"""Pictures for a page: small, with large type, so that a phone shows them well, and white in every colour scheme."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray
from PIL import Image  # matplotlib needs it too

WIDTH, HEIGHT, DPI = 5.0, 3.4, 216
"""Inches, and dots per inch: 1080 dots wide."""

SCREEN_DPI = DPI // 2
"""Dots per inch on a screen; a fine screen shows two dots for one."""

SMALL, MEDIUM = 8.5, 9.5
"""Points: tick labels and legends; axis labels. On a phone they come out at 8 and 9 pixels of CSS."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4a00", "#444444")
"""Colours that most colour-blind people can tell apart (after Okabe and Ito)."""

COLUMNS = 500
"""Columns of a decimated line; each keeps its least and its largest value."""

LONGEST_NAME = 30
PALETTE = 128
LARGEST = 1e100
"""Norms or losses beyond this are all drawn alike."""


@dataclass(frozen=True)
class Picture:
    """A finished picture with its texts.

    Attributes:
        name: of its file, without the suffix.
        title: the few words above the caption.
        caption: what the picture shows, and how to read it.
        alt: text for readers who do not see it.
        png: the file's bytes.
        wide: keeps its size on a narrow screen, and scrolls.
    """

    name: str
    title: str
    caption: str
    alt: str
    png: bytes
    wide: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in dots."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width, height


class ShownFigure(Figure):
    """A figure that a notebook shows, with or without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The file's bytes, and its size in dots of a usual screen."""
        width, height = SCREEN_DPI * self.get_size_inches()
        return png_of(self), {"width": round(width), "height": round(height)}


def new_figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes."""
    figure = ShownFigure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes."""
    axes.set_xlabel(x, fontsize=MEDIUM)
    axes.set_ylabel(y, fontsize=MEDIUM)


def put_legend(figure: Figure, entries: Sequence[tuple[Artist, str]], columns: int = 4) -> None:
    """Put the legend above the axes, where it covers nothing; in fewer columns if it would be too wide."""
    if not entries:
        return
    handles, labels = zip(*entries, strict=True)
    for fewer in range(columns, 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside upper center", ncols=fewer, fontsize=SMALL, frameon=False, handlelength=1.5
        )
        if fewer == 1 or legend.get_window_extent().width < 0.98 * figure.bbox.width:
            return
        legend.remove()


def over_steps(figure: Figure, entries: Sequence[tuple[Artist, str]], y: str, columns: int = 4) -> None:
    """Finish a picture over optimizer steps: name the axes, and put the legend."""
    axes = figure.axes[0]
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    label_axes(axes, "optimizer step", y)
    put_legend(figure, entries, columns)


def png_of(figure: Figure) -> bytes:
    """The file's bytes; the same picture gives the same bytes."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return smaller(file.getvalue())


def smaller(png: bytes) -> bytes:
    """The same picture in at most 128 colours: well under half of the bytes."""
    file = BytesIO()
    picture = Image.open(BytesIO(png)).convert("RGB")
    picture.quantize(PALETTE, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()


def plain(text: str, longest: int = LONGEST_NAME) -> str:
    """A name that matplotlib draws as plain text: no formula, one line, kept in legends, and not too long."""
    line = " ".join(text.split())
    if len(line) > longest:
        line = line[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
    line = line.replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def kept(values: NDArray[Any], columns: int = COLUMNS) -> NDArray[np.intp]:
    """Positions that a line needs to look the same: the least and the largest value of each column, ascending.

    No spike is lost: a dropped value lies between two kept neighbours. A column without a finite value
    keeps its first one, so that a gap stays a gap.

    Args:
        values: (n,), NaN and inf: no value.
        columns: at most twice as many positions are kept, and the first and last.
    """
    if len(values) <= 2 * columns:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), columns + 1).astype(np.intp)
    found = {0, len(values) - 1}
    for start, end in pairwise(edges.tolist()):
        at = start + np.flatnonzero(np.isfinite(values[start:end]))
        found |= {int(at[values[at].argmin()]), int(at[values[at].argmax()])} if len(at) else {int(start)}
    return np.array(sorted(found), dtype=np.intp)


def drawable(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values for an axis: NaN for non-finite ones, and within the range in which matplotlib can set margins."""
    return np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), np.nan)


def positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values for a logarithmic axis: NaN for those not finite and above zero."""
    return np.where(values > 0, np.maximum(drawable(values), 1 / LARGEST), np.nan)


def thinned(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The points of a line that are drawn, see `kept`."""
    at = kept(y)
    return x[at], y[at]


def colours(count: int) -> Iterable[str]:
    """Return `count` colours; they repeat after the eighth."""
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
