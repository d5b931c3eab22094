"""Gradient projection beside any method: what old tasks' inputs gave stays, and what was kept is said."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.methods.gpm import COLUMNS, REPRESENT
from jdcl_jax.methods.method import ClassTerm, Learned
from jdcl_jax.methods.registry import canonical_name, default_options, make_method
from jdcl_jax.models.capture import captured
from jdcl_jax.training.state import begin_phase, begin_task, create_state

ADAMW = optax.adamw(1e-2, weight_decay=0.1)


class Flat(nn.Module):
    """All pixels to all pixels by a hidden layer without bias."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(6, use_bias=False, name="hidden")(x.reshape(len(x), -1))
        return nn.Dense(16, name="out")(jnp.tanh(h)).reshape(x.shape)


def denoised(params, x_t, t, labels, keys):
    del t, labels, keys
    return Flat().apply({"params": params}, x_t)


def inputs(params, x_t, t, labels, layers):
    return captured(lambda: denoised(params, x_t, t, labels, None), layers, {Flat: ""})


def fresh(key):
    return Flat().init(key, jnp.zeros((1, 4, 4, 1)))["params"]


@pytest.fixture
def flat(affine):
    """The runner of `affine`, with this network."""
    setup = dataclasses.replace(affine.setup, apply=denoised, inputs=inputs, fresh=fresh)

    class Runner(type(affine)):
        @property
        def params(self):
            return jax.tree.map(np.asarray, fresh(jax.random.key(1)))

    return Runner(setup, affine.images)


def learned(runner, method, tasks: int = 2) -> list:
    """(parameters, memory, columns) after each task, as the loop goes."""
    memory, optimizer = method.init_memory(runner.params), method.optimizer(ADAMW)
    state = create_state(runner.params, optimizer, ema=False, tracked=method.init_tracked(runner.params))
    after = []
    for task in range(tasks):
        state = begin_task(state)
        for number, phase in enumerate(method.phases(task)):
            state = begin_phase(state, optimizer, reset_optimizer=True)
            state, _ = runner.run_phase(phase, runner.context(method, memory, task, number), state, optimizer)
        params, tracked = jax.device_get((state.params, state.tracked))
        memory = method.end_task(memory, Learned(params, params, tracked), task)
        after.append((params, memory, tracked.get(COLUMNS)))
    return after


def projected(runner, name: str = "gpm+finetune", **options):
    return runner.method(name, gpm={"layers": "hidden", "threshold": 0.9, "samples": 40, "batch_size": 8, **options})


def test_the_answers_to_the_protected_inputs_stay_while_training_goes_on_with_decay(flat) -> None:
    method = projected(flat)
    (first, memory, _), (second, _, _) = learned(flat, method)
    basis = memory["penalties"]["gpm"]["bases"]["hidden"]
    rank = int(basis["rank"])
    assert 1 < rank < 16
    vectors = np.asarray(basis["vectors"], np.float64)[:, :rank]
    before, after = (np.asarray(params["hidden"]["kernel"], np.float64) for params in (first, second))
    np.testing.assert_allclose(vectors.T @ after, vectors.T @ before, atol=1e-6)
    assert np.abs(after - before).max() > 1e-2
    assert np.abs(second["out"]["kernel"] - first["out"]["kernel"]).max() > 1e-2  # it was not named


def test_without_it_these_answers_change(flat) -> None:
    (_, memory, _), _ = learned(flat, projected(flat))
    rank = int(memory["penalties"]["gpm"]["bases"]["hidden"]["rank"])
    vectors = np.asarray(memory["penalties"]["gpm"]["bases"]["hidden"]["vectors"], np.float64)[:, :rank]
    (first, _, _), (second, _, _) = learned(flat, flat.method("finetune"))
    moved = vectors.T @ (np.asarray(second["hidden"]["kernel"], np.float64) - first["hidden"]["kernel"])
    assert np.abs(moved).max() > 1e-2


def test_the_first_task_is_learned_as_without_it(flat) -> None:
    with_it, without = (learned(flat, method, 1)[0][0] for method in (projected(flat), flat.method("finetune")))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), with_it, without)


def test_what_is_collected_are_the_tasks_images_noised_to_all_timesteps(flat) -> None:
    """The layer's inputs are x_t itself: a mean square of E[alpha_bar x_0^2 + 1 - alpha_bar] over uniform t."""
    method = projected(flat, samples=800)
    (_, _, columns), (_, _, later) = learned(flat, method)
    assert columns["hidden"].shape == (16, 800)
    x_0 = flat.images[:20].astype(np.float64) / 127.5 - 1
    alpha_bar = np.asarray(flat.setup.schedule.alpha_bar, np.float64)
    expected = (alpha_bar * np.mean(x_0**2) + 1 - alpha_bar).mean()
    assert np.mean(np.square(columns["hidden"], dtype=np.float64)) == pytest.approx(expected, rel=0.05)
    assert len(np.unique(columns["hidden"], axis=1).T) == 800
    assert not np.array_equal(columns["hidden"], later["hidden"])


def test_the_energy_that_was_asked_for_is_kept_and_the_threshold_grows(flat) -> None:
    method = projected(flat, threshold=0.8, growth=0.1)
    history = learned(flat, method)
    (_, memory, columns), part = history[0], method.penalties[0]
    basis = memory["penalties"]["gpm"]["bases"]["hidden"]
    vectors = np.asarray(basis["vectors"], np.float64)[:, : int(basis["rank"])]
    shown = columns["hidden"].astype(np.float64)
    share = np.sum((vectors.T @ shown) ** 2) / np.sum(shown**2)
    assert 0.8 <= share < 1
    assert [part.threshold(task) for task in range(3)] == pytest.approx([0.8, 0.9, 1.0])
    (row,) = method.facts(memory, 0, None)["projection"]
    assert row["energy"] == pytest.approx(share, abs=1e-5)
    assert (row["layer"], row["rank_before"], row["rank"], row["width"]) == ("hidden", 0, int(basis["rank"]), 16)
    (row,) = method.facts(history[1][1], 1, None)["projection"]
    assert row["rank_before"] == int(basis["rank"]) < row["rank"]


def test_a_last_task_is_not_looked_at(flat) -> None:
    method = projected(flat)
    assert [phase.name for phase in method.phases(1)][-1] == REPRESENT
    assert REPRESENT not in [phase.name for phase in method.phases(2)]
    assert method.facts(method.init_memory(flat.params), 2, None) == {}


def test_a_full_basis_is_said_and_freezes_the_kernel(flat) -> None:
    method = projected(flat, threshold=1.0, samples=80)
    (first, memory, _), (second, _, _) = learned(flat, method)
    (warning,) = method.facts(memory, 0, None)["warnings"]
    assert "hidden: all 16 directions are protected" in warning
    assert first["hidden"]["kernel"].tobytes() == second["hidden"]["kernel"].tobytes()


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.long) for name in ("gpm+er", "gpm+gr", "gpm+l2")), "ewc+gpm+gd"]
)
def test_it_stands_beside_methods_and_penalties(flat, name) -> None:
    assert canonical_name(name) == name
    (first, memory, _), (second, _, _) = learned(flat, projected(flat, name))
    basis = memory["penalties"]["gpm"]["bases"]["hidden"]
    vectors = np.asarray(basis["vectors"], np.float64)[:, : int(basis["rank"])]
    moved = vectors.T @ (np.asarray(second["hidden"]["kernel"], np.float64) - first["hidden"]["kernel"])
    np.testing.assert_allclose(moved, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "method.gpm.threshold is 0.0; write a share above 0 and up to 1"),
        ({"threshold": 1.5}, "method.gpm.threshold is 1.5"),
        ({"growth": -1.0}, "method.gpm.growth is negative"),
        ({"samples": 0}, "method.gpm.samples counts from 1"),
        ({"positions": 0}, "method.gpm.positions counts from 1"),
        ({"layers": "hiden"}, "no layer matches 'hiden'"),
        ({"layers": "hidden;nothing*"}, "no layer matches 'nothing"),
    ],
)
def test_what_cannot_be_is_refused(flat, options, message) -> None:
    with pytest.raises(UserError) as refused:
        projected(flat, **options)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_network_that_classifies_is_refused_as_its_head_would_not_be_protected(flat) -> None:
    setup = dataclasses.replace(flat.setup, classifier=ClassTerm(lambda params, images, keys: images))
    with pytest.raises(UserError, match=r"classifier unprotected; write classifier\.kind=none"):
        make_method("gpm+finetune", setup, default_options("gpm+finetune"))
