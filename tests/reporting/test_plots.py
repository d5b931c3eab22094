import numpy as np
import pytest
from matplotlib.figure import Figure

from jdcl_jax.reporting import plots
from jdcl_jax.reporting.figures import render

NAN = np.nan
# Row: after which task. Column: on which task.
MATRIX = np.array([[1.0, NAN, NAN], [2.0, 1.5, NAN], [4.0, 3.0, 1.25]])


def written(figure: Figure) -> dict[tuple[float, float], str]:
    """Texts in the cells by (column from the left, row from the top)."""
    return {text.get_position(): text.get_text() for text in figure.axes[0].texts}


def test_rows_are_after_task_and_columns_on_task():
    figure = plots.heat_map(MATRIX, title="fd", lower_is_better=True)
    axes = figure.axes[0]
    assert written(figure) == {
        (0, 0): "1.00",
        (0, 1): "2.00",  # on task 1 after task 2
        (1, 1): "1.50",
        (0, 2): "4.00",  # on task 1 after task 3
        (1, 2): "3.00",
        (2, 2): "1.25",
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("on task", "after task")
    assert axes.yaxis.get_inverted()  # row 0 is the topmost
    assert not axes.xaxis.get_inverted()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]


def test_nothing_is_drawn_above_the_diagonal_or_where_nothing_is_known():
    full = np.arange(9.0).reshape(3, 3)
    full[2, 0] = NAN
    figure = plots.heat_map(full, title="recall", lower_is_better=False)
    hidden = np.ma.getmaskarray(figure.axes[0].images[0].get_array())
    expected = [[False, True, True], [False, False, True], [True, False, False]]
    np.testing.assert_array_equal(hidden, expected)
    assert set(written(figure)) == {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)}


@pytest.mark.parametrize(("lower", "best", "worst"), [(True, 1.0, 4.0), (False, 4.0, 1.0)])
def test_the_same_colour_is_better_whatever_the_direction(lower, best, worst):
    figure = plots.heat_map(MATRIX, title="fd", lower_is_better=lower)
    shades = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.argwhere(shades == 1), np.argwhere(np.equal(MATRIX, best)))
    np.testing.assert_array_equal(np.argwhere(shades == 0), np.argwhere(np.equal(MATRIX, worst)))
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels == ["worse", "better"]
    assert figure.axes[1].get_ylim() == (0, 1)


def test_scores_of_many_sizes_are_shaded_by_their_logarithms():
    shades = plots.goodness(np.array([1.0, 10.0, 100.0, NAN]), lower_is_better=True)
    np.testing.assert_allclose(shades, [1, 0.5, 0, NAN])
    np.testing.assert_allclose(plots.goodness(np.array([1.0, 3.0, 5.0]), True), [1, 0.5, 0])
    np.testing.assert_allclose(plots.goodness(np.array([2.0, 2.0]), True), [0.5, 0.5])


def test_assigned_samples_are_whole_numbers_and_drawn_above_the_diagonal_too():
    figure = plots.assigned_map(np.array([[90, 7], [1250, 0]]))
    assert written(figure) == {(0, 0): "90", (1, 0): "7", (0, 1): "1,250", (1, 1): "0"}


def test_loss_curves_keep_steps_and_mark_where_tasks_begin():
    rows = [{"step": 10 * i, "task": 1 if i <= 3 else 2, "phase": "train", "loss": float(i)} for i in range(1, 7)]
    figure = plots.loss_curves([*rows, {"step": 60, "task": 2, "fd": 1.0}, {"step": 61, "loss": None}])
    axes = figure.axes[0]
    faint = [line for line in axes.lines if line.get_alpha() is not None]
    drawn = [list(zip(*line.get_data(), strict=True)) for line in faint]
    assert drawn == [[(10, 1), (20, 2), (30, 3)], [(40, 4), (50, 5), (60, 6)]]
    boundaries = [line.get_xdata() for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert boundaries == [[35, 35]]
    assert axes.get_xlabel() == "optimiser step over the whole run"


def test_phases_have_their_own_colours_and_one_entry_each_in_the_legend():
    rows = [
        {"step": step, "task": task, "phase": phase, "loss": 1.0}
        for task in (1, 2)
        for step, phase in [(task * 10, "local"), (task * 10 + 5, "global")]
    ]
    axes = plots.loss_curves(rows).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["local", "global"]


def test_long_curves_are_thinned_by_means():
    rows = [{"step": i, "task": 1, "phase": "train", "loss": float(i % 2)} for i in range(4000)]
    (faint, _) = plots.loss_curves(rows).axes[0].lines
    assert len(faint.get_xdata()) == 400
    np.testing.assert_allclose(faint.get_ydata(), 0.5)
    np.testing.assert_allclose(faint.get_xdata()[:2], [4.5, 14.5])


def test_union_curves_shade_the_standard_error():
    mean, error = np.array([1.0, 2.0, 4.0]), np.array([0.1, 0.2, 0.4])
    lines = {"gd": (mean, error), "_$x$": (mean + 1, None)}
    figure = plots.union_curves(lines, title="fd", lower_is_better=True)
    axes = figure.axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[1, 2, 4], [2, 3, 5]]
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3]
    (shade,) = axes.collections
    corners = {(x, round(y, 6)) for x, y in shade.get_paths()[0].vertices}
    assert {(1, 0.9), (1, 1.1), (3, 3.6), (3, 4.4)} <= corners
    assert len(figure.legends[0].get_texts()) == 2
    assert render(figure, "svg")  # a name with dollars is no formula


def test_cost_bars_stack_phases_and_split_off_the_compilation():
    cost = [
        {"task": 1, "phase": "train", "seconds": 16.0, "compile_seconds": 4.0},
        {"task": 1, "phase": "evaluate", "seconds": 3.0, "compile_seconds": None},
        {"task": 2, "phase": "train", "seconds": 20.0, "compile_seconds": 0.0},
    ]
    axes = plots.cost_bars(cost).axes[0]
    bars = [[(bar.get_y(), bar.get_height()) for bar in group] for group in axes.containers]
    assert bars == [
        [(0, 12), (0, 20)],  # training without compilation
        [(12, 4), (20, 0)],  # its compilation
        [(16, 3), (20, 0)],  # evaluation
    ]
    assert axes.get_ylabel() == "seconds"


def test_long_costs_are_in_hours():
    cost = [{"task": 1, "phase": "train", "seconds": 7200.0 * 2, "compile_seconds": 0.0}]
    axes = plots.cost_bars(cost).axes[0]
    assert axes.get_ylabel() == "hours"
    assert axes.containers[0][0].get_height() == pytest.approx(4)


def test_pictures_are_svg_and_png_and_repeat_byte_by_byte():
    first, second = (plots.heat_map(MATRIX, title="fd", lower_is_better=True) for _ in range(2))
    svg = render(first, "svg")
    assert b"<svg" in svg
    assert render(second, "svg") == svg
    assert render(first, "png").startswith(b"\x89PNG")
