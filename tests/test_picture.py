import warnings
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclip.pictures.picture import COLUMNS, kept, new_figure, plain, png_of, put_legend, thinned

values_with_gaps = st.lists(st.one_of(st.floats(-1e300, 1e300), st.just(nan), st.just(inf), st.just(-inf)), min_size=1)


@given(values_with_gaps, st.integers(1, 20))
def test_decimation_keeps_every_extreme(values: list[float], columns: int) -> None:
    array = np.array(values)
    at = kept(array, columns)
    assert (np.diff(at) > 0).all()
    assert at[0] == 0
    assert at[-1] == len(array) - 1
    assert len(at) <= max(2 * columns + 2, 1)
    finite = array[np.isfinite(array)]
    left = array[at][np.isfinite(array[at])]
    if len(finite):
        assert left.max() == finite.max()
        assert left.min() == finite.min()


@given(st.integers(0, 99_999), st.floats(10, 1e12))
def test_a_spike_of_one_step_survives_wherever_it_is(place: int, height: float) -> None:
    values = np.sin(np.arange(100_000.0))
    values[place] = height
    x, y = thinned(np.arange(100_000), values)
    assert len(x) <= 2 * COLUMNS + 2
    assert (x[y.argmax()], y.max()) == (place, height)


def test_a_gap_stays_a_gap() -> None:
    values = np.ones(10_000)
    values[3_000:5_000] = nan
    x, y = thinned(np.arange(10_000), values)
    assert np.isnan(y[(x >= 3_020) & (x < 4_980)]).all()
    assert np.isfinite(y[(x < 3_000) | (x >= 5_000)]).all()


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("fixed 5", "fixed 5"),
        ("a$x_1$", r"a\$x_1\$"),
        ("_hidden", " _hidden"),
        ("two\nlines\tand tabs", "two lines and tabs"),
        ("x" * 100, "x" * 29 + "\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_names_are_drawn_as_they_stand(name: str, drawn: str) -> None:
    assert plain(name) == drawn


@pytest.mark.parametrize("name", ["$", r"\$", r"$\frac{1}{0$", "_", "<b>", "{", "%s"])
def test_no_name_breaks_a_picture(name: str) -> None:
    figure, axes = new_figure()
    put_legend(figure, [(axes.plot([0, 1], [0, 1])[0], plain(name))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert png_of(figure).startswith(b"\x89PNG")
    assert len(figure.legends[0].get_texts()) == 1
