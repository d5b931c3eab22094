"""Names, options and compositions of methods and penalties; a whole tiny run of one."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax import assembly
from jdcl_jax.errors import UserError
from jdcl_jax.experiment import run
from jdcl_jax.methods import registry
from jdcl_jax.methods.composition import Penalised
from jdcl_jax.methods.ewc import EWC
from jdcl_jax.methods.generative_distillation import GenerativeDistillation
from jdcl_jax.methods.method import Learned
from jdcl_jax.methods.registry import (
    ALONE,
    canonical_name,
    default_options,
    is_method_name,
    known_methods,
    known_penalties,
    make_method,
)
from jdcl_jax.models.joint import JointNetwork
from jdcl_jax.training.checkpoint import Checkpoints

# -- names and options


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("finetune", "finetune"),
        ("gd", "gd"),
        ("ewc", "ewc"),
        ("finetune+ewc", "ewc"),
        ("ewc+finetune", "ewc"),
        ("gd+rank1_ewc", "rank1_ewc+gd"),
        ("si+gd+ewc", "ewc+si+gd"),
        ("mas+l2", "l2+mas"),
    ],
)
def test_penalties_come_first_in_the_order_of_the_alphabet(written: str, canonical: str) -> None:
    assert canonical_name(written) == canonical
    assert canonical_name(canonical) == canonical
    assert is_method_name(written)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ewcc", ["unknown method 'ewcc'", "did you mean 'ewc'", "rank1_ewc", "gaussian", "joined by +"]),
        ("gd+", ["unknown method ''"]),
        ("", ["unknown method ''"]),
        ("ewc+gd+jiont", ["unknown method 'jiont'", "did you mean 'joint'"]),
        ("ewc+ewc", ["'ewc+ewc' names a part twice", "each once"]),
        ("gd+gd", ["names a part twice"]),
        ("gd+er", ["joins two methods, gd and er", "ewc, gpm, l2, mas, rank1_ewc, si"]),
        ("ewc+joint", ["joint takes no penalty", "write 'joint' or 'ewc'"]),
        ("agem+l2", ["agem takes no penalty", "write 'agem' or 'l2'"]),
        (
            "gpm+gppdm",
            ["gppdm takes no penalty (its generator goes on from averaged weights", "write 'gppdm' or 'gpm'"],
        ),
    ],
)
def test_a_wrong_name_is_refused_in_one_line_that_says_what_to_write(setup, name: str, parts: list[str]) -> None:
    for refused in (canonical_name, default_options, lambda name: make_method(name, setup, {})):
        with pytest.raises(UserError) as caught:
            refused(name)
        message = str(caught.value)
        assert "\n" not in message
        assert all(part in message for part in parts), message


def test_parts_are_told_from_other_words() -> None:
    assert not any(is_method_name(word) for word in ("smoke", "ewc+smoke", "", "gd+", "+gd"))


def test_options_of_a_penalty_stand_below_its_name_and_those_of_the_method_at_the_top() -> None:
    options = default_options("gd+rank1_ewc+l2")
    assert options == {
        **default_options("gd"),
        "rank1_ewc": default_options("rank1_ewc")["rank1_ewc"],
        "l2": {"strength": 0.1},
    }
    assert default_options("ewc") == {"ewc": known_penalties()["ewc"][1]}
    assert options["rank1_ewc"]["strength"] == 15_000.0  # [paper]
    options["l2"]["strength"] = 7.0
    assert default_options("l2")["l2"]["strength"] == 0.1  # a copy


def test_no_option_of_a_method_has_the_name_of_a_penalty() -> None:
    for name, (_, options) in known_methods().items():
        assert not options.keys() & known_penalties().keys(), name


def test_options_reach_the_part_that_they_are_meant_for(setup) -> None:
    options = default_options("ewc+gd")
    options["replay_weight"], options["ewc"]["samples"] = 0.25, 40
    method = make_method("gd+ewc", setup, options)
    assert isinstance(method, Penalised)
    assert isinstance(method.base, GenerativeDistillation)
    assert method.base.options == {k: v for k, v in options.items() if k != "ewc"}
    (penalty,) = method.penalties
    assert isinstance(penalty, EWC)
    assert (penalty.name, penalty.options["samples"]) == ("ewc", 40)
    assert not isinstance(make_method("gd", setup, default_options("gd")), Penalised)


@pytest.mark.parametrize("penalty", sorted(set(known_penalties()) - {"gpm"}))
def test_impossible_options_of_penalties_are_refused(setup, penalty: str) -> None:
    wrong = {"strength": -0.5, "samples": 0, "batch_size": 0, "damping": 0.0, "anchors": "first"}
    own = {key: value for key, value in wrong.items() if key in known_penalties()[penalty][1]}
    assert "strength" in own
    for key, value in own.items():
        options = default_options(penalty)
        options[penalty][key] = value
        with pytest.raises(UserError, match=f"method.{penalty}.{key}") as caught:
            make_method(penalty, setup, options)
        assert "\n" not in str(caught.value)


def test_a_sequence_of_one_task_has_nothing_to_keep(setup) -> None:
    alone = dataclasses.replace(setup, groups=((3, 1),), task_sizes=(20,), steps=(30,), labels=setup.labels[:20])
    with pytest.raises(UserError, match=r"l2 keeps what earlier tasks learned.* write tasks.num_tasks=2") as caught:
        make_method("l2", alone, default_options("l2"))
    assert "\n" not in str(caught.value)
    make_method("finetune", alone, {})


# -- a method with penalties


COMPOSED = [f"ewc+{name}" for name in sorted(known_methods()) if name not in ALONE]


@pytest.mark.parametrize("name", COMPOSED)
def test_every_method_keeps_its_losses_streams_and_costs_beside_a_penalty(setup, name: str) -> None:
    base_name = name.removeprefix("ewc+")
    base = make_method(base_name, setup, default_options(base_name))
    method = make_method(name, setup, default_options(name))
    for task in range(3):
        own, with_penalty = base.phases(task), method.phases(task)
        estimation = with_penalty[len(own) :]
        assert [phase.name for phase in estimation] == ([] if task == 2 else ["fisher"])
        for plain, phase in zip(own, with_penalty, strict=False):
            assert (phase.steps, phase.passes) == (plain.steps, plain.passes)
            assert phase.streams.keys() == plain.streams.keys()
            assert phase.name == (plain.name if task == 0 else f"ewc+{plain.name}")
        memory = method.init_memory({"w": jnp.ones(3)})
        context, plain_context = method.context(memory, task), base.context(memory, task)
        assert context.keys() == {*plain_context, "penalties"}
        # The estimation reads the data of this task alone.
        assert (int(context["current"].start), int(context["current"].count)) == (20 * task, 20)


def test_what_the_method_keeps_is_untouched_by_the_penaltys_phases(setup) -> None:
    """Stored replay draws in a phase of its own; the Fisher's phase must not overwrite its images."""
    options = default_options("ewc+gr") | {"replay": "stored", "stored_per_class": 4}
    method = make_method("ewc+gr", setup, options)
    params = {"w": jnp.float32(0.5)}
    memory, tracked = method.init_memory(params), method.init_tracked(params)
    assert {"drawn", "fisher"} == tracked.keys()
    drawn = jax.tree.map(lambda x: np.full_like(x, 7), tracked["drawn"])
    names = [phase.name for phase in method.phases(1)]
    assert names == ["draw", "ewc+replay", "fisher"]
    draw, _, fisher = method.phases(1)
    memory = method.end_phase(memory, Learned(params, params, {**tracked, "drawn": drawn}), 1, draw)
    assert np.all(memory["stored"]["images"] == 7)
    memory = method.end_phase(memory, Learned(params, params, tracked), 1, fisher)
    assert np.all(memory["stored"]["images"] == 7)
    memory = method.end_task(memory, Learned(params, params, {**tracked, "fisher": {"w": jnp.float32(2.0)}}), 1)
    assert np.all(memory["stored"]["images"] == 7)
    assert float(memory["teacher"]["w"]) == 0.5
    assert float(memory["penalties"]["ewc"]["importance"]["w"]) == 2.0


def test_the_rows_that_a_buffer_keeps_are_still_known(setup) -> None:
    method = make_method("ewc+er", setup, {**default_options("ewc+er"), "buffer_size": 6})
    params = {"w": jnp.float32(0.5)}
    memory = method.init_memory(params)
    assert len(method.kept_rows(memory)) == 0
    memory = method.end_task(memory, Learned(params, params, method.init_tracked(params)), 0)
    rows = method.kept_rows(memory)
    assert len(rows) == 6
    assert np.all(rows < 20)


def test_anchors_are_the_raw_parameters_where_gradients_were_taken(setup) -> None:
    """Not their average, of which nothing was estimated."""
    method = make_method("ewc+l2+mas+rank1_ewc+si", setup, default_options("ewc+l2+mas+rank1_ewc+si"))
    raw, averaged = {"w": jnp.float32(0.5)}, {"w": jnp.float32(0.1)}
    memory = method.init_memory(averaged)
    memory = method.end_task(memory, Learned(raw, averaged, method.init_tracked(raw)), 0)
    assert {name: float(kept["anchor"]["w"]) for name, kept in memory["penalties"].items()} == dict.fromkeys(
        ("ewc", "l2", "mas", "rank1_ewc", "si"), 0.5
    )


def test_two_parts_that_track_under_one_name_are_found(setup, monkeypatch) -> None:
    twin = {"ewc": known_penalties()["ewc"], "twin": known_penalties()["ewc"]}
    monkeypatch.setattr(registry, "known_penalties", lambda: twin)
    options = {"ewc": twin["ewc"][1], "twin": twin["ewc"][1]}
    method = make_method("ewc+twin", setup, options)
    with pytest.raises(ValueError, match="fisher"):
        method.init_tracked({"w": jnp.zeros(())})


def test_several_penalties_estimate_one_after_the_other(affine) -> None:
    """And each finds what it finds alone, from the examples of its own phase."""
    small = {"samples": 16, "batch_size": 4}
    both = affine.method("ewc+mas", ewc=small, mas=small)
    assert [phase.name for phase in both.phases(0)] == ["train", "fisher", "sensitivity"]
    tracked = affine.observe(both, 0)
    fisher = affine.gradients(affine.inputs(both, 0, 1))
    np.testing.assert_allclose(tracked["fisher"]["w"], np.mean(fisher["w"] ** 2), rtol=1e-4)
    inputs = affine.inputs(both, 0, 2)
    sensitivity = affine.slopes(inputs, 2.0 * affine.output(inputs))
    np.testing.assert_allclose(tracked["sensitivity"]["w"], np.mean(np.abs(sensitivity["w"])), rtol=1e-4)


# -- a whole run


class StoppedError(Exception):
    pass


class OneConvolution(nn.Module):
    """In the place of the UNet, so that whole runs compile in seconds."""

    out_channels: int
    num_classes: int = 0
    form: str = "plain"

    @nn.compact
    def __call__(self, x, t, labels=None, keys=None):
        return nn.Conv(self.out_channels, (3, 3))(x) * (1.0 + 1e-3 * t[:, None, None, None])


SIZES = [f"method.{name}.{size}" for name in ("ewc", "rank1_ewc") for size in ("samples=64", "batch_size=16")]


@pytest.mark.long
def test_memory_is_updated_once_a_task_also_where_an_estimation_was_cut_short(
    tiny_config, tmp_path, monkeypatch
) -> None:
    words = ("ewc+rank1_ewc+si", *SIZES, "tasks.first=2", "evaluation.num_samples=20")
    config, calls, memories = tiny_config(*words), [], []
    end_task, save_task, save = Penalised.end_task, Checkpoints.save_task, Checkpoints.save

    def counting(self, memory, learned, task):
        calls.append(task)
        return end_task(self, memory, learned, task)

    def keeping(self, task, state, record):
        memories.append(jax.device_get(state["memory"]))
        save_task(self, task, state, record)

    def stopping(self, step, state, record):
        save(self, step, state, record)
        place = record["position"]["phase"], record["position"]["step"]
        if place == (2, 2):  # after training and the Fisher, in the middle of the mean gradient
            raise StoppedError

    monkeypatch.setattr(assembly, "make_network", lambda config, channels, _: JointNetwork(OneConvolution(channels)))
    monkeypatch.setattr(Penalised, "end_task", counting)
    monkeypatch.setattr(Checkpoints, "save_task", keeping)
    results = run(config, tmp_path / "undisturbed")
    assert calls == [0, 1]
    trained = [row["phase"] for row in results["cost"] if row["steps"]]
    assert trained == ["train", "fisher", "mean_gradient", "curvature", "ewc+rank1_ewc+si+train"]
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stopping)
        with pytest.raises(StoppedError):
            run(config, tmp_path / "stopped")
    assert calls == [0, 1]  # nothing was remembered of half an estimation
    run(config, tmp_path / "stopped")
    assert calls == [0, 1, 0, 1]
    for undisturbed, resumed in zip(memories[:2], memories[2:], strict=True):
        for a, b in zip(jax.tree.leaves(undisturbed), jax.tree.leaves(resumed), strict=True):
            np.testing.assert_array_equal(a, b)
    # The last task estimates nothing, and a Fisher that was left from the task before would be added again.
    first, last = (memory["penalties"]["ewc"]["importance"] for memory in memories[:2])
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True))
    kept = memories[0]["penalties"]
    for name in ("ewc", "si"):
        assert sum(float(np.sum(leaf)) for leaf in jax.tree.leaves(kept[name]["importance"])) > 0.0
    assert float(kept["rank1_ewc"]["curvature"][0]) > 0.0
