import numpy as np
import pytest
from matplotlib.text import Annotation

from autoclip.pictures.labels import place_labels
from autoclip.pictures.picture import new_figure


def written(points: list[tuple[float, float]], names: list[str]):
    figure, axes = new_figure()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    left_out = place_labels(axes, points, names, ["black"] * len(names), 8.5, large=[0])
    figure.draw_without_rendering()
    texts = [text for text in axes.texts if isinstance(text, Annotation)]
    boxes = [super(Annotation, text).get_window_extent() for text in texts]
    return axes, texts, boxes, left_out


@pytest.mark.parametrize("seed", range(2))
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


def test_what_has_no_room_is_told() -> None:
    _, texts, _, left_out = written([(0.5, 0.5)], ["m" * 30 + " " + "m" * 60])
    assert len(texts) + len(left_out) == 1
    _, texts, _, left_out = written([(0.5, 0.5)] * 60, [f"candidate number {n}" for n in range(60)])
    assert len(left_out) > 0
    assert left_out[0].startswith("candidate number")
