"""The train step and the observe step against arithmetic done by hand in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.training.optimizer import learning_rate, make_optimizer
from jdcl_jax.training.state import begin_phase, begin_task, create_state
from jdcl_jax.training.step import ema_decay, observe_step, scan_steps

RATE, B1, B2, EPS = 0.01, 0.9, 0.999, 1e-8


def norm(gradient: dict) -> float:
    return float(np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values())))


def adam_by_hand(regression, steps: int, *, clip: float, decay: float = 0.0) -> tuple[list[dict], list[dict]]:
    """Parameters after each step, and the metrics of each."""
    params = {name: np.asarray(value, np.float64) for name, value in regression.params.items()}
    m = v = dict.fromkeys(params, 0.0)
    history, metrics = [], []
    for step in range(steps):
        loss, g = regression.gradient(params, step)
        metrics.append({"loss": loss, "gradient_norm": norm(g)})
        if clip:
            g = {name: value * min(1.0, clip / norm(g)) for name, value in g.items()}
        m = {k: B1 * m[k] + (1 - B1) * g[k] for k in g}
        v = {k: B2 * v[k] + (1 - B2) * g[k] ** 2 for k in g}
        new = {}
        for k in g:
            direction = (m[k] / (1 - B1 ** (step + 1))) / (np.sqrt(v[k] / (1 - B2 ** (step + 1))) + EPS)
            new[k] = params[k] - RATE * (direction + decay * params[k])
        params = new
        history.append(params)
    return history, metrics


def states(regression, optimizer, steps: int, ema: float = 0.0):
    """States after each step and the metrics of each."""
    step = jax.jit(regression.step(optimizer, ema))
    state = create_state(regression.params, optimizer, ema=ema > 0)
    out = []
    for _ in range(steps):
        state, metrics = step(state, regression.context, regression.ids, {})
        out.append((state, metrics))
    return out


@pytest.mark.parametrize(("name", "clip", "decay"), [("adam", 1.0, 0.0), ("adam", 0.0, 0.0), ("adamw", 1.0, 0.1)])
def test_parameters_follow_clipped_adam(regression, name, clip, decay) -> None:
    history, metrics = adam_by_hand(regression, 7, clip=clip, decay=decay)
    assert all(entry["gradient_norm"] > 2 for entry in metrics)  # so that clipping is in force
    optimizer = make_optimizer(name, RATE, clip_norm=clip, weight_decay=decay)
    for (state, got), params, wanted in zip(states(regression, optimizer, 7), history, metrics, strict=True):
        for key in params:
            np.testing.assert_allclose(state.params[key], params[key], rtol=2e-5)
        assert float(got["loss"]) == pytest.approx(wanted["loss"], rel=1e-5)
        assert float(got["gradient_norm"]) == pytest.approx(wanted["gradient_norm"], rel=1e-5)


def test_the_three_optimisers_above_are_told_apart(regression) -> None:
    """Or the tolerance of the test would hide a missing clip or decay."""
    ends = [adam_by_hand(regression, 7, clip=c, decay=d)[0][-1]["w"] for c, d in [(1.0, 0), (0.0, 0), (1.0, 0.1)]]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert np.abs(ends[a] / ends[b] - 1).max() > 2e-4


def test_weight_decay_is_for_adamw_only(regression) -> None:
    with_decay = make_optimizer("adam", RATE, clip_norm=1.0, weight_decay=0.5)
    without = make_optimizer("adam", RATE, clip_norm=1.0)
    ends = [states(regression, optimizer, 2)[-1][0].params["w"] for optimizer in (with_decay, without)]
    np.testing.assert_array_equal(*ends)


def test_clipping_is_by_the_norm_of_all_parameters_together(regression) -> None:
    """With plain gradient descent behind it, the first update has norm lr * 1.0 and the gradient's direction."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(RATE))
    (state, _) = states(regression, optimizer, 1)[0]
    moved = {k: np.asarray(regression.params[k], np.float64) - np.asarray(state.params[k]) for k in state.params}
    _, gradient = regression.gradient({k: np.asarray(v, np.float64) for k, v in regression.params.items()}, 0)
    assert norm(moved) == pytest.approx(RATE, rel=1e-4)
    for key in moved:
        np.testing.assert_allclose(moved[key] / RATE, gradient[key] / norm(gradient), rtol=1e-4)


def test_step_and_updates_are_counted(regression) -> None:
    made = states(regression, make_optimizer("adam", RATE, clip_norm=1.0), 3)
    assert [(int(s.step), int(s.updates)) for s, _ in made] == [(1, 1), (2, 2), (3, 3)]


def test_the_average_warms_up(regression) -> None:
    """After n updates the decay is min(limit, (1 + n) / (10 + n)), so 1/10, 2/11, 3/12, ... up to the limit."""
    limit = 0.27
    average = {k: np.asarray(v, np.float64) for k, v in regression.params.items()}
    for n, (state, _) in enumerate(states(regression, make_optimizer("adam", 0.3, clip_norm=0.0), 6, ema=limit)):
        decay = min(limit, (1 + n) / (10 + n))
        average = {k: decay * average[k] + (1 - decay) * np.asarray(state.params[k], np.float64) for k in average}
        for key in average:
            np.testing.assert_allclose(state.ema[key], average[key], rtol=1e-5)
        assert state.averaged is state.ema


@pytest.mark.parametrize(("n", "decay"), [(0, 0.1), (1, 2 / 11), (90, 0.91), (10**6, 0.999)])
def test_the_averages_decay(n, decay) -> None:
    assert float(ema_decay(0.999, jnp.int32(n))) == pytest.approx(decay, rel=1e-6)


def test_without_an_average_the_raw_parameters_stand_in(regression) -> None:
    state = create_state(regression.params, optax.sgd(0.1), ema=False)
    assert state.ema is None
    assert state.averaged is state.params


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_one_scan_of_six_steps_equals_six_single_steps(regression, ema) -> None:
    optimizer = make_optimizer("adam", RATE, clip_norm=1.0)
    single = states(regression, optimizer, 6, ema)
    start = create_state(regression.params, optimizer, ema=ema > 0)
    end, metrics = jax.jit(regression.scanned(optimizer, 6, ema))(start, regression.context, regression.ids, {})
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(single[-1][0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7)
    assert metrics["loss"].shape == (6,)
    np.testing.assert_allclose(metrics["loss"], [float(m["loss"]) for _, m in single], rtol=1e-6)
    np.testing.assert_allclose(
        metrics["mean_label"], [regression.inputs(step)[1].mean() for step in range(6)], rtol=1e-6
    )


@pytest.mark.parametrize("reset", [True, False])
def test_a_phase_begins_at_step_zero_with_or_without_the_optimiser_so_far(regression, reset) -> None:
    optimizer = make_optimizer("adam", RATE, clip_norm=1.0)
    before = states(regression, optimizer, 3, ema=0.9)[-1][0]
    after = begin_phase(before, optimizer, reset_optimizer=reset)
    assert (int(after.step), int(after.updates)) == (0, 3)
    np.testing.assert_array_equal(after.params["w"], before.params["w"])
    np.testing.assert_array_equal(after.ema["w"], before.ema["w"])
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(after.opt_state)]
    if reset:
        assert all(not leaf.any() for leaf in leaves)
    else:
        assert all(np.array_equal(a, b) for a, b in zip(leaves, jax.tree.leaves(before.opt_state), strict=True))
        assert any(leaf.any() for leaf in leaves)


# -- penalties, and what is tracked


def spring(params, context):
    """3 |w|^2 + b: its gradient is 6 w, and 1."""
    del context
    return 3.0 * jnp.sum(params["w"] ** 2) + params["b"]


def sums(tracked, gradient, update):
    """What is tracked is the sum of all that it is given."""
    added = {"gradient": gradient, "update": update}
    return jax.tree.map(jnp.add, tracked, added)


def zeros(regression):
    nothing = jax.tree.map(jnp.zeros_like, regression.params)
    return {"gradient": nothing, "update": nothing}


def penalised(regression, optimizer, steps: int):
    step = jax.jit(regression.step(optimizer, penalty=spring, track=sums))
    state = create_state(regression.params, optimizer, ema=False, tracked=zeros(regression))
    out = []
    for _ in range(steps):
        state, metrics = step(state, regression.context, regression.ids, {})
        out.append((state, metrics))
    return out


def test_a_penalty_is_added_to_the_loss_and_to_its_gradient(regression) -> None:
    params = {k: np.asarray(v, np.float64) for k, v in regression.params.items()}
    for n, (state, metrics) in enumerate(penalised(regression, optax.sgd(0.02), 5)):
        loss, gradient = regression.gradient(params, n)
        penalty = 3 * np.sum(params["w"] ** 2) + params["b"]
        whole = {"w": gradient["w"] + 6 * params["w"], "b": gradient["b"] + 1}
        assert float(metrics["penalty"]) == pytest.approx(penalty, rel=1e-5)
        assert float(metrics["loss"]) == pytest.approx(loss + penalty, rel=1e-5)
        assert float(metrics["gradient_norm"]) == pytest.approx(norm(whole), rel=1e-5)
        params = {k: params[k] - 0.02 * whole[k] for k in params}
        for key in params:
            np.testing.assert_allclose(state.params[key], params[key], rtol=1e-5)


def test_a_loss_without_penalty_reports_none(regression) -> None:
    (_, metrics) = states(regression, optax.sgd(0.02), 1)[0]
    assert "penalty" not in metrics


@pytest.mark.parametrize("name", ["sgd", "clipped adam"])
def test_tracked_are_the_gradient_without_penalty_and_the_update_that_is_made(regression, name) -> None:
    optimizer = optax.sgd(0.02) if name == "sgd" else make_optimizer("adam", RATE, clip_norm=1.0)
    made = penalised(regression, optimizer, 4)
    before, total = regression.params, {"w": np.zeros(4), "b": 0.0}
    for n, (state, _) in enumerate(made):
        _, gradient = regression.gradient({k: np.asarray(v, np.float64) for k, v in before.items()}, n)
        assert norm(gradient) > 2  # so that clipping would show
        total = {k: total[k] + gradient[k] for k in total}
        for key in total:
            np.testing.assert_allclose(state.tracked["gradient"][key], total[key], rtol=1e-4)
            moved = np.asarray(state.params[key]) - np.asarray(regression.params[key])
            np.testing.assert_allclose(state.tracked["update"][key], moved, atol=1e-6)
            assert np.all(np.abs(moved) > 1e-3)
        before = state.params


def test_without_anybody_to_track_tracked_stays(regression) -> None:
    optimizer = optax.sgd(0.02)
    state = create_state(regression.params, optimizer, ema=False, tracked={"kept": jnp.arange(3.0)})
    state, _ = jax.jit(regression.step(optimizer))(state, regression.context, regression.ids, {})
    np.testing.assert_array_equal(state.tracked["kept"], [0, 1, 2])
    state = begin_phase(state, optimizer, reset_optimizer=True)
    np.testing.assert_array_equal(state.tracked["kept"], [0, 1, 2])
    assert create_state(regression.params, optimizer, ema=False).tracked == {}


def test_a_task_begins_with_nothing_tracked_and_everything_else_as_it_was(regression) -> None:
    (state, _) = penalised(regression, make_optimizer("adam", RATE, clip_norm=1.0), 2)[-1]
    after = begin_task(state)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(after.tracked))
    assert jax.tree.structure(after.tracked) == jax.tree.structure(state.tracked)
    for name in ("step", "updates", "params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))


def test_an_observe_step_adds_up_and_leaves_the_parameters_alone(regression) -> None:
    """It counts its steps, as what the next one reads depends on it, but no updates."""
    optimizer = make_optimizer("adam", RATE, clip_norm=1.0)
    before = states(regression, optimizer, 3, ema=0.9)[-1][0]
    before = begin_phase(before, optimizer, reset_optimizer=False)
    before = before.replace(tracked={"labels": jnp.int32(100), "output": jnp.float32(0)})

    def observe(tracked, params, batch, context, over):
        del over
        labels, examples = tracked["labels"] + batch["current"].label.sum(), batch["current"]
        output = jnp.mean((examples.image.reshape(len(examples.label), -1) @ params["w"]) ** 2)
        return {"labels": labels, "output": tracked["output"] + output}, {"number": context.step.astype(jnp.float32)}

    step = functools.partial(observe_step, observe=observe, streams=regression.streams)
    after, metrics = jax.jit(scan_steps(step, 3))(before, regression.context, regression.ids, {})
    inputs = [regression.inputs(n) for n in range(3)]
    assert int(after.tracked["labels"]) == 100 + sum(int(labels.sum()) for _, labels in inputs)
    output = sum(np.mean((x @ np.asarray(before.params["w"], np.float64)) ** 2) for x, _ in inputs)
    assert float(after.tracked["output"]) == pytest.approx(output, rel=1e-5)
    assert metrics["number"].tolist() == [0, 1, 2]
    assert (int(before.step), int(after.step)) == (0, 3)
    for name in ("updates", "params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))


# -- learning rates

PEAK = 2e-4


def rates(schedule: str, warmup: int, steps: int, at: list[int]) -> list[float]:
    rate = learning_rate(PEAK, schedule=schedule, warmup=warmup, steps=steps)
    return [float(rate(jnp.int32(step))) for step in at]


def test_a_constant_rate_is_constant() -> None:
    assert rates("constant", 0, 100, [0, 1, 50, 99]) == pytest.approx([PEAK] * 4)


def test_warm_up_is_linear_from_zero() -> None:
    assert rates("constant", 10, 100, [0, 1, 5, 9, 10, 99]) == pytest.approx(
        [PEAK * x for x in (0, 0.1, 0.5, 0.9, 1, 1)]
    )


def test_a_cosine_falls_to_zero_at_the_last_step() -> None:
    half = 0.5 * (1 + np.cos(np.pi / 4))
    wanted = [PEAK * x for x in (1, half, 0.5, 0)]
    assert rates("cosine", 0, 100, [0, 25, 50, 100]) == pytest.approx(wanted, abs=1e-11)
    wanted = [PEAK * x for x in (0, 0.5, 1, half, 0.5, 0)]
    assert rates("cosine", 20, 100, [0, 10, 20, 40, 60, 100]) == pytest.approx(wanted, abs=1e-11)


def test_the_rate_is_the_one_of_the_step(regression) -> None:
    """Plain descent under a warm-up: the update of step n is rate(n) times the gradient."""
    optimizer = optax.sgd(learning_rate(0.1, schedule="constant", warmup=4, steps=10))
    params = {k: np.asarray(v, np.float64) for k, v in regression.params.items()}
    for n, (state, _) in enumerate(states(regression, optimizer, 6)):
        _, gradient = regression.gradient(params, n)
        params = {k: params[k] - 0.1 * min(n / 4, 1) * gradient[k] for k in params}
        np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="lion"):
        make_optimizer("lion", 0.1, clip_norm=1.0)
    with pytest.raises(ValueError, match="step"):
        learning_rate(0.1, schedule="step", warmup=0, steps=1)


def test_an_optimiser_that_asks_for_the_methods_context_is_given_it(regression) -> None:
    """And one that does not is left alone, also in a chain with it."""

    def scaled(updates, state, params=None, *, method, **extra):
        return jax.tree.map(lambda u: method["factor"] * u, updates), state

    asking = optax.chain(
        optax.sgd(0.1), optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scaled)
    )
    context = dataclasses.replace(regression.context, method={"factor": jnp.float32(3.0)})
    after = {}
    for name, optimizer in (("plain", optax.sgd(0.1)), ("asking", asking)):
        state = create_state(regression.params, optimizer, ema=False)
        after[name], _ = regression.step(optimizer)(state, context, regression.ids, {})
    for key, start in regression.params.items():
        moved = {name: state.params[key] - start for name, state in after.items()}
        np.testing.assert_allclose(moved["asking"], 3.0 * moved["plain"], rtol=1e-5)
        assert np.abs(moved["plain"]).max() > 0
