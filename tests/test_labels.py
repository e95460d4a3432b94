import numpy as np
import pytest
from matplotlib.text import Annotation

from autoclip.pictures.labels import place_labels
from autoclip.pictures.picture import DPI, new_figure


def written(points: list[tuple[float, float]], names: list[str]):
    figure, axes = new_figure()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    left_out = place_labels(axes, points, names, ["black"] * len(names), 8.5, large=[0])
    figure.draw_without_rendering()
    texts = [text for text in axes.texts if isinstance(text, Annotation)]
    boxes = [super(Annotation, text).get_window_extent() for text in texts]
    return axes, texts, boxes, left_out


@pytest.mark.parametrize("seed", range(5))
def test_no_name_covers_another_name_or_a_mark(seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in generator.uniform(0.05, 0.95, (20, 2))]
    axes, texts, boxes, left_out = written(points, [f"candidate {n}" for n in range(20)])
    assert len(texts) + len(left_out) == 20
    assert len(texts) >= 15
    for place, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])
        assert axes.get_window_extent().x0 <= box.x0
        assert box.x1 <= axes.get_window_extent().x1
    for x, y in axes.transData.transform(points):
        assert not any(box.contains(x, y) for box in boxes)


def test_points_on_top_of_each_other_are_named_with_a_line() -> None:
    _, texts, boxes, left_out = written([(0.5, 0.5)] * 4, ["a", "b", "c", "d"])
    assert len(texts) + len(left_out) == 4
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[place + 1 :])


def test_a_lone_point_is_named_close_by() -> None:
    axes, texts, boxes, _ = written([(0.5, 0.5)], ["alone"])
    x, y = axes.transData.transform((0.5, 0.5))
    near = (min(max(x, boxes[0].x0), boxes[0].x1) - x, min(max(y, boxes[0].y0), boxes[0].y1) - y)
    assert np.hypot(*near) <= 10 * DPI / 72
    assert texts[0].arrow_patch is None


def test_at_the_edge_a_name_goes_inside() -> None:
    axes, _, boxes, left_out = written([(1.0, 1.0)], ["in the corner"])
    assert not left_out
    assert boxes[0].x1 <= axes.get_window_extent().x1
    assert boxes[0].y1 <= axes.get_window_extent().y1


def test_what_has_no_room_is_told() -> None:
    _, texts, _, left_out = written([(0.5, 0.5)], ["m" * 30 + " " + "m" * 60])
    assert len(texts) + len(left_out) == 1
    _, texts, _, left_out = written([(0.5, 0.5)] * 60, [f"candidate number {n}" for n in range(60)])
    assert len(left_out) > 0
    assert left_out[0].startswith("candidate number")
