"""Projected updates leave the answers to protected inputs as they are; bases hold the energy asked for, no more."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.models.capture import captured
from jdcl_jax.models.layers import Conv
from jdcl_jax.training.projection import cost, empty, extend, project_updates, threshold_at

PROJECT = project_updates()


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(seed, size, count):
    """Orthonormal columns [size, count]."""
    return np.linalg.qr(normal(seed, size, size))[0][:, :count]


def shown(seed, size, values, count=40):
    """Inputs [size, count] with these singular values, and their singular directions [size, len(values)]."""
    left, right = orthogonal(seed, size, len(values)), orthogonal(seed + 1000, count, len(values))
    return (left * np.asarray(values)) @ right.T, left


def span(basis):
    """The protected directions, float64 [in, rank]."""
    return np.asarray(basis["vectors"], np.float64)[:, : int(basis["rank"])]


def held(basis, columns):
    """Share of the energy within the span, written down."""
    return np.sum((span(basis).T @ columns) ** 2) / np.sum(columns**2)


def project(u, kernel, basis):
    """One update of one kernel."""
    u, kernel = jnp.asarray(u, jnp.float32), jnp.asarray(kernel, jnp.float32)
    tree, _ = PROJECT.update({"kernel": u}, optax.EmptyState(), {"kernel": kernel}, bases={"": basis})
    return tree["kernel"]


# -- which directions


@pytest.mark.parametrize(
    ("threshold", "rank", "energy"), [(0.6, 1, 9 / 14.25), (0.9, 2, 13 / 14.25), (0.97, 3, 14 / 14.25), (1.0, 4, 1.0)]
)
def test_the_first_task_keeps_the_fewest_directions_that_hold_the_energy(threshold, rank, energy):
    """Singular values 3, 2, 1, .5 have energies 9, 4, 1, .25 of 14.25."""
    columns, left = shown(0, 12, [3.0, 2.0, 1.0, 0.5])
    basis, growth = extend(empty(12, 5), columns, normal(1, 12, 5), threshold)
    assert (growth.rank_before, growth.rank, growth.width, growth.threshold) == (0, rank, 12, threshold)
    assert int(basis["rank"]) == rank
    assert (growth.energy_before, growth.energy) == pytest.approx((0.0, energy), abs=1e-12)
    np.testing.assert_allclose(span(basis) @ span(basis).T, left[:, :rank] @ left[:, :rank].T, atol=1e-6)
    assert not np.any(basis["vectors"][:, rank:])
    assert growth.seconds > 0


@pytest.mark.parametrize(("threshold", "new", "energy"), [(0.5, 0, 9 / 15), (0.8, 1, 13 / 15), (0.9, 2, 14 / 15)])
def test_a_later_task_counts_what_is_held_and_keeps_directions_of_the_residual(threshold, new, energy):
    """What is known holds 9 of 15; beside it are 4, 1 and 1, and 1/25 of its own energy does not help them."""
    known, left = shown(0, 12, [5.0, 0.1])
    kernel, later = normal(1, 12, 5), normal(2, 12, 5)
    first, _ = extend(empty(12, 5), known, kernel, 0.99)
    columns = (left[:, :1] * 3.0) @ orthogonal(3, 30, 4)[:, :1].T
    rest = np.linalg.qr(np.column_stack([left[:, 0], normal(4, 12, 3)]))[0][:, 1:]
    columns = columns + (rest * [2.0, 1.0, 1.0]) @ orthogonal(3, 30, 4)[:, 1:].T
    basis, growth = extend(first, columns, later, threshold)
    assert (growth.rank_before, growth.rank) == (1, 1 + new)
    assert (growth.energy_before, growth.energy) == pytest.approx((9 / 15, energy), abs=1e-7)
    assert held(basis, columns) == pytest.approx(energy, abs=1e-6)
    np.testing.assert_array_equal(basis["vectors"][:, 0], first["vectors"][:, 0])
    assert not np.any(first["vectors"][:, 1:])
    np.testing.assert_allclose(basis["kept"][: 1 + new], span(basis).T @ later, atol=1e-6)
    assert not np.any(basis["kept"][1 + new :])
    assert basis["vectors"].shape == (12, 12)
    assert {name: (x.shape, x.dtype) for name, x in basis.items()} == {
        name: (x.shape, x.dtype) for name, x in empty(12, 5).items()
    }


def test_twenty_tasks_stay_orthonormal_and_every_one_is_held_by_the_fewest_directions():
    """Each task has directions of its own, whose singular values fall faster or slower."""
    size, kernel = 100, normal(99, 100, 4)
    basis, added = empty(size, 4), []
    for task in range(20):
        threshold = threshold_at(0.97, 0.001, task)
        columns, _ = shown(task, size, (1.4 + 0.4 * (task % 5)) ** -np.arange(12))
        columns = columns + 1e-6 * normal(task, size, 40)
        before, (basis, growth) = basis, extend(basis, columns, kernel, threshold)
        np.testing.assert_allclose(span(basis).T @ span(basis), np.eye(growth.rank), atol=1e-6)
        assert growth.energy_before == pytest.approx(held(before, columns), abs=1e-6)
        assert growth.energy == pytest.approx(held(basis, columns), abs=1e-6)
        assert growth.energy >= threshold
        assert growth.rank > growth.rank_before
        assert held({**basis, "rank": growth.rank - 1}, columns) < threshold
        added.append(growth.rank - growth.rank_before)
    assert added[0] == 6  # of 1 + q + q^2 + ... the first k are 1 - q^k: with q = 1.4^-2, .982 of six and .965 of five
    assert len(set(added)) > 3
    assert growth.rank < size


def test_nearly_dependent_inputs_give_orthonormal_directions():
    a, b, c = normal(0, 3, 50)
    for scale in (1e-2, 1e-4, 3e-6):
        basis, growth = extend(empty(50, 2), np.column_stack([a, a + scale * b]), normal(1, 50, 2), 1.0)
        again, more = extend(basis, np.column_stack([a, b, a + b + scale * c]), normal(1, 50, 2), 1.0)
        assert (growth.rank, more.rank_before, more.rank) == (2, 2, 3)
        np.testing.assert_allclose(span(again).T @ span(again), np.eye(3), atol=1e-6)
        assert held(again, b[:, None]) == pytest.approx(1.0, abs=1e-6)
        outside = c - span(again) @ (span(again).T @ c)
        assert np.linalg.norm(outside) < 1e-5 / scale * np.linalg.norm(c)


def test_inputs_that_are_known_add_nothing():
    """A threshold of 1 adds everything that is no rounding of float32."""
    columns, left = shown(0, 64, [5.0, 2.0, 1.0])
    kernel = normal(1, 64, 8)
    basis, growth = extend(empty(64, 8), columns.astype(np.float32), kernel, 1.0)
    assert growth.rank == 3
    for known in (columns, columns.astype(np.float32), (left @ normal(2, 3, 500)).astype(np.float32)):
        again, more = extend(basis, known, kernel, 1.0)
        assert (more.rank_before, more.rank) == (3, 3)
        assert more.energy_before == pytest.approx(1.0, abs=1e-10)
        jax.tree.map(np.testing.assert_array_equal, again, basis)


def test_noise_is_measured_by_the_inputs_and_not_by_what_is_left_of_them():
    columns, left = shown(0, 30, [1.0, 0.5])
    basis, _ = extend(empty(30, 2), columns, normal(1, 30, 2), 1.0)
    other = np.linalg.qr(np.column_stack([left, normal(2, 30, 2)]))[0][:, 2:]
    faint = (other * [1e-3, 3e-8]) @ orthogonal(3, 40, 2).T
    _, growth = extend(basis, columns + faint, normal(1, 30, 2), 1.0)
    assert growth.rank == 3
    _, growth = extend(basis, 1e-9 * (columns + faint), normal(1, 30, 2), 1.0)
    assert growth.rank == 3


@pytest.mark.parametrize("rank", [0, 2])
def test_inputs_of_zeros_say_nothing(rank):
    columns, _ = shown(0, 12, [3.0, 2.0, 1.0, 0.5])
    kernel = normal(1, 12, 5)
    start, _ = extend(empty(12, 5), columns[:, :rank], kernel, 1.0)
    assert int(start["rank"]) == rank
    for zeros in (np.zeros((12, 7)), np.zeros((12, 0))):
        basis, growth = extend(start, zeros, kernel, 0.97)
        assert (growth.rank, growth.energy_before, growth.energy) == (rank, 1.0, 1.0)
        jax.tree.map(np.testing.assert_array_equal, basis, start)
    _, growth = extend(start, columns, kernel, 0.97)
    _, padded = extend(start, np.concatenate([columns, np.zeros((12, 100))], axis=1), kernel, 0.97)
    assert padded[:3] == growth[:3]
    assert padded.energy == pytest.approx(growth.energy, abs=1e-12)


def test_the_rank_ends_at_the_width_and_then_nothing_is_learned():
    kernel = normal(0, 6, 4).astype(np.float32)
    basis, ranks = empty(6, 4), []
    for task in range(5):
        basis, growth = extend(basis, normal(task, 6, 2), kernel, 1.0)
        ranks.append(growth.rank)
    assert ranks == [2, 4, 6, 6, 6]
    assert (growth.rank_before, growth.rank, growth.width, growth.energy) == (6, 6, 6, 1.0)
    np.testing.assert_allclose(span(basis) @ span(basis).T, np.eye(6), atol=1e-6)
    assert not np.any(project(normal(7, 6, 4), kernel + 0.1, basis))


# -- refusals


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.001, 97, float("nan")])
def test_a_threshold_is_a_share(threshold):
    with pytest.raises(UserError, match=r"share above 0 and up to 1, such as 0\.97, not"):
        extend(empty(3, 2), np.ones((3, 1)), np.ones((3, 2)), threshold)
    with pytest.raises(UserError, match="share above 0 and up to 1"):
        threshold_at(threshold, 0.003, 0)


def test_thresholds_grow_up_to_one():
    assert [threshold_at(0.97, 0.003, task) for task in (0, 1, 10, 11)] == pytest.approx([0.97, 0.973, 1.0, 1.0])
    assert threshold_at(0.97, 0.003, 500) == 1.0
    assert threshold_at(0.9, 0.0, 500) == 0.9
    for growth in (-0.1, float("nan")):
        with pytest.raises(UserError, match="write 0 or more"):
            threshold_at(0.97, growth, 1)


def test_inputs_that_are_not_finite_or_of_another_layer_are_refused():
    for wrong in (np.nan, np.inf):
        with pytest.raises(UserError, match="NaN or infinity"):
            extend(empty(3, 2), np.array([[1.0], [wrong], [0.0]]), np.ones((3, 2)), 0.97)
    for columns, kernel in (((4, 3), (4, 2)), ((2, 3), (3, 2)), ((3, 3), (2, 3))):
        with pytest.raises(ValueError, match=r"kernels \[3, 2\] takes inputs \[3, n\]"):
            extend(empty(3, 2), np.ones(columns), np.ones(kernel), 0.97)


# -- projected updates


def test_an_update_loses_its_part_within_the_span_and_nothing_else():
    columns, left = shown(0, 10, [3.0, 2.0, 1.0])
    kernel, u = normal(1, 10, 4).astype(np.float32), normal(2, 10, 4)
    basis, _ = extend(empty(10, 4), columns, kernel, 1.0)
    np.testing.assert_allclose(project(u, kernel, basis), u - left @ (left.T @ u), atol=1e-6)


def test_a_kernel_that_has_drifted_is_pulled_back_within_the_span_only():
    columns, left = shown(0, 10, [3.0, 2.0, 1.0])
    kernel, drift = normal(1, 10, 4), 0.1 * normal(2, 10, 4)
    basis, _ = extend(empty(10, 4), columns, kernel, 1.0)
    np.testing.assert_allclose(project(np.zeros((10, 4)), kernel + drift, basis), -left @ (left.T @ drift), atol=1e-6)


def test_an_empty_basis_changes_no_bit():
    """Neither -0 nor what NaN in the weights would make of a product with zeros."""
    u = np.array([[-0.0, 0.0], [1.5, -1e-45], [np.inf, np.nan]], np.float32)
    kernel = np.full((3, 2), -np.inf, np.float32)
    for apply in (project, jax.jit(project)):
        projected = np.asarray(apply(u, kernel, empty(3, 2)))
        np.testing.assert_array_equal(projected.view(np.int32), u.view(np.int32))


def test_other_leaves_are_not_touched():
    kernel = normal(0, 4, 3).astype(np.float32)
    basis, _ = extend(empty(4, 3), normal(1, 4, 1), kernel, 1.0)
    layer = {"kernel": jnp.asarray(kernel), "bias": jnp.ones(3)}
    params = {"unet": {"key": layer, "value": layer, "norm": {"scale": jnp.ones(4)}}, "key": layer}
    updates = jax.tree.map(lambda x: 0.1 * x, params)
    projected, _ = PROJECT.update(updates, optax.EmptyState(), params, bases={"unet/key": basis})
    changed = jax.tree_util.tree_map_with_path(lambda path, a, b: a is not b, updates, projected)
    assert changed["unet"]["key"] == {"kernel": True, "bias": False}
    assert sum(jax.tree.leaves(changed)) == 1
    assert np.abs(projected["unet"]["key"]["kernel"] - updates["unet"]["key"]["kernel"]).max() > 0.01
    same, _ = PROJECT.update(updates, optax.EmptyState(), params, bases={})
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, updates, same)))


def test_a_basis_of_no_layer_or_of_another_one_is_refused():
    params = {"unet": {"key": {"kernel": jnp.ones((4, 3))}, "norm": {"scale": jnp.ones(4)}}}
    for wrong in ("unet/value", "key", "unet/norm", "unet"):
        with pytest.raises(ValueError, match=f"bases of layers that have no kernel here: {wrong}$"):
            PROJECT.update(params, optax.EmptyState(), params, bases={wrong: empty(4, 3), "unet/key": empty(4, 3)})
    with pytest.raises(ValueError, match=r"'unet/key' has a kernel \(4, 3\), but a basis for \[3, 4\]"):
        PROJECT.update(params, optax.EmptyState(), params, bases={"unet/key": empty(3, 4)})
    with pytest.raises(ValueError, match="reads the parameters"):
        PROJECT.update(params, optax.EmptyState(), None, bases={})


def test_a_convolution_says_the_same_of_an_old_image():
    layer, old, new = Conv(5, strides=2), normal(0, 1, 4, 4, 2), normal(1, 1, 4, 4, 2)
    params = layer.init(jax.random.key(0), jnp.asarray(old, jnp.float32))["params"]
    rows = captured(lambda: layer.apply({"params": params}, old), ["conv"], {Conv: "conv"})["conv"]
    basis, growth = extend(empty(18, 5), np.asarray(rows[0]).T, params["kernel"], 1.0)
    assert growth.rank == 4
    moved = {**params, "kernel": params["kernel"] + project(normal(2, 3, 3, 2, 5), params["kernel"], basis)}
    was, now = (np.stack([layer.apply({"params": p}, x) for x in (old, new)]) for p in (params, moved))
    np.testing.assert_allclose(now[0], was[0], atol=2e-6)
    assert np.abs(now[1] - was[1]).max() > 0.5


def test_products_have_all_digits_of_float32_on_every_device():
    text = str(jax.make_jaxpr(project)(jnp.ones((6, 4)), jnp.ones((6, 4)), empty(6, 4)))
    assert text.count("dot_general[") == text.count("(Precision.HIGHEST, Precision.HIGHEST)") == 2


def test_the_cost_is_what_the_compiler_counts():
    basis, growth = extend(empty(48, 32), normal(0, 48, 5), normal(1, 48, 32), 1.0)
    found = jax.jit(project).lower(jnp.ones((48, 32)), jnp.ones((48, 32)), basis).compile().cost_analysis()
    assert cost(48, 32).flops == pytest.approx(found["flops"], rel=0.01)
    assert cost(48, 32).bytes == growth.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(basis))


# -- training


def network(params, x):
    return jnp.tanh(x @ params["first"]["kernel"]) @ params["last"]["kernel"]


OLD = (normal(0, 3, 12) / np.sqrt(12)).astype(np.float32)  # protected contexts of the first layer
NEW = (normal(1, 24, 12) / np.sqrt(12) + 0.5 * OLD[:1]).astype(np.float32)  # learned later, partly within their span
TARGETS = normal(2, 24, 2).astype(np.float32)


def start():
    return {
        "first": {"kernel": jnp.asarray(normal(3, 12, 16) / 3, jnp.float32)},
        "last": {"kernel": jnp.asarray(normal(4, 16, 2) / 4, jnp.float32)},
    }


def loss(params):
    return jnp.mean((network(params, NEW) - TARGETS) ** 2)


def adamw():
    return optax.adamw(3e-3, weight_decay=0.1)


def gradients_projected(bases):
    """Projects gradients and not updates."""
    vectors = jnp.asarray(bases["first"]["vectors"])

    def update(gradients, state, params=None, **extra):
        del params, extra
        g = gradients["first"]["kernel"]
        inside = jnp.matmul(vectors, jnp.matmul(vectors.T, g, precision="highest"), precision="highest")
        return {**gradients, "first": {"kernel": g - inside}}, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def train(optimizer, bases, steps=400):
    """Parameters after training, and how much of the first layer's updates was within the span, [steps]."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params, bases=bases)
        u = updates["first"]["kernel"]
        inside = jnp.linalg.norm(jnp.matmul(bases["first"]["vectors"].T, u, precision="highest")) / jnp.linalg.norm(u)
        return (optax.apply_updates(params, updates), state), inside

    def run(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)

    (params, _), inside = jax.jit(run)(start())
    return params, np.asarray(inside)


def protected():
    basis, growth = extend(empty(12, 16), OLD.T, start()["first"]["kernel"], 1.0)
    assert growth.rank == 3
    return {"first": basis}


def answers(params):
    """W^T c in float64: of old contexts, and of new ones."""
    kernel = np.asarray(params["first"]["kernel"], np.float64)
    return OLD @ kernel, NEW @ kernel


def test_training_behind_the_projection_keeps_the_answers_to_old_contexts_and_learns():
    bases = protected()
    params, inside = train(optax.chain(adamw(), project_updates()), bases)
    (old, new), (old_then, new_then) = answers(params), answers(start())
    assert np.abs(old - old_then).max() < 1e-6
    assert np.abs(new - new_then).max() > 0.3
    assert inside.max() < 1e-3
    assert float(loss(params)) < 0.5 * float(loss(start()))


def test_without_a_projection_the_answers_to_old_contexts_change():
    params, _ = train(optax.with_extra_args_support(adamw()), protected())
    assert np.abs(answers(params)[0] - answers(start())[0]).max() > 0.1


def test_projected_gradients_leave_a_fifth_of_the_update_within_the_span():
    """Of 12 directions 3 are protected, so that half of an update of random signs would lie there."""
    bases = protected()
    params, inside = train(optax.chain(gradients_projected(bases), adamw()), bases)
    assert np.abs(answers(params)[0] - answers(start())[0]).max() > 0.02
    assert 0.15 < inside.mean() < 0.3
    assert inside.min() > 0.1


# -- rounding


def test_rounding_does_not_add_up_over_20000_steps():
    """The plain projection u - M M^T u is the control: what rounding moves stays moved."""
    columns, left = shown(0, 24, np.ones(6))
    kernel = normal(1, 24, 8).astype(np.float32)
    basis, _ = extend(empty(24, 8), columns, kernel, 1.0)
    vectors = jnp.asarray(basis["vectors"])

    def plain(u, weights):
        del weights
        return u - jnp.matmul(vectors, jnp.matmul(vectors.T, u, precision="highest"), precision="highest")

    def drift(projection):
        def step(weights, number):
            u = 1e-3 * jax.random.normal(jax.random.fold_in(jax.random.key(0), number), weights.shape)
            return weights + projection(u, weights), None

        walked = jax.jit(lambda w: jax.lax.scan(step, w, jnp.arange(20_000))[0])(jnp.asarray(kernel))
        moved = np.asarray(walked, np.float64) - kernel
        assert np.abs(moved).max() > 0.3
        return np.abs(left.T @ moved).max()

    pulled, unpulled = drift(lambda u, w: project(u, w, basis)), drift(plain)
    assert pulled < 1e-6
    assert unpulled > 5e-6
