"""Place names beside points; no name covers another name or point."""

from collections.abc import Sequence
from itertools import product
from math import cos, pi, sin
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from autoclip.pictures.picture import DPI, plain

DISTANCES = (5.0, 9.0, 14.0, 20.0, 27.0, 35.0, 44.0)
"""Distances from the mark, in points, at which a name is tried, nearest first."""
FAR = 9.0
"""Names further away than this get a line to their mark."""
LEADER = "#666666"
"""Colour of these lines; they are dotted, so that they do not look like error bars."""
DIRECTIONS = tuple(pi / 4 * turn for turn in (1, 0, 7, 3, 5, 4, 2, 6))
MARK, LARGE_MARK = 3.5, 8.0
"""Half the width of a mark, in points."""

Point = tuple[float, float]


def place_labels(
    axes: Axes,
    points: Sequence[Point],
    names: Sequence[str],
    colours: Sequence[str],
    size: float,
    large: Sequence[int] = (),
) -> list[str]:
    """Write each name beside its point, inside the axes and covering nothing; the first names come first.

    The axes must have their final limits.

    Args:
        axes: of a figure.
        points: in the units of the axes.
        names: of the points.
        colours: of the names.
        size: of the type, in points.
        large: positions of the points that have a ring.

    Returns:
        The names that found no room.
    """
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # nothing moves from here on
    dot = DPI / 72
    marks: list[Point] = [(float(x), float(y)) for x, y in axes.transData.transform(points)]
    halves = [dot * (LARGE_MARK if place in large else MARK) for place in range(len(marks))]
    taken = [
        Bbox.from_extents(x - half, y - half, x + half, y + half) for (x, y), half in zip(marks, halves, strict=True)
    ]
    inside = axes.get_window_extent()
    without_room = []
    for place, (name, colour, point) in enumerate(zip(names, colours, points, strict=True)):
        text = axes.annotate(plain(name), point, fontsize=size, color=colour)
        extent = text.get_window_extent()
        text.remove()
        others = taken[:place] + taken[place + 1 :]
        ring = halves[place] - MARK * dot
        found = _free_place(marks, place, (extent.width, extent.height), dot, ring, others, inside)
        if found is None:
            without_room.append(name)
            continue
        box, far = found
        taken.append(box)
        x, y = marks[place]
        start = _nearest(box, (x, y))
        line: dict[str, Any] = {"arrowstyle": "-", "color": LEADER, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 2}
        line["linestyle"] = (0, (1, 1.5))
        line["relpos"] = (start[0] - box.x0) / box.width, (start[1] - box.y0) / box.height
        axes.annotate(
            plain(name),
            point,
            xytext=((box.x0 - x) / dot, (box.y0 - y) / dot),
            textcoords="offset points",
            fontsize=size,
            color=colour,
            zorder=6,
            arrowprops=line if far else None,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )
    return without_room


def _free_place(
    marks: Sequence[Point],
    place: int,
    size: Point,
    dot: float,
    ring: float,
    others: Sequence[Bbox],
    inside: Bbox,
) -> tuple[Bbox, bool] | None:
    """The nearest box beside a mark that overlaps nothing, and whether it needs a line to its mark."""
    x, y = marks[place]
    width, height = size
    for distance, angle in product(DISTANCES, DIRECTIONS):
        right, up = cos(angle), sin(angle)
        # The box touches a circle around the mark with the side or corner that faces it.
        away = distance * dot + ring
        x0 = x + away * right + (0 if right > 0.1 else -width if right < -0.1 else -width / 2)
        y0 = y + away * up + (0 if up > 0.1 else -height if up < -0.1 else -height / 2)
        box = Bbox.from_bounds(x0, y0, width, height)
        if not (inside.x0 < box.x0 and box.x1 < inside.x1 and inside.y0 < box.y0 and box.y1 < inside.y1):
            continue
        if any(box.overlaps(other) for other in [*others, Bbox.from_extents(x, y, x, y)]):
            continue
        far = distance > FAR
        if far and not any(_crosses((x, y), _nearest(box, (x, y)), other) for other in others):
            return box, True
        nearest = min(range(len(marks)), key=lambda index: _apart(box, marks[index]))
        if not far and nearest == place:
            return box, False
    return None


def _nearest(box: Bbox, point: Point) -> Point:
    """The point of a box that is nearest to another."""
    return min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)


def _apart(box: Bbox, point: Point) -> float:
    x, y = _nearest(box, point)
    return (x - point[0]) ** 2 + (y - point[1]) ** 2


def _crosses(start: Point, end: Point, box: Bbox) -> bool:
    """Return True if a line runs through a box, to a twelfth of its length."""
    return any(
        box.contains(start[0] + part / 12 * (end[0] - start[0]), start[1] + part / 12 * (end[1] - start[1]))
        for part in range(1, 13)
    )
