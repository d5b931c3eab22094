"""A loss or gradient that is not a number: where it was, what is kept, and what is left out when that is allowed."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.experiment import Experiment, run
from jdcl_jax.training.layers import largest, layer_names, layer_norms
from jdcl_jax.training.state import Context, create_state
from jdcl_jax.training.step import train_step
from jdcl_jax.training.stopping import Stopped

pytestmark = pytest.mark.usefixtures("small")

WORDS = ("finetune", "tasks.first=2", "train.steps=8", "checkpoint.every=4", "train.log_every=4", "train.ema=0.9")


@pytest.fixture
def bad_at(monkeypatch):
    """(value, steps) -> the loss of the first phase has that value at these steps of every task (from 0)."""

    def spoil(value: float, steps: tuple[int, ...]) -> None:
        def scaled(state: Any, context: Any, *rest: Any, gradient: Any, **named: Any) -> Any:
            def spoiled(params: Any, batch: Any, now: Any, over: Any) -> Any:
                found, metrics = gradient(params, batch, now, over)
                bad = jnp.isin(now.step, jnp.array(steps))
                found = jax.tree.map(lambda g: jnp.where(bad, value, g), found)
                return found, {**metrics, "loss": jnp.where(bad, value, metrics["loss"])}

            return train_step(state, context, *rest, gradient=spoiled, **named)

        monkeypatch.setattr("jdcl_jax.assembly.train_step", scaled)

    return spoil


def lines(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# -- layers


PARAMS = {"unet": {"in": {"kernel": np.ones((2, 2)), "bias": np.full(1, 2.0)}, "out": {"kernel": np.full(4, 3.0)}}}


def test_a_layer_is_kernel_and_bias_together() -> None:
    assert layer_names(PARAMS) == ["unet/in", "unet/out"]
    np.testing.assert_allclose(layer_norms(PARAMS), [np.sqrt(4 + 4), np.sqrt(36)], rtol=1e-6)
    assert float(jnp.sqrt(jnp.sum(layer_norms(PARAMS) ** 2))) == pytest.approx(float(optax.tree.norm(PARAMS)))


def test_the_largest_are_named_and_those_that_are_no_numbers_first() -> None:
    names = ["a", "b", "c", "d", "e"]
    assert largest(names, np.array([1.0, 5.0, np.nan, 3.0, np.inf])) == "c nan, e inf, b 5"
    assert largest(names, np.array([1.0, 5.0, 2.0, 3.0, 4.0])) == "b 5, e 4, d 3"


# -- a step that is left out


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("of", ["loss", "gradient"])
def test_a_step_that_is_left_out_changes_nothing_but_its_number(value, of) -> None:
    params, optimizer = {"layer": {"kernel": jnp.array([1.0, -2.0])}}, optax.adam(0.1)

    def gradient(p, batch, context, over):
        bad = context.step == 1
        found = {"layer": {"kernel": jnp.where(bad & (of == "gradient"), value, p["layer"]["kernel"])}}
        return found, {"loss": jnp.where(bad & (of == "loss"), value, 1.0)}

    def track(tracked, own, updates):
        return {"sum": tracked["sum"] + jnp.sum(own["layer"]["kernel"])}

    def after(steps: int, skip: bool):
        state = create_state(params, optimizer, ema=True, tracked={"sum": jnp.zeros(())})
        states = [state]
        for _ in range(steps):
            state, _ = train_step(
                state, Context(jax.random.key(0), None, {}), {}, {}, gradient=gradient, streams={},
                optimizer=optimizer, ema=0.9, track=track, skip=skip,
            )  # fmt: skip
            states.append(state)
        return states

    left_out = after(3, skip=True)
    unchanged = left_out[1].replace(step=left_out[2].step)
    jax.tree.map(np.testing.assert_array_equal, left_out[2], unchanged)
    assert [int(state.step) for state in left_out] == [0, 1, 2, 3]
    assert [int(state.updates) for state in left_out] == [0, 1, 1, 2]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(left_out[3]))
    if of == "gradient":
        assert not np.isfinite(after(2, skip=False)[2].params["layer"]["kernel"]).any()


# -- a run


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_run_stops_and_says_where_and_in_which_layers(value, bad_at, tiny_config, tmp_path) -> None:
    bad_at(value, (5,))
    with pytest.raises(UserError) as said:
        run(tiny_config(*WORDS), tmp_path / "run")
    message = str(said.value)
    assert "in task 1, phase train, step 6" in message
    assert f"the loss became {value}" in message
    assert re.search(r"3 of 3 layers have gradients that are not finite; largest: conv_in (nan|inf)", message)
    assert re.search(r"the step before: \w+ \d", message)  # the last good gradients, by size
    assert "train.skip_bad_steps=10" in message
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "latest").iterdir()) == ["4"]
    assert [line["phase_step"] for line in lines(tmp_path / "run")] == [4]


def test_steps_left_out_are_counted_and_the_run_goes_on(bad_at, tiny_config, tmp_path) -> None:
    bad_at(float("nan"), (2, 5))
    results = run(tiny_config(*WORDS, "train.skip_bad_steps=4"), tmp_path / "run")
    wanted = [{"task": task, "phase": "train", "step": step} for task in (1, 2) for step in (3, 6)]
    assert results["skipped_steps"] == wanted
    trained = [line for line in lines(tmp_path / "run") if line["phase"] == "train"]
    assert [line["skipped"] for line in trained] == [1, 1, 1, 1]
    assert all(np.isfinite(line["loss"]) for line in trained)


def test_no_more_steps_are_left_out_than_the_config_allows(bad_at, tiny_config, tmp_path) -> None:
    bad_at(float("nan"), (2, 5))
    with pytest.raises(UserError, match=r"task 2, phase train, step 6 after 3 steps that were left out"):
        run(tiny_config(*WORDS, "train.skip_bad_steps=3"), tmp_path / "run")


def test_a_run_without_bad_steps_says_so(tiny_config, tmp_path) -> None:
    assert run(tiny_config(*WORDS), tmp_path / "run")["skipped_steps"] == []


def test_parameters_that_overflow_without_a_bad_gradient_are_never_saved(tiny_config, tmp_path) -> None:
    words = ("train.optimizer=adam", "train.clip_norm=0.0", "train.learning_rate=1e30", "train.log_every=100")
    with pytest.raises(UserError, match=r"no longer finite|became"):
        run(tiny_config(*WORDS, *words), tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints" / "latest").iterdir()) == []


def test_steps_left_out_before_a_stop_are_counted_once_and_change_no_line(bad_at, tiny_config, tmp_path) -> None:
    bad_at(float("nan"), (2,))
    config = tiny_config(*WORDS, "train.log_every=8", "checkpoint.every=1000", "train.skip_bad_steps=4")
    whole = run(config, tmp_path / "whole")
    turns = iter([False, True])  # after the second call of steps, between two lines
    with pytest.raises(Stopped):
        run(config, tmp_path / "stopped", asked_to_stop=lambda: next(turns))
    assert lines(tmp_path / "stopped") == []
    stopped = run(config, tmp_path / "stopped")
    assert len(whole["skipped_steps"]) == 2
    assert stopped["skipped_steps"] == whole["skipped_steps"]
    facts = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines(tmp_path / name)]
        for name in ("whole", "stopped")
    ]
    assert facts[0] == facts[1]
    assert facts[0][0]["skipped"] == 1


def test_what_a_method_keeps_is_not_saved_where_it_is_no_number(tiny_config, tmp_path, monkeypatch) -> None:
    remember = Experiment._remember

    def poisoned(self, memory):
        teacher = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), memory["teacher"])
        remember(self, {**memory, "teacher": teacher})

    monkeypatch.setattr(Experiment, "_remember", poisoned)
    with pytest.raises(UserError, match=r"what gd keeps of the past is no longer finite at step 8 .* task 1"):
        run(tiny_config("gd", *WORDS[1:]), tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "latest").iterdir())
    assert kept == ["4"]
