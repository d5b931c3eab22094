"""EWC, MAS, SI and L2: importances against closed forms and against NumPy's own per-sample gradients."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erf

from jdcl_jax.data.views import UNCHANGED
from jdcl_jax.keys import named_key
from jdcl_jax.methods.method import Learned
from jdcl_jax.methods.registry import known_penalties
from jdcl_jax.training import parallel
from jdcl_jax.training.gradients import descend
from jdcl_jax.training.optimizer import make_optimizer
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, begin_task, create_state
from jdcl_jax.training.step import train_step

WAYS = ("one device", "pmap", "jit", "fed by the host", "fed by the host, pmap", "conditional", "flipped")


def spread(affine, way: str):
    """The same problem in another way of running it; all have the numbers of the same arithmetic."""
    if way in ("pmap", "fed by the host, pmap"):
        affine.parallel = Parallel("pmap", jax.devices()[:2])
    if way == "jit":
        affine.parallel = Parallel("jit", jax.devices()[:2])
    affine.fed = way.startswith("fed")
    if way == "conditional":
        affine.setup = dataclasses.replace(affine.setup, num_classes=6, label_dropout=0.3)
    if way == "flipped":
        affine.setup = dataclasses.replace(affine.setup, views=dataclasses.replace(UNCHANGED, flip=True))
    return affine


def mean_of(gradients: dict, power: int) -> dict:
    return {name: np.mean(np.abs(g) ** power, axis=0) for name, g in gradients.items()}


def assert_close(found: dict, wanted: dict, rtol: float = 2e-5) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, atol=1e-9, err_msg=name)


# -- EWC's Fisher information


@pytest.mark.parametrize("way", WAYS)
def test_the_fisher_is_the_mean_of_squared_gradients_of_single_examples(affine, way: str) -> None:
    affine = spread(affine, way)
    method = affine.method("ewc", ewc={"samples": 48, "batch_size": 8})
    found = affine.observe(method, 1)["fisher"]
    gradients = affine.gradients(affine.inputs(method, 1, 1))
    assert len(gradients["w"]) == 48
    assert_close(found, mean_of(gradients, 2))


@pytest.mark.parametrize("task", [0, 1])
def test_with_many_samples_the_fisher_is_the_exact_one(affine, task: int) -> None:
    """Of the task's own images; that of the other task, or of another w, is far outside the sampling error."""
    affine.per_call = 64
    method = affine.method("ewc", ewc={"samples": 16_384, "batch_size": 64})
    found = affine.flat(affine.observe(method, task)["fisher"])
    exact = np.diag(affine.moments(task)[1])
    # The relative error of such a mean is sqrt(kurtosis / n), at most 3 % here: 4 sigma.
    np.testing.assert_allclose(found, exact, rtol=0.1)
    assert np.max(np.abs(np.diag(affine.moments(1 - task)[1]) / exact - 1)) > 0.2
    elsewhere = np.diag(affine.moments(task, {**affine.params, "w": 0.3})[1])
    assert np.max(np.abs(elsewhere / exact - 1)) > 0.3


def test_the_exact_moments_are_those_of_drawn_gradients(affine) -> None:
    """The oracle itself, against 200,000 gradients drawn by NumPy."""
    generator = np.random.default_rng(0)
    x_0 = affine.images[:20].astype(np.float64).reshape(20, 16)[generator.integers(0, 20, 200_000)] / 127.5 - 1.0
    alpha_bar = np.asarray(affine.setup.schedule.alpha_bar, np.float64)[generator.integers(0, 1000, 200_000)][:, None]
    eps = generator.normal(size=x_0.shape)
    g = affine.flat(affine.gradients({"x_t": np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps, "eps": eps}))
    mean, second = affine.moments(0)
    np.testing.assert_allclose(g.mean(0), mean, atol=4 * g.std(0).max() / np.sqrt(len(g)))
    np.testing.assert_allclose(g.T @ g / len(g), second, atol=0.02 * second.max())


def test_squares_are_taken_before_the_mean_over_the_batch(affine) -> None:
    """The squared gradient of a batch would be smaller, the more so the larger the batch."""
    batch_size = 32
    method = affine.method("ewc", ewc={"samples": 2048, "batch_size": batch_size})
    affine.per_call = 64
    found = affine.flat(affine.observe(method, 0)["fisher"])
    g = affine.flat(affine.gradients(affine.inputs(method, 0, 1)))
    of_batches = np.mean(g.reshape(-1, batch_size, 5).mean(1) ** 2, 0)
    assert np.all(of_batches < 0.9 * np.mean(g**2, 0))
    np.testing.assert_allclose(found, np.mean(g**2, 0), rtol=1e-4)


def test_what_was_tracked_before_the_first_step_is_forgotten(affine) -> None:
    """So that the Fisher of a task holds nothing of the task before."""
    method = affine.method("ewc", ewc={"samples": 16, "batch_size": 4})
    first, second = affine.observe(method, 0), affine.observe(method, 1)
    for stale in (first, jax.tree.map(lambda x: 1e6 + x, first), jax.tree.map(lambda x: x + np.nan, first)):
        assert_close(affine.observe(method, 1, tracked=stale)["fisher"], second["fisher"], rtol=0)
    assert np.max(np.abs(first["fisher"]["b"] / second["fisher"]["b"] - 1)) > 0.1


def test_a_task_begins_with_nothing_tracked(affine) -> None:
    """The last task estimates nothing, so what stands there is added to the memory as it is."""
    tracked = {"fisher": {"w": jnp.ones(()), "b": jnp.ones(4)}}
    state = begin_task(create_state(affine.params, optax.sgd(0.1), ema=False, tracked=tracked))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.tracked))
    method = affine.method("ewc", ewc={"samples": 16, "batch_size": 4})
    memories = [memory["penalties"]["ewc"]["importance"] for _, memory, _ in affine.learn(method, optax.sgd(0.01))]
    assert_close(memories[2], memories[1], rtol=0)


@pytest.mark.parametrize(("samples", "batch_size"), [(4096, 16), (8192, 64)])
def test_importance_after_two_tasks_is_the_sum_of_two_means(affine, samples: int, batch_size: int) -> None:
    """Independent of how many samples there were, and of the batch: no sums over samples, no decayed old Fisher."""
    affine.per_call = 64
    method = affine.method("ewc", ewc={"samples": samples, "batch_size": batch_size})
    memory = method.init_memory(affine.params)
    for task in range(2):
        tracked = affine.observe(method, task)
        memory = method.end_task(memory, Learned(affine.params, affine.params, tracked), task)
    exact = np.diag(affine.moments(0)[1]) + np.diag(affine.moments(1)[1])
    np.testing.assert_allclose(affine.flat(memory["penalties"]["ewc"]["importance"]), exact, rtol=0.12)


def test_an_estimation_takes_enough_steps_costs_its_share_and_reports_no_training_loss(affine) -> None:
    sizes = {"samples": 33, "batch_size": 4}
    method = affine.method("ewc+mas", ewc=sizes, mas=sizes)
    _, *estimations = method.phases(0)
    assert [(phase.steps, phase.passes) for phase in estimations] == [(9, 3 * 4 / 8)] * 2
    ((_, _, seen),) = affine.learn(method, optax.sgd(0.0), tasks=1)
    values = []
    for number, name in ((1, "half_mse"), (2, "mean_square_output")):
        assert set(seen[number]) == {"phase", name}
        inputs = affine.inputs(method, 0, number)
        error = affine.output(inputs) - (inputs["eps"] if number == 1 else 0.0)
        values.append(np.mean(error**2) * (0.5 if number == 1 else 1.0))
        assert np.mean(seen[number][name]) == pytest.approx(values[-1], rel=1e-5)


# -- MAS's sensitivity


@pytest.mark.parametrize("way", ["one device", "pmap", "conditional"])
def test_sensitivity_is_the_mean_of_absolute_gradients_of_single_outputs(affine, way: str) -> None:
    affine = spread(affine, way)
    method = affine.method("mas", mas={"samples": 48, "batch_size": 8})
    found = affine.observe(method, 0)["sensitivity"]
    inputs = affine.inputs(method, 0, 1)
    slopes = affine.slopes(inputs, 2.0 * affine.output(inputs))  # of the mean square output
    assert_close(found, mean_of(slopes, 1))


def test_with_many_samples_the_sensitivity_is_the_exact_one(affine) -> None:
    """The slope of b is normal given image and t, so the mean of its absolute value is known; that of w is not."""
    affine.per_call = 64
    method = affine.method("mas", mas={"samples": 16_384, "batch_size": 64})
    found = affine.observe(method, 0)["sensitivity"]["b"]
    params = {name: np.asarray(value, np.float64) for name, value in affine.params.items()}
    x_0 = affine.images[:20].astype(np.float64).reshape(20, 4, 4) / 127.5 - 1.0
    alpha_bar = np.asarray(affine.setup.schedule.alpha_bar, np.float64)[:, None, None]
    mean = 2 / 16 * (params["w"] * np.sqrt(alpha_bar) * x_0.sum(2) + 4 * params["b"])
    std = 2 / 16 * params["w"] * np.sqrt(1 - alpha_bar) * np.sqrt(4)
    folded = std * np.sqrt(2 / np.pi) * np.exp(-(mean**2) / (2 * std**2)) + mean * erf(mean / (np.sqrt(2) * std))
    np.testing.assert_allclose(found, folded.mean((0, 1)), rtol=0.03)
    assert np.all(np.abs(mean.mean((0, 1))) < 0.95 * folded.mean((0, 1)))  # the absolute value of the mean is another


def test_sensitivities_add_up_around_the_newest_parameters(affine) -> None:
    method = affine.method("mas", mas={"strength": 1.0, "samples": 16, "batch_size": 4})
    moved = jax.tree.map(lambda x: x + 0.5, affine.params)
    memory, total = method.init_memory(affine.params), 0.0
    for task, params in enumerate((affine.params, moved)):
        tracked = affine.observe(method, task, params)
        memory = method.end_task(memory, Learned(params, params, tracked), task)
        total = total + affine.flat(tracked["sensitivity"])
    kept = memory["penalties"]["mas"]
    np.testing.assert_allclose(affine.flat(kept["importance"]), total, rtol=1e-6)
    value = method.penalties[0].value(jax.tree.map(lambda x: x + 0.1, moved), kept)
    assert float(value) == pytest.approx(0.01 * total.sum(), rel=1e-4)


# -- SI's path


def bowl(curvature, centre):
    """A loss: sum a (theta - c)^2 / 2, whatever the examples."""

    def loss(params, batch, context):
        del batch, context
        parts = jax.tree.map(lambda p, a, c: 0.5 * jnp.sum(a * (p - c) ** 2), params, curvature, centre)
        return sum(jax.tree.leaves(parts)), {}

    return loss


CURVATURE = {"w": jnp.float32(2.0), "b": jnp.array([1.0, 0.5, 3.0, 0.0])}
CENTRE = {"w": jnp.float32(-1.0), "b": jnp.array([1.0, 2.0, 0.0, 0.0])}


def roll(affine, method, steps: int, optimizer, penalty=None, memory=None, loss=None):
    """Steps of the bowl with the track of a method's own phase: the state after each, the start first."""
    phase = method.phases(0)[0]
    memory = method.init_memory(affine.params) if memory is None else memory
    context = Context(named_key(0), None, method.context(memory, 1))
    loss = loss or bowl(CURVATURE, CENTRE)
    state = create_state(affine.params, optimizer, ema=False, tracked=method.init_tracked(affine.params))
    states = [state]
    for _ in range(steps):
        state, _ = train_step(
            state, context, {}, {}, gradient=descend(loss), streams={}, optimizer=optimizer, ema=0.0,
            penalty=penalty, track=phase.track,
        )  # fmt: skip
        states.append(state)
    return states


def test_the_path_is_minus_gradient_times_update_summed_over_steps(affine) -> None:
    states = roll(affine, affine.method("si"), 5, optax.sgd(0.1))
    flat, a, c = affine.flat, affine.flat(CURVATURE), affine.flat(CENTRE)
    thetas = [flat(state.params) for state in states]
    by_hand = sum(-(a * (x - c)) * (y - x) for x, y in itertools.pairwise(thetas))
    np.testing.assert_allclose(flat(states[-1].tracked["path"]), by_hand, rtol=1e-4, atol=1e-7)
    assert by_hand.max() > 0.1


def test_small_steps_share_out_the_whole_decrease_of_the_loss(affine) -> None:
    """With Adam as well: the update that counts is the one that was made."""
    for optimizer in (optax.sgd(0.002), make_optimizer("adam", 0.002, clip_norm=1.0)):
        states = roll(affine, affine.method("si"), 200, optimizer)
        a, c = affine.flat(CURVATURE), affine.flat(CENTRE)
        losses = [0.5 * a * (affine.flat(state.params) - c) ** 2 for state in (states[0], states[-1])]
        np.testing.assert_allclose(affine.flat(states[-1].tracked["path"]), losses[0] - losses[1], rtol=0.01, atol=5e-4)
        assert np.sum(losses[0] - losses[1]) > 0.3


def test_the_penaltys_own_gradient_has_no_part_in_the_path(affine) -> None:
    """The update has, as it moved the parameters."""
    pull = 5.0
    method = affine.method("si")

    def penalty(params, context):
        del context
        return pull * (params["w"] + jnp.sum(params["b"]))

    states = roll(affine, method, 1, optax.sgd(0.1), penalty=penalty)
    theta, a, c = affine.flat(affine.params), affine.flat(CURVATURE), affine.flat(CENTRE)
    own = a * (theta - c)
    np.testing.assert_allclose(affine.flat(states[1].tracked["path"]), own * 0.1 * (own + pull), rtol=1e-4, atol=1e-6)


def si_after(affine, path, end, memory=None, task=0, damping=0.5):
    method = affine.method("si", si={"damping": damping})
    memory = method.init_memory(affine.params) if memory is None else memory
    return method.end_task(memory, Learned(end, end, {"path": path}), task)


def test_importance_is_the_path_over_the_squared_distance_and_damping(affine) -> None:
    start = affine.params
    path = {"w": jnp.float32(0.3), "b": jnp.array([0.2, -0.4, 0.0, 1.0])}
    end = {"w": start["w"] + 1.0, "b": start["b"] + jnp.array([0.5, 2.0, 1.0, 0.0])}
    kept = si_after(affine, path, end)["penalties"]["si"]
    wanted = [0.3 / 1.5, 0.2 / 0.75, 0.0, 0.0, 1.0 / 0.5]  # a parameter whose path raised the loss gets 0
    np.testing.assert_allclose(affine.flat(kept["importance"]), wanted, rtol=1e-5)
    np.testing.assert_allclose(affine.flat(kept["anchor"]), affine.flat(end))


def test_distances_are_measured_from_the_end_of_the_task_before(affine) -> None:
    path = {"w": jnp.float32(1.0), "b": jnp.zeros(4)}
    far = jax.tree.map(lambda x: x + 10.0, affine.params)
    further = jax.tree.map(lambda x: x + 1.0, far)
    memory = si_after(affine, path, far)
    first = float(memory["penalties"]["si"]["importance"]["w"])
    memory = si_after(affine, path, further, memory, task=1)
    assert first == pytest.approx(1 / 100.5, rel=1e-4)
    assert float(memory["penalties"]["si"]["importance"]["w"]) == pytest.approx(1 / 100.5 + 1 / 1.5, rel=1e-4)


def test_in_a_run_each_task_has_a_path_and_a_distance_of_its_own(affine) -> None:
    """Tasks of one step of gradient descent: the path is the squared distance over the rate, whatever came before."""
    rate, damping = 0.05, 1e-3
    affine.setup = dataclasses.replace(affine.setup, steps=(1, 1, 1))
    before, total = affine.flat(affine.params), np.zeros(5)
    for params, memory, _ in affine.learn(affine.method("si", si={"damping": damping}), optax.sgd(rate)):
        moved = affine.flat(params) - before
        total += moved**2 / rate / (moved**2 + damping)
        np.testing.assert_allclose(affine.flat(memory["penalties"]["si"]["importance"]), total, rtol=1e-3)
        before = affine.flat(params)
    assert total.max() > 1.0


# -- L2


def test_l2_is_the_squared_distance_from_the_end_of_the_task_before(affine) -> None:
    method = affine.method("l2", l2={"strength": 1.0})
    memory = method.init_memory(affine.params)
    for task in range(2):
        end = jax.tree.map(lambda x, task=task: x + task + 1.0, affine.params)
        memory = method.end_task(memory, Learned(end, end), task)
    away = jax.tree.map(lambda x: x + 3.0, end)
    assert float(method.penalties[0].value(away, memory["penalties"]["l2"])) == pytest.approx(5 * 9.0, rel=1e-5)


# -- all penalties in training

NAMES = sorted(set(known_penalties()) - {"gpm"})  # which has no term
STRENGTHS = dict(zip(NAMES, (100.0, 0.3, 2.0, 1000.0, 0.5), strict=True))


def with_all(affine, factor: float, names=NAMES):
    """Every penalty at once, each with a strength of its own."""

    def small(name: str) -> dict:
        sizes = {"samples": 16, "batch_size": 4}
        own = {key: value for key, value in sizes.items() if key in known_penalties()[name][1]}
        return {**own, "strength": factor * STRENGTHS[name]}

    return affine.method("+".join(names), **{name: small(name) for name in names})


def test_each_penalty_and_its_gradient_are_zero_at_its_anchor_and_not_elsewhere(affine) -> None:
    method = with_all(affine, 1.0)
    ((params, memory, _),) = affine.learn(method, optax.sgd(0.05), tasks=1)
    elsewhere = jax.tree.map(lambda x: x + 0.1, params)
    assert [penalty.name for penalty in method.penalties] == NAMES
    for penalty in method.penalties:
        kept = memory["penalties"][penalty.name]
        value, gradient = jax.value_and_grad(penalty.value)(params, kept)
        assert float(value) == 0.0, penalty.name
        assert not np.any(affine.flat(gradient)), penalty.name
        value, gradient = jax.value_and_grad(penalty.value)(elsewhere, kept)
        assert float(value) > 0.0, penalty.name
        assert np.all(affine.flat(gradient) != 0.0), penalty.name


def test_the_step_has_the_gradient_of_the_loss_plus_every_strength_times_its_penalty(affine) -> None:
    """One step of gradient descent in task 2, from a place away from the anchor, in numbers of our own."""
    rate, method, plain = 0.1, with_all(affine, 1.0), affine.method("finetune")
    ((_, memory, _),) = affine.learn(method, optax.sgd(0.05), tasks=1)
    start = jax.tree.map(lambda x: x + jnp.linspace(0.1, 0.3, x.size).reshape(x.shape), affine.params)
    ends, losses = [], []
    for each, kept in ((method, memory), (plain, {})):
        phase = dataclasses.replace(each.phases(1)[0], steps=1)
        state = create_state(start, optax.sgd(rate), ema=False, tracked=each.init_tracked(start))
        state, metrics = affine.run_phase(phase, affine.context(each, kept, 1, 0), state, optax.sgd(rate))
        ends.append(affine.flat(state.params))
        losses.append({name: float(value[0]) for name, value in metrics.items() if value.ndim == 1})
    parts = {}
    for penalty in method.penalties:
        value, gradient = jax.value_and_grad(penalty.value)(start, memory["penalties"][penalty.name])
        parts[penalty.name] = STRENGTHS[penalty.name] * np.array([float(value), *affine.flat(gradient)])
    total = sum(parts.values())
    assert all(np.abs(part).max() > 0.003 * np.abs(total).max() for part in parts.values()), parts
    np.testing.assert_allclose((ends[1] - ends[0]) / rate, total[1:], rtol=1e-4, atol=1e-5)
    assert losses[0]["penalty"] == pytest.approx(total[0], rel=1e-5)
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"] + total[0], rel=1e-5)
    assert losses[0]["gradient_norm"] == pytest.approx(np.linalg.norm((affine.flat(start) - ends[0]) / rate), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_task_has_no_penalty_and_the_last_no_estimation(affine, name: str) -> None:
    phases = [with_all(affine, 1.0, [name]).phases(task) for task in range(3)]
    assert [[p.penalty is not None for p in own if p.observe is None] for own in phases] == [[False], [True], [True]]
    observing = [sum(p.observe is not None for p in own) for own in phases]
    assert observing[0] == observing[1]
    assert observing[2] == 0
    assert all(own[0].observe is None for own in phases)  # estimated after the training, not before


def test_without_strength_training_is_bit_for_bit_that_without_penalties(affine, monkeypatch) -> None:
    # Not optimised: elsewhere LLVM joins products and sums into one rounding, and not alike in two programs.
    monkeypatch.setattr(parallel, "compiler_options", lambda: {"xla_backend_optimization_level": 0})
    optimizer = make_optimizer("adam", 0.01, clip_norm=1.0)
    plain = affine.learn(affine.method("finetune"), optimizer)
    weak, strong = (affine.learn(with_all(affine, factor), optimizer) for factor in (0.0, 10.0))
    for task in range(3):
        np.testing.assert_array_equal(affine.flat(weak[task][0]), affine.flat(plain[task][0]))
    np.testing.assert_array_equal(affine.flat(strong[0][0]), affine.flat(plain[0][0]))
    far, near = (np.abs(affine.flat(run[2][0]) - affine.flat(run[0][0])).sum() for run in (plain, strong))
    assert near < 0.7 * far
    assert [[seen["phase"] for seen in run if "penalty" in seen] for _, _, run in weak] == [
        [], ["+".join(NAMES) + "+train"], ["+".join(NAMES) + "+train"]
    ]  # fmt: skip
