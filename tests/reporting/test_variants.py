"""Figures of several runs whose networks classify: which runs are one line, what it is called, and its numbers."""

import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.reporting.figures import COLOURS, render
from jdcl_jax.reporting.runs import Run, load_run
from jdcl_jax.reporting.variants import ablation_figure, continued_figure, labelled_groups

NAN = np.nan


def accuracy_score(results, union: list[float | None]) -> dict:
    """The score "accuracy" of three tasks with such values on the union."""
    return results()["scores"]["recall"] | {"union": union}


@pytest.fixture
def run_of(make_run, results):
    """`run_of("a", "jdcl", 1, {"local": True}, [.9, .8, .7])`: method, seed, options, accuracy on all tasks seen."""

    def make(name: str, method: str, seed: int, options=(), union=(0.9, 0.8, 0.7), config=(), **changes) -> Run:
        tree = {"seed": seed, "method": {"name": method, **dict(options)}, **dict(config)}
        phases = [{"task": 1, "phase": "local", "accuracy": [union[0], None, None]}]
        scores = {"accuracy": accuracy_score(results, list(union)), **results()["scores"]}
        whole = {"method": method, "seed": seed, "config": tree, "phases": phases, "scores": scores} | changes
        return load_run(make_run(name, **whole))

    return make


@pytest.fixture
def continued(make_run):
    """`continued("a", 0, [.9, .5])`: accuracy after the local stage and after each round of 60 steps in all."""

    def make(name: str, seed: int, accuracy: list[float], **options) -> Run:
        tasks = [{"task": 1, "classes": [0], "names": ["zero"], "train": 9, "validation": 1, "test": 3}]
        phases = [{"task": 1, "phase": "local", "accuracy": [accuracy[0]]}]
        phases += [{"task": 1, "phase": "draw", "replay": [], "samples": {"old": 9}}]
        phases += [{"task": 1, "phase": "global", "accuracy": [value]} for value in accuracy[1:]]
        method = {"name": "continued", "global_steps": 60, "rounds": len(accuracy) - 1, **options}
        config = {"seed": seed, "method": method}
        changes = {"method": "continued", "seed": seed, "tasks": tasks, "scores": {}, "assigned": [[9]]}
        return load_run(make_run(name, phases=phases, config=config, **changes))

    return make


def seeds(groups) -> dict[str, list[int]]:
    return {label: [run.seed for run in group.runs] for label, group in groups.items()}


def band(shade) -> dict[float, tuple[float, float]]:
    """Lowest and highest place of a shaded band by x."""
    x, y = np.round(shade.get_paths()[0].vertices.T, 6)
    return {place: (y[x == place].min(), y[x == place].max()) for place in np.unique(x)}


def texts(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


# -- which runs are one line


def test_runs_that_differ_in_the_seed_alone_are_together_under_the_name_of_their_method(run_of) -> None:
    groups = labelled_groups([run_of("a", "jdcl", 0, {"local": True}), run_of("b", "jdcl", 3, {"local": True})])
    assert seeds(groups) == {"jdcl": [0, 3]}
    assert groups["jdcl"].dataset == "digits"


def test_runs_of_one_method_are_told_apart_by_the_options_that_differ(run_of) -> None:
    runs = [
        run_of("a", "jdcl", 0, {"local": True, "distillation": True, "quota": 5}),
        run_of("b", "jdcl", 0, {"local": True, "distillation": False, "quota": 5}),
        run_of("c", "jdcl", 1, {"local": True, "distillation": True, "quota": 5}),
        run_of("d", "jdcl", 0, {"local": False, "distillation": True, "quota": 5}),
    ]
    assert seeds(labelled_groups(runs)) == {
        "jdcl (distillation=True, local=True)": [0, 1],
        "jdcl (distillation=False, local=True)": [0],
        "jdcl (distillation=True, local=False)": [0],
    }


def test_an_option_of_no_method_is_named_in_full_and_one_that_a_run_lacks_is_left_out(run_of) -> None:
    runs = [
        run_of("a", "jdcl", 0, {"local": True}, config={"classifier": {"kind": "joint"}}),
        run_of("b", "jdcl", 0, {}, config={"classifier": {"kind": "separate"}}),
    ]
    assert list(labelled_groups(runs)) == [
        "jdcl (classifier.kind=joint, local=True)",
        "jdcl (classifier.kind=separate)",
    ]


def test_another_method_does_not_lend_its_options_to_a_name(run_of) -> None:
    runs = [
        run_of("a", "jdcl", 0, {"local": True}, config={"train": {"steps": 9}}),
        run_of("b", "gr", 0, {"replay_steps": 3}, config={"train": {"steps": 7}}),
        run_of("c", "gr", 1, {"replay_steps": 3}, config={"train": {"steps": 7}}),
    ]
    assert seeds(labelled_groups(runs)) == {"jdcl": [0], "gr": [0, 1]}


def test_where_data_lie_on_a_machine_tells_no_runs_apart(run_of) -> None:
    runs = [
        run_of(name, "jdcl", seed, config={"data": {"dir": f"/data/{name}"}, "evaluation": {"cache_dir": name}})
        for seed, name in enumerate("ab")
    ]
    assert seeds(labelled_groups(runs)) == {"jdcl": [0, 1]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": "running"}, "not finished"),
        ({"phases": []}, "classifier.kind=joint"),
        ({"phases": None}, "classifier.kind=joint"),
    ],
)
def test_a_run_that_is_not_finished_or_does_not_classify_is_named(changes, said, run_of) -> None:
    with pytest.raises(UserError, match=said) as refused:
        labelled_groups([run_of("good", "jdcl", 0), run_of("spoiled", "jdcl", 1, **changes)])
    assert "spoiled" in str(refused.value)
    assert "good" not in str(refused.value)


# -- accuracy over the rounds of continued training


def test_the_first_point_is_before_any_step_and_the_last_after_all(continued) -> None:
    axes = continued_figure(labelled_groups([continued("a", 0, [0.9, 0.7, 0.6, 0.2])])).axes[0]
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), [0, 20, 40, 60])
    np.testing.assert_allclose(line.get_ydata(), [0.9, 0.7, 0.6, 0.2])
    assert len(axes.collections) == 0  # a single run has no error


def test_several_seeds_are_a_mean_in_a_band_of_its_standard_error(continued) -> None:
    """Of .2, .4 and .9 the mean is .5, the standard deviation sqrt(.13), the error sqrt(.13 / 3)."""
    runs = [continued(f"{i}", i, [0.8, last]) for i, last in enumerate([0.2, 0.4, 0.9])]
    axes = continued_figure(labelled_groups(runs)).axes[0]
    (line,), (shade,) = axes.lines, axes.collections
    np.testing.assert_allclose(line.get_ydata(), [0.8, 0.5])
    error = np.sqrt(0.13 / 3)
    assert band(shade) == {0: (0.8, 0.8), 60: pytest.approx((0.5 - error, 0.5 + error), abs=1e-6)}


def test_variants_of_continued_training_are_lines_of_their_own_with_their_names(continued) -> None:
    runs = [
        continued("a", 0, [0.9, 0.5, 0.1], distillation=False),
        continued("b", 0, [0.8, 0.7, 0.6], distillation=True),
    ]
    figure = continued_figure(labelled_groups(runs))
    values = [line.get_ydata().tolist() for line in figure.axes[0].lines]
    assert values == [[0.9, 0.5, 0.1], [0.8, 0.7, 0.6]]
    assert texts(figure.legends[0]) == ["continued (distillation=False)", "continued (distillation=True)"]
    handles = figure.legends[0].legend_handles
    assert [handle.get_color() for handle in handles] == list(COLOURS[:2])
    assert [line.get_color() for line in figure.axes[0].lines] == list(COLOURS[:2])


def test_a_name_is_no_formula_and_stays_in_the_legend(continued) -> None:
    (group,) = labelled_groups([continued("a", 0, [0.9, 0.5])]).values()
    figure = continued_figure({"_$a$_b": group})
    assert [text.strip() for text in texts(figure.legends[0])] == [r"_\$a\$_b"]
    assert render(figure, "png")


def test_runs_of_another_method_did_not_go_on_with_their_samples(continued, run_of) -> None:
    groups = labelled_groups([continued("good", 0, [0.9, 0.5]), run_of("other", "jdcl", 0, {"global_steps": 60})])
    with pytest.raises(UserError, match=r"other did not .* 'continued'"):
        continued_figure(groups)


# -- accuracy on all tasks seen


def test_each_variant_is_a_line_over_the_tasks_with_the_mean_of_its_seeds(run_of) -> None:
    runs = [
        run_of("a", "jdcl", 0, {"local": True}, [0.9, 0.8, 0.7]),
        run_of("b", "jdcl", 1, {"local": True}, [0.9, 0.6, 0.1]),
        run_of("c", "jdcl", 0, {"local": False}, [0.5, 0.4, 0.3]),
    ]
    figure = ablation_figure(labelled_groups(runs))
    axes = figure.axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2, 3]] * 2
    np.testing.assert_allclose([line.get_ydata() for line in axes.lines], [[0.9, 0.7, 0.4], [0.5, 0.4, 0.3]])
    (shade,) = axes.collections  # the error of two numbers is half their distance
    expected = {1: (0.9, 0.9), 2: (0.6, 0.8), 3: (0.1, 0.7)}
    assert band(shade) == {task: pytest.approx(ends) for task, ends in expected.items()}
    assert texts(figure.legends[0]) == ["jdcl (local=True)", "jdcl (local=False)"]
    assert axes.get_title() == "accuracy"
    assert "higher is better" in axes.get_ylabel()


def test_a_run_that_was_not_scored_by_accuracy_is_refused(run_of, results) -> None:
    groups = labelled_groups([run_of("a", "jdcl", 0), run_of("b", "gr", 0, scores=results()["scores"])])
    with pytest.raises(UserError, match=r"^gr was not scored .* evaluation\.scores"):
        ablation_figure(groups)
