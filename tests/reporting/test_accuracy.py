"""Figures of a run whose network classifies, from numbers made by hand: what is drawn, where, and under which name."""

import numpy as np
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure

from jdcl_jax.reporting.accuracy import confusion_figure, logits_figure, phase_rows, phases_figure
from jdcl_jax.reporting.figures import COLOURS, render
from jdcl_jax.reporting.runs import load_run

NAN = np.nan
MATHS = "$a$_b"
# The phases of three tasks; no two accuracies alike, so that a swap shows.
ROWS = [
    {"task": 1, "phase": "local", "accuracy": [0.9, None, None]},
    {"task": 2, "phase": "local", "accuracy": [0.1, 0.8, None]},
    {"task": 2, "phase": "global", "accuracy": [0.7, 0.6, None]},
    {"task": 3, "phase": "global", "accuracy": [0.5, 0.4, 0.3]},
]
# True class: row. Answer: column. Class 1 has no image and is once answered; class 3 has none and is never answered.
MATRIX = np.array([[6, 0, 2, 0], [0, 0, 0, 0], [1, 1, 2, 0], [0, 0, 0, 0]])
NAMES = ["ant", "bee", MATHS, "dog"]


def texts(labels) -> list[str]:
    return [label.get_text() for label in labels]


def shown(text: str) -> str:
    """What a reader sees of a text that is no formula."""
    assert not is_math_text(text)
    return text.replace(r"\$", "$")


# -- accuracy after each phase


def test_rows_of_phases_are_those_with_an_accuracy_in_their_order(make_run) -> None:
    drawn = {"task": 2, "phase": "draw", "replay": [], "samples": {}}
    run = load_run(make_run("a", phases=[ROWS[0], ROWS[1], drawn, ROWS[2]]))
    assert phase_rows(run) == ROWS[:3]


@pytest.mark.parametrize("changes", [{}, {"phases": None}, {"phases": []}, {"phases": [{"task": 1, "phase": "draw"}]}])
def test_a_run_that_does_not_classify_has_no_rows_of_phases(changes, make_run) -> None:
    assert phase_rows(load_run(make_run("a", **changes))) == []


def test_each_line_is_a_task_and_each_place_a_phase() -> None:
    axes = phases_figure(ROWS, "title").axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0, 1, 2, 3]] * 3
    expected = [[0.9, 0.1, 0.7, 0.5], [NAN, 0.8, 0.6, 0.4], [NAN, NAN, NAN, 0.3]]
    np.testing.assert_array_equal([line.get_ydata() for line in axes.lines], expected)
    assert axes.get_xticks().tolist() == [0, 1, 2, 3]
    assert texts(axes.get_xticklabels()) == ["local\n1", "local\n2", "global\n2", "global\n3"]
    low, high = axes.get_ylim()
    assert low < 0 < 1 < high


def test_the_legend_names_the_tasks_in_the_colours_of_their_lines() -> None:
    figure = phases_figure(ROWS, "title")
    (legend,) = figure.legends
    assert texts(legend.get_texts()) == ["task 1", "task 2", "task 3"]
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert [handle.get_color() for handle in legend.legend_handles] == colours == list(COLOURS[:3])
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 3


def test_of_many_tasks_every_one_has_a_line_and_a_title_is_no_formula() -> None:
    count = len(COLOURS) + 2
    rows = [{"task": 1, "phase": "local", "accuracy": [i / count for i in range(count)]}]
    figure = phases_figure(rows, f"{MATHS}, seed 0")
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [i / count for i in range(count)]
    assert len(figure.legends[0].get_texts()) == count
    assert shown(figure.axes[0].get_title()) == f"{MATHS}, seed 0"
    assert render(figure, "png")


# -- confusion


def cells(figure: Figure) -> dict[tuple[float, float], str]:
    """Numbers in the cells by (column from the left, row from the top)."""
    return {text.get_position(): text.get_text() for text in figure.axes[0].texts}


def test_a_row_of_the_confusion_has_the_shares_of_one_true_class() -> None:
    axes = confusion_figure(MATRIX, NAMES, "title").axes[0]
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), [[0.75, 0, 0.25], [0.25, 0.25, 0.5]])
    assert image.get_clim() == (0, 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("answer", "true class")
    assert axes.yaxis.get_inverted()  # row 0 is the topmost
    assert not axes.xaxis.get_inverted()


def test_a_class_without_images_has_no_row_and_only_if_it_is_never_answered_no_column() -> None:
    axes = confusion_figure(MATRIX, NAMES, "title").axes[0]
    assert [shown(text) for text in texts(axes.get_xticklabels())] == ["ant", "bee", MATHS]
    assert [shown(text) for text in texts(axes.get_yticklabels())] == ["ant", MATHS]
    assert (axes.get_xticks().tolist(), axes.get_yticks().tolist()) == ([0, 1, 2], [0, 1])


def test_a_class_that_is_never_answered_keeps_its_column() -> None:
    axes = confusion_figure(np.array([[0, 5], [0, 5]]), ["ant", "bee"], "title").axes[0]
    assert texts(axes.get_xticklabels()) == texts(axes.get_yticklabels()) == ["ant", "bee"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 1], [0, 1]])


def test_cells_have_counts_where_there_are_any_and_white_ink_where_they_are_dark() -> None:
    figure = confusion_figure(MATRIX, NAMES, "title")
    assert cells(figure) == {(0, 0): "6", (2, 0): "2", (0, 1): "1", (1, 1): "1", (2, 1): "2"}
    ink = {text.get_position(): text.get_color() for text in figure.axes[0].texts}
    assert {place for place, colour in ink.items() if colour == "white"} == {(0, 0)}  # the share of .75


def test_the_names_and_the_title_of_a_confusion_are_no_formulas() -> None:
    figure = confusion_figure(MATRIX, NAMES, f"answers of {MATHS}")
    assert shown(figure.axes[0].get_title()) == f"answers of {MATHS}"
    assert render(figure, "png")


@pytest.mark.parametrize(("count", "written"), [(20, True), (21, False)])
def test_of_many_classes_only_the_colours_are_drawn(count, written) -> None:
    matrix = 3 * np.eye(count, dtype=int)
    figure = confusion_figure(matrix, [f"class {c}" for c in range(count)], "title")
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), np.eye(count))
    assert len(cells(figure)) == (count if written else 0)
    assert ("class 3" in texts(figure.axes[0].get_xticklabels())) is written


# -- logits

REAL = {
    "ant": np.array([0.0, 1.0, 1.0, 3.0]),
    MATHS: np.array([-3.0, -2.0]),
    "cow": np.array([5.0, 5.0]),
    "dog": np.array([1.0]),
}
GENERATED = {
    "dog": np.array([2.5]),  # an order of its own
    "cow": np.zeros(0),
    MATHS: np.array([12.0, 12.0, 2.0]),
    "ant": np.array([1.0, 2.0]),
}
EDGES = np.linspace(-3, 12, 31)


def histogram(axes, colour: str) -> np.ndarray | None:
    """The densities of the bars of a colour, [30]; None if there are none."""
    for bars in axes.containers:
        if np.allclose(bars.patches[0].get_facecolor()[:3], [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]):
            np.testing.assert_allclose([bar.get_x() for bar in bars], EDGES[:-1], atol=1e-9)
            np.testing.assert_allclose([bar.get_width() for bar in bars], np.diff(EDGES), atol=1e-9)
            return np.array([bar.get_height() for bar in bars])
    return None


def densities(values: np.ndarray) -> np.ndarray:
    """Of 30 equal bins from the smallest to the largest of all values, real and generated."""
    inside = (values[:, None] >= EDGES[:-1]) & (values[:, None] < np.append(EDGES[1:-1], np.inf))
    return inside.mean(axis=0) / 0.5


def test_each_class_has_a_picture_with_its_real_and_its_generated_logits_on_one_scale() -> None:
    figure = logits_figure(REAL, GENERATED, "title")
    assert [shown(axes.get_title()) for axes in figure.axes] == list(REAL)
    for axes, name in zip(figure.axes, REAL, strict=True):
        np.testing.assert_allclose(histogram(axes, COLOURS[0]), densities(REAL[name]))
        if len(GENERATED[name]):
            np.testing.assert_allclose(histogram(axes, COLOURS[1]), densities(GENERATED[name]))


def test_a_class_that_no_generated_image_is_given_shows_its_real_logits_alone() -> None:
    figure = logits_figure(REAL, GENERATED, "title")
    by_name = {shown(axes.get_title()): axes for axes in figure.axes}
    assert histogram(by_name["cow"], COLOURS[1]) is None
    assert [len(axes.containers) for axes in figure.axes] == [2, 2, 1, 2]
    assert render(figure, "png")


def test_the_legend_names_both_where_the_first_class_has_no_generated_image() -> None:
    (legend,) = logits_figure(REAL, {**GENERATED, next(iter(REAL)): np.zeros(0)}, "title").legends
    assert texts(legend.get_texts()) == ["real", "generated"]


def test_the_legend_says_once_what_is_real_and_what_is_generated() -> None:
    figure = logits_figure(REAL, GENERATED, MATHS)
    (legend,) = figure.legends
    assert texts(legend.get_texts()) == ["real", "generated"]
    faces = [handle.get_facecolor() for handle in legend.legend_handles]
    assert faces == [bars.patches[0].get_facecolor() for bars in figure.axes[0].containers]
    assert shown(figure.get_suptitle()) == MATHS


@pytest.mark.parametrize(
    ("count", "columns", "rows_and_columns"), [(4, 5, (1, 4)), (5, 5, (1, 5)), (6, 5, (2, 5)), (5, 2, (3, 2))]
)
def test_pictures_stand_beside_each_other_up_to_so_many_and_then_below(count, columns, rows_and_columns) -> None:
    values = {f"class {i}": np.array([float(i), i + 1.0]) for i in range(count)}
    figure = logits_figure(values, values, "title", columns)
    assert len(figure.axes) == count
    rows, wide = rows_and_columns
    for i, axes in enumerate(figure.axes):
        spec = axes.get_subplotspec()
        assert spec.get_gridspec().get_geometry() == rows_and_columns
        assert (spec.rowspan.start, spec.colspan.start) == divmod(i, wide)
    assert rows * wide >= count
