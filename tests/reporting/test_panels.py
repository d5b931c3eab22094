"""Many lines on several pictures."""

from functools import partial

import numpy as np
import pytest

from jdcl_jax.reporting.figures import COLOURS
from jdcl_jax.reporting.panels import in_panels
from jdcl_jax.reporting.timesteps import lines_figure

draw = partial(lines_figure, np.arange(3.0), title="all", y_label="y")


def lines(values: list[float]) -> dict:
    return {f"method {place}": (np.full(3, value), None) for place, value in enumerate(values)}


def names(figure) -> list[str]:
    return figure.axes[0].get_legend_handles_labels()[1]


def test_few_lines_are_one_picture() -> None:
    assert list(in_panels("loss", lines([1.0] * len(COLOURS)), draw)) == ["loss"]


@pytest.mark.parametrize("number", [len(COLOURS) + 1, 3 * len(COLOURS), 31])
def test_of_many_each_is_on_one_picture_with_a_colour_of_its_own(number: int) -> None:
    found = in_panels("loss", lines([float(n) for n in range(1, number + 1)]), draw)
    assert list(found) == [f"loss-{n + 1}" for n in range(len(found))]
    assert [name for figure in found.values() for name in names(figure)] == [f"method {n}" for n in range(number)]
    for figure in found.values():
        drawn = figure.axes[0].get_lines()
        assert len({line.get_color() for line in drawn}) == len(drawn) <= len(COLOURS)


def test_all_pictures_have_the_same_axes() -> None:
    below = [10.0 ** (n % 4) for n in range(13)] + [-0.001]  # the last picture alone has a value below 0
    for values, scale in (
        ([1.0] * 7 + [5.0] * 7, "linear"),
        ([1.0] * 7 + [1e-4] * 7, "log"),
        (below, "linear"),
        (below[::-1], "linear"),
    ):
        axes = [figure.axes[0] for figure in in_panels("loss", lines(values), draw).values()]
        assert {one.get_yscale() for one in axes} == {scale}
        assert len({one.get_ylim() for one in axes}) == 1
        low, high = axes[0].get_ylim()
        assert low <= min(values) < max(values) <= high
