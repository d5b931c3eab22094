"""Rank-1 EWC: mu, c and the anchors against NumPy and closed forms; its eigenvectors against a known spectrum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.errors import UserError
from jdcl_jax.keys import example_keys, named_key
from jdcl_jax.methods import rank1_ewc
from jdcl_jax.methods.method import Learned
from jdcl_jax.methods.subspace import products
from jdcl_jax.training.gradients import across
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context


def estimated(method, tracked, task: int = 0, params=None):
    """The penalty's memory after a task that ended with `tracked`."""
    params = {"w": jnp.float32(0.6), "b": jnp.array([0.3, -0.2, 0.1, -0.4])} if params is None else params
    memory = method.end_task(method.init_memory(params), Learned(params, params, tracked), task)
    return memory["penalties"]["rank1_ewc"]


# -- the closed form


@pytest.mark.parametrize("way", ["one device", "pmap", "jit", "fed"])
def test_mu_and_c_are_those_of_the_drawn_gradients(affine, way: str) -> None:
    if way in ("pmap", "jit"):
        affine.parallel = Parallel(way, jax.devices()[:2])
    affine.fed = way == "fed"
    method = affine.method("rank1_ewc", rank1_ewc={"samples": 48, "batch_size": 8})
    tracked = affine.observe(method, 0)
    first, second = (affine.flat(affine.gradients(affine.inputs(method, 0, number))) for number in (1, 2))
    mu = first.mean(0)
    assert np.max(np.abs(first[:8] / second[:8] - 1)) > 0.1  # the two passes see other noise
    np.testing.assert_allclose(affine.flat(tracked["mean"]), mu, rtol=1e-4, atol=1e-7)
    c = np.mean((second @ mu) ** 2) / (mu @ mu) ** 2
    kept = estimated(method, tracked)
    np.testing.assert_allclose(kept["curvature"], [c, 0.0], rtol=1e-4)
    np.testing.assert_allclose(affine.flat(kept["directions"])[0], mu, rtol=1e-4, atol=1e-7)


def test_with_many_samples_mu_and_c_are_the_exact_ones(affine) -> None:
    affine.per_call = 64
    method = affine.method("rank1_ewc", rank1_ewc={"samples": 16_384, "batch_size": 64})
    tracked = affine.observe(method, 1)
    mu, second = affine.moments(1)
    np.testing.assert_allclose(affine.flat(tracked["mean"]), mu, atol=4 * np.sqrt(second.max() / 16_384))
    kept = estimated(method, tracked, task=1)
    assert float(kept["curvature"][1]) == pytest.approx(mu @ second @ mu / (mu @ mu) ** 2, rel=0.1)
    assert float(kept["curvature"][0]) == 0.0  # the place of the first task, which was not estimated here


def test_c_makes_the_multiple_of_mu_mu_that_is_nearest_to_the_fisher(affine) -> None:
    """In Frobenius distance to the mean of g g^T: a little more or less is further away."""
    method = affine.method("rank1_ewc", rank1_ewc={"samples": 48, "batch_size": 8})
    kept = estimated(method, affine.observe(method, 0))
    g = affine.flat(affine.gradients(affine.inputs(method, 0, 2)))
    fisher, mu, c = g.T @ g / len(g), affine.flat(kept["directions"])[0], float(kept["curvature"][0])

    def distance(factor: float) -> float:
        return float(np.linalg.norm(fisher - factor * c * np.outer(mu, mu)))

    assert distance(1.0) < min(distance(0.99), distance(1.01))
    assert distance(1.0) < 0.98 * np.linalg.norm(fisher)


def same_gradients(affine):
    """All images equal, and a denoiser whose gradient sees neither x_t nor the noise: b of a v-like constant target."""

    def constant(params, x_t, t, labels, keys):
        del t, labels, keys
        # The target is eps: adding it back makes output - target = w / 4 + b of the row, the same for every example.
        return params["w"] / 4 + params["b"][:, None, None] + jax.lax.stop_gradient(jnp.zeros_like(x_t))

    affine.setup = dataclasses.replace(
        affine.setup,
        apply=constant,
        sampler=dataclasses.replace(affine.setup.sampler, prediction="x0"),
    )
    affine.images = np.full_like(affine.images, 200)
    return affine


def test_if_all_gradients_are_equal_the_form_is_that_of_the_full_fisher(affine) -> None:
    affine = same_gradients(affine)
    method = affine.method("rank1_ewc", rank1_ewc={"samples": 16, "batch_size": 8})
    params = affine.params
    kept = estimated(method, affine.observe(method, 0), params=params)
    error = float(params["w"]) / 4 + np.asarray(params["b"], np.float64) - (200 / 127.5 - 1)
    g = np.array([error.mean() / 4, *(error / 4)])  # of half the mean over 16 pixels of error^2
    for seed in range(3):
        away = np.random.default_rng(seed).normal(size=5).astype(np.float32)
        moved = {"w": params["w"] + away[0], "b": params["b"] + away[1:]}
        wanted = (g @ (affine.flat(moved) - affine.flat(params))) ** 2
        assert float(method.penalties[0].value(moved, kept)) == pytest.approx(wanted, rel=1e-4)


def test_every_task_pulls_towards_its_own_end_along_its_own_direction(affine) -> None:
    """sum_k c_k (mu_k . (theta - theta*_k))^2, with the one anchor that is kept and offsets, against all of them."""
    affine.setup = dataclasses.replace(
        affine.setup, groups=((3,), (1,), (0,), (2,), (5, 4)), task_sizes=(10, 10, 12, 8, 20)
    )
    method = affine.method("rank1_ewc")
    generator = np.random.default_rng(1)
    memory, terms = method.init_memory(affine.params), []

    def draw() -> dict:
        values = generator.normal(size=5).astype(np.float32)
        return {"w": jnp.asarray(values[0]), "b": jnp.asarray(values[1:])}

    shapes = jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), memory)
    for task in range(4):
        end, mean, along = draw(), draw(), float(generator.uniform(0.5, 2.0))
        memory = method.end_task(memory, Learned(end, end, {"mean": mean, "along": jnp.float32(along)}), task)
        mu = affine.flat(mean)
        terms.append((along / (mu @ mu) ** 2, mu, affine.flat(end)))
        assert jax.tree.map(lambda x: (np.shape(x), np.asarray(x).dtype), memory) == shapes
        for _ in range(3):
            theta = draw()
            wanted = sum(c * (mu @ (affine.flat(theta) - own)) ** 2 for c, mu, own in terms)
            value = method.penalties[0].value(theta, memory["penalties"]["rank1_ewc"])
            assert float(value) == pytest.approx(wanted, rel=1e-4)
    # After the last task nothing was estimated: the form stays what it is, around another anchor.
    last = draw()
    after = method.end_task(memory, Learned(last, last, method.init_tracked(last)), 4)
    theta = draw()
    values = [float(method.penalties[0].value(theta, m["penalties"]["rank1_ewc"])) for m in (memory, after)]
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    np.testing.assert_array_equal(after["penalties"]["rank1_ewc"]["anchor"]["b"], last["b"])


def test_without_any_gradient_the_penalty_is_zero_and_finite(affine) -> None:
    for options in ({}, {"form": "power", "rank": 2}):
        method = affine.method("rank1_ewc", rank1_ewc=options)
        kept = estimated(method, method.init_tracked(affine.params))
        value, gradient = jax.value_and_grad(method.penalties[0].value)(
            jax.tree.map(lambda x: x + 1, affine.params), kept
        )
        assert float(value) == 0.0
        assert not np.any(affine.flat(gradient))


# -- eigenvectors by subspace iteration

ENTRIES = 24


def spectrum(values) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal vectors [r, 24], and gradients [48, 24] whose second moment has exactly these eigenvalues."""
    generator = np.random.default_rng(2)
    vectors = np.linalg.qr(generator.normal(size=(ENTRIES, len(values))))[0].T
    signs = np.linalg.qr(generator.normal(size=(48, len(values))))[0] * np.sqrt(48)  # uncorrelated, of variance 1
    return vectors, (signs * np.sqrt(values)) @ vectors


def tree_of(rows: np.ndarray) -> dict:
    """[n, 24] as a tree of three leaves."""
    rows = jnp.asarray(rows, jnp.float32)
    return {"a": rows[:, :12].reshape(-1, 3, 4), "b": {"c": rows[:, 12:23]}, "d": rows[:, 23]}


def rows_of(tree) -> np.ndarray:
    parts = [tree["a"].reshape(-1, 12), tree["b"]["c"], tree["d"][:, None]]
    return np.concatenate([np.asarray(part, np.float64) for part in parts], 1)


def iterated(affine, monkeypatch, gradients: np.ndarray, *, rank: int, iterations: int, batch_size: int = 8):
    """Curvatures [r] and directions [r, 24] from the estimation, with these gradients in the place of the network's."""
    samples = len(gradients)
    options = {"form": "power", "rank": rank, "iterations": iterations, "samples": samples, "batch_size": batch_size}
    method = affine.method("rank1_ewc", rank1_ewc=options)

    def given(params, examples, of):
        mine = jnp.asarray(gradients, jnp.float32)[examples.label]
        return jnp.zeros(len(mine)), tree_of(mine)

    monkeypatch.setattr(rank1_ewc, "noise_examples", lambda setup, examples: examples)
    monkeypatch.setattr(rank1_ewc, "per_sample_gradients", given)
    params = jax.tree.map(lambda x: x[0], tree_of(np.zeros((1, ENTRIES))))
    (phase,) = [p for p in method.phases(0) if p.observe is not None]
    context, tracked = Context(named_key(4), None, {}), method.init_tracked(params)
    observe = jax.jit(
        lambda tracked, batch, step: phase.observe(tracked, params, batch, context.replace(step=step), across(None))[0]
    )
    for step in range(phase.steps):
        rows = (step * batch_size + np.arange(batch_size)) % samples
        images = jnp.zeros((batch_size, 4, 4, 1))
        batch = Examples(images, jnp.asarray(rows), example_keys(named_key(0), jnp.asarray(rows)))
        tracked = observe(tracked, {"current": batch}, jnp.int32(step))
    kept = method.end_task(method.init_memory(params), Learned(params, params, tracked), 0)["penalties"]["rank1_ewc"]
    return np.asarray(kept["curvature"])[:rank], rows_of(kept["directions"])[:rank], tracked


@pytest.mark.parametrize("values", [(2.0,), (3.0, 0.4), (5.0, 1.0, 0.2)])
def test_the_leading_eigenvectors_of_a_known_fisher_are_found(affine, monkeypatch, values) -> None:
    vectors, gradients = spectrum(np.array([*values, 0.01, 0.005]))
    rank = len(values)
    curvature, directions, _ = iterated(affine, monkeypatch, gradients, rank=rank, iterations=6)
    np.testing.assert_allclose(curvature, values, rtol=1e-3)
    np.testing.assert_allclose(np.abs(directions @ vectors[:rank].T), np.eye(rank), atol=3e-3)
    np.testing.assert_allclose(directions @ directions.T, np.eye(rank), atol=1e-5)


@pytest.mark.parametrize("values", [(1.0, 1e-2, 1e-4), (1e-4, 1e-6, 1e-8), (100.0, 0.01, 0.009)])
def test_directions_are_orthonormal_however_steep_the_spectrum(affine, monkeypatch, values) -> None:
    """Gradients of diffusion models are nearly collinear, so that F V is nearly of rank 1: float32 must bear it."""
    vectors, gradients = spectrum(np.array(values))
    curvature, directions, tracked = iterated(affine, monkeypatch, gradients, rank=3, iterations=4)
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(products(tracked["basis"], tracked["basis"]), np.eye(3), atol=1e-5)
    assert curvature[0] == pytest.approx(values[0], rel=1e-4)
    assert curvature[1] == pytest.approx(values[1], rel=1e-2)
    assert abs(directions[1] @ vectors[1]) > (0.99 if values[1] > 2 * values[2] else 0.0)


def test_more_directions_than_the_fisher_has_add_nothing(affine, monkeypatch) -> None:
    vectors, gradients = spectrum(np.array([2.0]))
    curvature, directions, _ = iterated(affine, monkeypatch, gradients, rank=3, iterations=3)
    assert np.isfinite(directions).all()
    form = (curvature * directions.T) @ directions
    np.testing.assert_allclose(form, 2.0 * np.outer(vectors[0], vectors[0]), atol=2e-4)


def test_an_eigenvector_is_a_better_form_than_the_mean(affine, monkeypatch) -> None:
    """Or equal: no rank-1 form is nearer to the Fisher."""
    _, gradients = spectrum(np.array([1.0, 0.5, 0.3]))
    gradients = gradients + 0.3
    fisher = gradients.T @ gradients / len(gradients)
    curvature, (direction,), _ = iterated(affine, monkeypatch, gradients, rank=1, iterations=12)
    mu = gradients.mean(0)
    c = mu @ fisher @ mu / (mu @ mu) ** 2
    best = np.linalg.norm(fisher - curvature[0] * np.outer(direction, direction))
    assert best < np.linalg.norm(fisher - c * np.outer(mu, mu))
    assert best == pytest.approx(np.sqrt(np.sum(np.linalg.eigvalsh(fisher)[:-1] ** 2)), rel=1e-3)


def test_eigenvectors_do_not_depend_on_the_batch_and_come_out_the_same_again(affine, monkeypatch) -> None:
    _, gradients = spectrum(np.array([3.0, 0.4, 0.1]))
    runs = [iterated(affine, monkeypatch, gradients, rank=2, iterations=5, batch_size=b)[:2] for b in (4, 4, 16)]
    for (curvature, directions), same in zip(runs[1:], (True, False), strict=True):
        close = np.testing.assert_array_equal if same else lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)
        close(curvature, runs[0][0])
        close(np.abs(directions), np.abs(runs[0][1]))


@pytest.mark.parametrize("mode", ["pmap", pytest.param("jit", marks=pytest.mark.long)])
def test_two_devices_find_what_one_finds(affine, mode: str) -> None:
    options = {"form": "power", "rank": 2, "iterations": 3, "samples": 32, "batch_size": 8}
    method = affine.method("rank1_ewc", rank1_ewc=options)
    one = affine.observe(method, 1)
    stale = jax.tree.map(lambda x: x + np.nan, one)
    affine.parallel = Parallel(mode, jax.devices()[:2])
    two = affine.observe(method, 1, tracked=stale)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_on_the_denoiser_the_first_eigenvector_is_that_of_the_exact_fisher(affine) -> None:
    affine.per_call = 64
    options = {"form": "power", "rank": 1, "iterations": 3, "samples": 8192, "batch_size": 64}
    method = affine.method("rank1_ewc", rank1_ewc=options)
    kept = estimated(method, affine.observe(method, 0))
    values, vectors = np.linalg.eigh(affine.moments(0)[1])
    assert float(kept["curvature"][0]) == pytest.approx(values[-1], rel=0.1)
    assert abs(affine.flat(kept["directions"])[0] @ vectors[:, -1]) > 0.99


# -- phases and options


def test_a_pass_has_as_many_examples_as_asked_and_costs_its_share(affine) -> None:
    sizes = {"samples": 33, "batch_size": 4}
    mean = affine.method("rank1_ewc", rank1_ewc=sizes)
    power = affine.method("rank1_ewc", rank1_ewc={**sizes, "form": "power", "iterations": 5})
    for method, names, steps in ((mean, ["mean_gradient", "curvature"], 9), (power, ["eigenvectors"], 45)):
        phases = [p for p in method.phases(1) if p.observe is not None]
        assert [p.name for p in phases] == names
        assert all(p.steps == steps and p.passes == 3 * 4 / 8 for p in phases)
        assert all(set(p.streams) == {"current"} and p.streams["current"].batch_size == 4 for p in phases)
        assert not any(p.observe for p in method.phases(2))


def test_the_last_task_moves_the_anchor_only(affine) -> None:
    method = affine.method("rank1_ewc", rank1_ewc={"samples": 8, "batch_size": 4})
    (_, (_, before, _), (params, after, _)) = affine.learn(method, optax.sgd(0.05))
    before, after = (memory["penalties"]["rank1_ewc"] for memory in (before, after))
    np.testing.assert_array_equal(before["curvature"], after["curvature"])
    np.testing.assert_array_equal(affine.flat(before["directions"]), affine.flat(after["directions"]))
    assert np.all(np.asarray(before["curvature"]) > 0.0)
    np.testing.assert_array_equal(affine.flat(after["anchor"]), affine.flat(params))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "median"}, "rank1_ewc.form is 'median'; write one of: mean, power"),
        (
            {"rank": 2},
            "rank1_ewc.rank=2 has no effect with the closed form; leave it out or write method.rank1_ewc.form=power",
        ),
        ({"iterations": 9}, "rank1_ewc.iterations=9 has no effect with the closed form"),
        ({"form": "power", "rank": 0}, "rank1_ewc.rank counts from 1"),
        ({"form": "power", "iterations": 1}, "rank1_ewc.iterations counts from 2"),
        ({"samples": 0}, "rank1_ewc.samples counts from 1"),
        ({"batch_size": 0}, "rank1_ewc.batch_size counts from 1"),
        ({"strength": -1.0}, "rank1_ewc.strength"),
    ],
)
def test_impossible_options_are_refused(affine, options, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        affine.method("rank1_ewc", rank1_ewc=options)
    assert "\n" not in str(caught.value)
