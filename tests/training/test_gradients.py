"""The gradient of a step: averaged over the devices, and projected where two losses conflict (A-GEM)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.data.batches import Examples
from jdcl_jax.keys import example_keys, named_key
from jdcl_jax.training.gradients import across, descend, project_conflict, without_conflict
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool, create_state
from jdcl_jax.training.step import scan_steps, train_step
from jdcl_jax.training.streams import Stream


def tree(seed: int, scale: float = 1.0) -> dict:
    normal = np.random.default_rng(seed).normal
    return {"a": jnp.asarray(scale * normal(size=(3, 2))), "b": {"c": jnp.asarray(scale * normal(size=5))}}


def flat(gradient: dict) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(gradient)])


def conflicting(seed: int) -> tuple[dict, dict]:
    """Two trees whose product is negative."""
    g, r = tree(seed), tree(seed + 100)
    sign = -1.0 if flat(g) @ flat(r) > 0 else 1.0
    return g, jax.tree.map(lambda leaf: sign * leaf, r)


# -- the projection


@pytest.mark.parametrize("seed", range(5))
def test_a_conflict_is_projected_away(seed: int) -> None:
    g, r = conflicting(seed)
    projected, changed = project_conflict(g, r)
    assert float(changed) == 1.0
    size = np.linalg.norm(flat(g)) * np.linalg.norm(flat(r))
    assert flat(g) @ flat(r) < -1e-3 * size
    assert abs(flat(projected) @ flat(r)) < 1e-6 * size


def test_the_projection_is_as_exact_as_its_numbers() -> None:
    with jax.enable_x64():
        g, r = conflicting(1)
        assert g["a"].dtype == np.float64
        projected, _ = project_conflict(g, r)
        assert abs(flat(projected) @ flat(r)) < 1e-14


@pytest.mark.parametrize("seed", range(3))
def test_no_other_vector_without_conflict_is_nearer(seed: int) -> None:
    g, r = conflicting(seed)
    projected, _ = project_conflict(g, r)
    moved = np.linalg.norm(flat(projected) - flat(g))
    assert moved == pytest.approx(-(flat(g) @ flat(r)) / np.linalg.norm(flat(r)), rel=1e-5)
    others = flat(projected) + np.random.default_rng(seed).normal(size=(2000, 11)) * np.logspace(-2, 0, 2000)[:, None]
    others = others[others @ flat(r) >= 0]
    assert len(others) > 500
    assert np.all(np.linalg.norm(others - flat(g), axis=1) >= moved * (1 - 1e-5))


def test_a_gradient_without_conflict_is_left_as_it_is_bit_for_bit() -> None:
    g, r = conflicting(2)
    r = jax.tree.map(jnp.negative, r)
    kept, changed = project_conflict(g, r)
    assert float(changed) == 0.0
    jax.tree.map(np.testing.assert_array_equal, kept, g)


def test_all_leaves_count_together() -> None:
    g = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([3.0])}
    r = {"a": jnp.array([-1.0, 0.0]), "b": jnp.array([1.0])}  # product 2, though the first leaf conflicts
    kept, changed = project_conflict(g, r)
    assert float(changed) == 0.0
    jax.tree.map(np.testing.assert_array_equal, kept, g)
    r = {"a": jnp.array([-5.0, 0.0]), "b": jnp.array([1.0])}  # product -2, though the second leaf does not
    projected, _ = project_conflict(g, r)
    np.testing.assert_allclose(flat(projected), np.array([1, 0, 3]) + 2 / 26 * np.array([-5, 0, 1]), rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e-42])
def test_a_reference_of_nothing_changes_nothing_much(scale: float) -> None:
    """1e-25 squared is 0 in float32, and 1e-42 is no normal number."""
    g, r = conflicting(3)
    kept, _ = project_conflict(g, jax.tree.map(lambda leaf: jnp.float32(scale) * leaf, r))
    assert np.all(np.isfinite(flat(kept)))
    np.testing.assert_allclose(flat(kept), flat(g), rtol=1e-6)


# -- gradients of losses


def squared(name: str):
    """A loss on one stream: mean (x . w - label)^2."""

    def loss(params, batch, context):
        del context
        examples = batch[name]
        value = jnp.mean((examples.image.reshape(len(examples.label), -1) @ params["w"] - examples.label) ** 2)
        return value, {f"loss_{name}": value}

    return loss


def examples(x, y) -> Examples:
    x = jnp.asarray(x, jnp.float32)
    image = x.reshape(len(x), 1, -1, 1)
    return Examples(image, jnp.asarray(y), example_keys(named_key(0), jnp.arange(len(x))))


def test_a_conflict_of_two_losses_is_projected_and_reported() -> None:
    """At w = (0, 0) the gradients of (x . w - y)^2 are -2 y x: (-2, -4) of the loss, (6, 0) of the reference."""
    params = {"w": jnp.zeros(2)}
    batch = {"new": examples([[1.0, 2.0]], [1]), "old": examples([[3.0, 0.0]], [-1])}
    gradient = without_conflict(squared("new"), squared("old"))
    got, metrics = gradient(params, batch, None, across(None))
    np.testing.assert_allclose(got["w"], [0.0, -4.0])
    assert {name: float(v) for name, v in metrics.items()} == {
        "loss": 1.0, "loss_new": 1.0, "loss_old": 1.0, "conflict": 1.0
    }  # fmt: skip
    agreeing = {**batch, "old": examples([[3.0, 0.0]], [2])}
    got, metrics = gradient(params, agreeing, None, across(None))
    np.testing.assert_allclose(got["w"], [-2.0, -4.0])
    assert (float(metrics["loss"]), float(metrics["loss_old"]), float(metrics["conflict"])) == (1.0, 4.0, 0.0)


def test_descent_is_the_gradient_of_the_loss_with_its_metrics() -> None:
    got, metrics = descend(squared("new"))(
        {"w": jnp.zeros(2)}, {"new": examples([[1.0, 2.0]], [3])}, None, across(None)
    )
    np.testing.assert_allclose(got["w"], [-6.0, -12.0])
    assert {name: float(v) for name, v in metrics.items()} == {"loss": 9.0, "loss_new": 9.0}


# -- over devices


def test_what_connects_the_devices() -> None:
    def inside(x):
        over = across("devices")
        return over.mean({"x": x})["x"], over.gather((x,))[0], over.start(3)

    x = jnp.arange(6.0).reshape(2, 3)
    mean, gathered, start = jax.pmap(inside, axis_name="devices", devices=jax.local_devices()[:2])(x)
    np.testing.assert_array_equal(mean, [[1.5, 2.5, 3.5]] * 2)
    np.testing.assert_array_equal(gathered, [np.arange(6.0)] * 2)
    np.testing.assert_array_equal(start, [0, 3])
    alone = across(None)
    assert alone.mean(x) is x
    assert alone.gather(x) is x
    assert int(alone.start(3)) == 0


@pytest.mark.parametrize(("mode", "count"), [("pmap", 1), ("pmap", 2), ("jit", 2)])
def test_the_average_is_taken_before_the_projection(mode: str, count: int) -> None:
    """The first halves conflict and the second halves do not, so that each device alone would do something else."""
    generator = np.random.default_rng(13)
    images = generator.integers(0, 256, (8, 2)).astype(np.uint8)
    labels = generator.integers(-5, 6, 8).astype(np.int32)
    streams = {
        "new": Stream(4, rows=lambda context, key, positions: positions % 4),
        "old": Stream(4, rows=lambda context, key, positions: 4 + positions % 4),
    }

    def slopes(rows: slice) -> np.ndarray:
        x = images[rows] / 127.5 - 1.0
        return -2 * (x * labels[rows, None]).mean(0)

    def projected(g: np.ndarray, r: np.ndarray) -> np.ndarray:
        return g - min(g @ r, 0) / (r @ r) * r

    wanted = projected(slopes(slice(0, 4)), slopes(slice(4, 8)))
    by_device = np.mean([projected(slopes(slice(i, i + 2)), slopes(slice(4 + i, 6 + i))) for i in (0, 2)], axis=0)
    assert np.abs(wanted - slopes(slice(0, 4))).max() > 0.1
    assert np.abs(wanted - by_device).max() > 0.1
    parallel, optimizer = Parallel(mode, jax.local_devices()[:count]), optax.sgd(1.0)
    step = functools.partial(
        train_step,
        gradient=without_conflict(squared("new"), squared("old")), streams=streams, optimizer=optimizer, ema=0.0,
    )  # fmt: skip
    context = parallel.replicate(Context(named_key(0), Pool(images.reshape(8, 1, 2, 1), labels), {}))
    state = parallel.replicate(create_state({"w": jnp.zeros(2)}, optimizer, ema=False))
    ids = parallel.split({name: np.arange(4, dtype=np.int32) for name in streams})
    call, _ = parallel.compile_step(scan_steps(step, 1), state, context, ids, {})
    state, metrics = call(state, context, ids, {})
    np.testing.assert_allclose(state.params["w"], -wanted, rtol=1e-5)
    assert metrics["conflict"].tolist() == [1.0]
    assert float(metrics["loss_old"][0]) == pytest.approx(np.mean(labels[4:] ** 2))
    assert float(metrics["gradient_norm"][0]) == pytest.approx(np.linalg.norm(wanted), rel=1e-5)
