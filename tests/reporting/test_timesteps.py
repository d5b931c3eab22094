"""Numbers over the timesteps by hand, and that the figures show them."""

import math

import numpy as np
import pytest

from jdcl_jax.reporting.timesteps import (
    bin_edges,
    binned,
    centres,
    delta,
    forgetting_figure,
    lines_figure,
    load_curves,
    mean_and_error,
    mean_over_pairs,
    mean_over_seeds,
    relative_delta,
    study_figures,
)
from jdcl_jax.workdir import Workdir

NAN = math.nan
# Three tasks, two timesteps. After task i (list), on task j (row), at t (column); tasks not seen yet are NaN.
AFTER = [
    np.array([[1.0, 2.0], [NAN, NAN], [NAN, NAN]]),
    np.array([[1.5, 2.0], [4.0, 8.0], [NAN, NAN]]),
    np.array([[3.0, 1.0], [5.0, 16.0], [7.0, 7.0]]),
]


def test_delta_is_the_error_now_minus_the_error_when_the_task_was_learned() -> None:
    found = delta(AFTER)
    assert list(found) == [(2, 1), (3, 1), (3, 2)]
    np.testing.assert_array_equal(found[2, 1], [0.5, 0.0])
    np.testing.assert_array_equal(found[3, 1], [2.0, -1.0])
    np.testing.assert_array_equal(found[3, 2], [1.0, 8.0])
    assert delta(AFTER[:1]) == {}


def test_relative_delta_is_divided_by_the_error_when_the_task_was_learned() -> None:
    found = relative_delta(AFTER)
    np.testing.assert_array_equal(found[2, 1], [0.5, 0.0])
    np.testing.assert_array_equal(found[3, 1], [2.0, -0.5])
    np.testing.assert_array_equal(found[3, 2], [0.25, 1.0])
    zero = [np.array([[0.0, 1.0], [NAN, NAN]]), np.array([[1.0, 1.0], [2.0, 2.0]])]
    np.testing.assert_array_equal(relative_delta(zero)[2, 1], [NAN, 0.0])


def test_means_over_pairs_and_over_seeds() -> None:
    # (0.5 + 2 + 1) / 3 and (0 - 1 + 8) / 3
    np.testing.assert_allclose(mean_over_pairs(delta(AFTER)), [3.5 / 3, 7 / 3])
    assert mean_over_pairs({}).shape == (0,)
    other = {(2, 1): np.array([1.5, 4.0]), (3, 1): np.array([0.0, 0.0])}
    found = mean_over_seeds([delta(AFTER), other])
    assert list(found) == [(2, 1), (3, 1)]
    np.testing.assert_array_equal(found[2, 1], [1.0, 2.0])
    assert mean_over_seeds([]) == {}


def test_mean_and_standard_error() -> None:
    mean, error = mean_and_error([np.array([1.0, 5.0]), np.array([3.0, 5.0])])
    np.testing.assert_allclose(mean, [2.0, 5.0])
    assert error is not None
    np.testing.assert_allclose(error, [1.0, 0.0])  # standard deviation sqrt(2), over sqrt(2)
    assert mean_and_error([np.array([1.0])])[1] is None


def test_bins_hold_every_timestep_once() -> None:
    np.testing.assert_array_equal(bin_edges(10, 5), [0, 2, 4, 6, 8, 10])
    np.testing.assert_array_equal(bin_edges(3, 50), [0, 1, 2, 3])
    for timesteps in (1, 7, 200, 1000, 4000):
        for logarithmic in (False, True):
            edges = bin_edges(timesteps, logarithmic=logarithmic)
            assert edges[0] == 0
            assert edges[-1] == timesteps
            assert np.all(np.diff(edges) >= 1)
            assert len(edges) <= 51
    widths = np.diff(bin_edges(1000))
    assert widths.min() == widths.max() == 20


def test_logarithmic_bins_grow_with_t() -> None:
    edges = bin_edges(1000, logarithmic=True)
    np.testing.assert_array_equal(edges[:5], range(5))
    wide = edges[edges > 100] + 1.0
    np.testing.assert_allclose(wide[1:] / wide[:-1], 1001 ** (1 / 50), rtol=0.01)


def test_binned_values_are_means_of_what_is_known() -> None:
    edges = np.array([0, 2, 3, 6])
    values = np.array([[1.0, 3.0, 7.0, 1.0, 2.0, 6.0], [NAN, 5.0, NAN, NAN, 1.0, 2.0]])
    np.testing.assert_array_equal(binned(values, edges), [[2.0, 7.0, 3.0], [5.0, NAN, 1.5]])
    np.testing.assert_array_equal(centres(edges), [0.5, 2.0, 4.0])


@pytest.fixture
def save(tmp_path):
    """`save(1, eps_mse)` writes curves/task_01.npz; the bits are twice and thrice the errors."""

    def write(task: int, eps_mse: np.ndarray, **changes: np.ndarray) -> None:
        (tmp_path / "curves").mkdir(exist_ok=True)
        arrays = {
            "eps_mse": eps_mse.astype(np.float32),
            "bits_fixed_small": 2 * eps_mse.astype(np.float32),
            "bits_fixed_large": 3 * eps_mse.astype(np.float32),
            "prior_bits": np.zeros(len(eps_mse), np.float32),
            "images": np.array(4, np.int32),
        }
        np.savez(tmp_path / "curves" / f"task_{task:02d}.npz", **(arrays | changes))

    return write


def test_curves_are_read_task_by_task(save, tmp_path) -> None:
    assert load_curves(tmp_path) == []
    for task, values in enumerate(AFTER, 1):
        save(task, values)
    found = load_curves(tmp_path)
    assert len(found) == 3
    np.testing.assert_array_equal(found[1]["eps_mse"], AFTER[1])
    np.testing.assert_array_equal(found[2]["bits_fixed_large"], 3 * AFTER[2])


def test_what_a_run_writes_is_read(tiny_config, tmp_path) -> None:
    arrays = {"eps_mse": AFTER[0], "bits_fixed_small": 2 * AFTER[0], "bits_fixed_large": 3 * AFTER[0]}
    Workdir(tmp_path, tiny_config()).write_curves(1, arrays)
    (found,) = load_curves(tmp_path)
    np.testing.assert_array_equal(found["eps_mse"], AFTER[0])
    np.testing.assert_array_equal(found["bits_fixed_small"], 2 * AFTER[0])
    np.testing.assert_array_equal(found["bits_fixed_large"], 3 * AFTER[0])


def test_an_infinite_value_counts_as_unknown(save, tmp_path) -> None:
    save(1, np.array([[1.0, np.inf]]))
    np.testing.assert_array_equal(load_curves(tmp_path)[0]["bits_fixed_small"], [[2.0, NAN]])


@pytest.mark.parametrize("trouble", ["missing", "half", "empty", "text", "name", "shape"])
def test_reading_ends_where_curves_are_missing_or_broken(trouble, save, tmp_path) -> None:
    save(1, AFTER[0])
    save(3, AFTER[2])
    second = tmp_path / "curves" / "task_02.npz"
    if trouble == "name":
        np.savez(second, eps_mse=AFTER[1])
    elif trouble == "shape":
        save(2, AFTER[1][:, :1])
    elif trouble != "missing":
        whole = (tmp_path / "curves" / "task_01.npz").read_bytes()
        second.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"no arrays"}[trouble])
    assert len(load_curves(tmp_path)) == 1


def data(figure) -> dict[str, list[float]]:
    """The y values of a figure's lines by their names in the legend."""
    return {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}


def test_forgetting_is_drawn_a_line_per_pair_a_colour_per_task() -> None:
    deltas = delta(AFTER)
    figure = forgetting_figure(np.array([0.0, 1.0]), deltas, title="gd", relative=False)
    zero, *lines = figure.axes[0].lines
    assert list(zero.get_ydata()) == [0.0, 0.0]
    assert [list(line.get_ydata()) for line in lines] == [list(values) for values in deltas.values()]
    first, second, third = lines
    assert first.get_color() == second.get_color() != third.get_color()
    assert first.get_alpha() < second.get_alpha() == third.get_alpha() == 1.0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["task 1", "task 2"]


def test_many_tasks_have_a_colour_each() -> None:
    curves = [np.ones((12, 2)) for _ in range(12)]
    figure = forgetting_figure(np.arange(2.0), delta(curves), title="", relative=True)
    named = [line for line in figure.axes[0].lines if line.get_label().startswith("task")]
    assert len({tuple(np.atleast_1d(line.get_color())) for line in named}) == 11


def test_a_logarithmic_axis_has_a_place_for_t_0() -> None:
    lines = {"a": (np.array([1.0, 0.01]), None), "b": (np.array([1.0, 0.1]), np.array([0.1, 0.05]))}
    figure = lines_figure(np.array([0.0, 9.0]), lines, title="", y_label="", log_t=True)
    axes = figure.axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert list(axes.lines[0].get_xdata()) == [1.0, 10.0]
    assert len(axes.collections) == 1  # the error of b


def seed(scale: float) -> list[dict[str, np.ndarray]]:
    return [{"eps_mse": scale * a, "bits_fixed_small": 2 * scale * a, "bits_fixed_large": 3 * scale * a} for a in AFTER]


def test_the_figures_of_a_study() -> None:
    methods = {"gd": [seed(1.0), seed(3.0)], "er(a=1)": [seed(1.0)]}
    found = study_figures(methods, {"gd": "gd", "er(a=1)": "er-a=1"})
    assert {section: list(figures) for section, figures in found.items()} == {
        "mean": ["forgetting", "forgetting-relative"],
        "pairs": ["forgetting-gd", "forgetting-er-a=1"],
        "relative_pairs": ["forgetting-relative-gd", "forgetting-relative-er-a=1"],
        "errors": ["eps_mse-gd", "eps_mse-er-a=1"],
        "bits": ["bits_fixed_small", "bits_fixed_large"],
    }
    # Mean of scales 1 and 3 is 2; relative numbers do not know the scale.
    np.testing.assert_allclose(data(found["mean"]["forgetting"])["gd"], [7 / 3, 14 / 3])
    np.testing.assert_allclose(data(found["mean"]["forgetting-relative"])["gd"], [2.75 / 3, 0.5 / 3])
    np.testing.assert_allclose(list(data(found["pairs"]["forgetting-gd"]).values())[-1], [2.0, 16.0])
    np.testing.assert_allclose(data(found["errors"]["eps_mse-gd"])["task 2"], [10.0, 32.0])
    # After the last task, mean over tasks: (3 + 5 + 7) / 3 and (1 + 16 + 7) / 3, times 2 and 3.
    np.testing.assert_allclose(data(found["bits"]["bits_fixed_small"])["er(a=1)"], [10.0, 16.0])
    np.testing.assert_allclose(data(found["bits"]["bits_fixed_large"])["gd"], [30.0, 48.0])
    assert data(found["bits"]["bits_fixed_large"]).keys() == {"gd", "er(a=1)"}


def test_a_relative_difference_is_that_of_the_errors_summed_over_a_bin() -> None:
    """100 timesteps, two in a bin: errors 1 and 3 grow to 2 and 3, so (5 - 4) / 4, not the mean of 1 and 0."""
    before = np.tile([1.0, 3.0], 50)
    after = np.tile([2.0, 3.0], 50)
    curves = [
        {name: np.stack([mse, mse]) for name in ("eps_mse", "bits_fixed_small", "bits_fixed_large")}
        for mse in (before, after)
    ]
    figure = study_figures({"gd": [curves]}, {"gd": "gd"})["mean"]["forgetting-relative"]
    np.testing.assert_allclose(data(figure)["gd"], np.full(50, 0.25))


def test_a_single_task_has_errors_and_bits_but_no_forgetting() -> None:
    found = study_figures({"gd": [seed(1.0)[:1]]}, {"gd": "gd"})
    assert [section for section, figures in found.items() if figures] == ["errors", "bits"]
    assert data(found["errors"]["eps_mse-gd"]).keys() == {"task 1"}


def test_no_curves_give_no_figures() -> None:
    assert not any(study_figures({}, {}).values())
