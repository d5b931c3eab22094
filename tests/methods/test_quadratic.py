"""The sum of quadratic forms in memory that does not grow, against the sum written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.methods.quadratic import add_task, empty_quadratic, quadratic_value


def tree(generator, *, positive: bool = False) -> dict:
    a, c = generator.normal(size=(3, 2)), generator.normal()
    values = {"a": a.astype(np.float32), "b": {"c": np.float32(c)}}
    return jax.tree.map(np.square, values) if positive else values


@pytest.fixture
def tasks() -> list[tuple[dict, dict]]:
    """(parameters at its end, importance) of three tasks."""
    generator = np.random.default_rng(5)
    return [(tree(generator), tree(generator, positive=True)) for _ in range(3)]


def grown(tasks, anchors: str) -> list[dict]:
    """The form after each task."""
    forms, form = [], empty_quadratic(jax.tree.map(jnp.zeros_like, tasks[0][0]))
    for end, importance in tasks:
        form = add_task(form, end, importance, anchors=anchors)
        forms.append(form)
    return forms


def by_hand(params, pairs) -> float:
    """The sum over pairs (anchor, F) and all entries of F (theta - anchor)^2."""

    def flat(x) -> np.ndarray:
        return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(x)])

    return float(sum(np.sum(flat(f) * (flat(params) - flat(anchor)) ** 2) for anchor, f in pairs))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_with_each_every_task_pulls_towards_its_own_end(tasks, count: int) -> None:
    form = grown(tasks, "each")[count - 1]
    for seed in range(5):
        params = tree(np.random.default_rng(100 + seed))
        assert float(quadratic_value(form, params)) == pytest.approx(by_hand(params, tasks[:count]), rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_with_last_all_importances_stand_around_the_newest_end(tasks, count: int) -> None:
    form = grown(tasks, "last")[count - 1]
    newest = tasks[count - 1][0]
    for seed in range(5):
        params = tree(np.random.default_rng(100 + seed))
        wanted = by_hand(params, [(newest, importance) for _, importance in tasks[:count]])
        assert float(quadratic_value(form, params)) == pytest.approx(wanted, rel=1e-5)
    assert float(quadratic_value(form, newest)) == 0.0


def test_the_two_agree_for_one_task_and_differ_for_more(tasks) -> None:
    params = tree(np.random.default_rng(9))
    values = [[float(quadratic_value(form, params)) for form in grown(tasks, anchors)] for anchors in ("each", "last")]
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-6)
    assert all(abs(each / last - 1) > 0.1 for each, last in list(zip(*values, strict=True))[1:])


def test_the_gradient_is_that_of_the_sum(tasks) -> None:
    params = tree(np.random.default_rng(11))
    gradient = jax.grad(lambda p: quadratic_value(grown(tasks, "each")[-1], p))(params)
    for path in (lambda x: x["a"], lambda x: x["b"]["c"]):
        wanted = sum(2.0 * np.float64(path(f)) * (path(params) - np.float64(path(end))) for end, f in tasks)
        np.testing.assert_allclose(path(gradient), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("anchors", ["each", "last"])
def test_memory_does_not_grow_with_the_tasks(tasks, anchors: str) -> None:
    empty = empty_quadratic(tasks[0][0])
    shapes = [jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), form) for form in grown(tasks, anchors)]
    assert all(shape == jax.tree.map(lambda x: (x.shape, x.dtype), empty) for shape in shapes)


def test_before_the_first_task_the_form_is_zero_everywhere(tasks) -> None:
    form = empty_quadratic(tasks[0][0])
    value, gradient = jax.value_and_grad(lambda p: quadratic_value(form, p))(tasks[1][0])
    assert float(value) == 0.0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_task_without_importance_changes_the_anchor_but_no_value(tasks) -> None:
    """As the last task of a run, after which nothing is estimated."""
    form, params = grown(tasks, "each")[1], tree(np.random.default_rng(3))
    nothing = jax.tree.map(np.zeros_like, params)
    after = add_task(form, tasks[2][0], nothing, anchors="each")
    assert float(quadratic_value(after, params)) == pytest.approx(float(quadratic_value(form, params)), rel=1e-5)
