"""Continued training on a network's own samples: its phases, what it refuses, and whole runs that take seconds."""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import small_runs
from jdcl_jax.assembly import assemble, chain_steps
from jdcl_jax.errors import UserError
from jdcl_jax.experiment import Experiment, run
from jdcl_jax.methods.method import DENOISER, Learned, Phase
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.checkpoint import to_host


@pytest.fixture
def single(classifying):
    """A setup of one task of six classes."""
    return dataclasses.replace(classifying, groups=((3, 1, 0, 2, 5, 4),), task_sizes=(60,), steps=(30,))


def method_of(setup, **options):
    few = {"quota": 5, "replay_batch": 8, "global_steps": 40, "rounds": 4, "replay_steps": 3}
    return make_method("continued", setup, {**default_options("continued"), **few, **options})


# -- phases


def test_after_real_data_and_a_draw_come_rounds_of_equal_length_that_go_on_with_one_optimiser(single) -> None:
    phases = method_of(single).phases(0)
    assert [(phase.name, phase.steps, phase.continues) for phase in phases] == [
        ("local", 30, False),
        ("draw", 8, False),  # 2 * 6 * 5 samples, 8 at a time
        ("global", 10, False),
        ("global", 10, True),
        ("global", 10, True),
        ("global", 10, True),
    ]
    assert [phase.observe is not None for phase in phases] == [False, True, *[False] * 4]
    assert [set(phase.streams) for phase in phases] == [{"current"}, {"sample"}, *[{"replay"}] * 4]


@pytest.mark.parametrize(("distillation", "passes"), [(True, 3 + 1 + 1.5 + 0.5), (False, 3 + 1.5)])
def test_a_step_on_samples_classifies_from_the_first_on_and_asks_a_teacher_only_to_distil(
    distillation, passes, single
) -> None:
    """To classify an image takes half a pass forwards, 1.5 to train on it."""
    phases = method_of(single, distillation=distillation).phases(0)
    assert [phase.passes for phase in phases[2:]] == pytest.approx([passes] * 4)


def test_one_round_is_all_steps_at_once(single) -> None:
    phases = method_of(single, rounds=1).phases(0)
    assert [(phase.name, phase.steps, phase.continues) for phase in phases[2:]] == [("global", 40, False)]


def test_all_classes_are_drawn_from_the_network_itself_and_nothing_from_a_local_model(single) -> None:
    method = method_of(single)
    memory = method.init_memory({"w": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(method.context(memory, 0)["draw"]["wanted"], [[5] * 6, [0] * 6])


def test_the_network_as_it_was_after_real_data_draws_and_teaches_and_no_phase_starts_elsewhere(single) -> None:
    method = method_of(single)
    memory = method.init_memory({"w": np.float32(0)})
    local, _, first, *_ = method.phases(0)
    after = method.end_phase(memory, Learned({"w": np.float32(1)}, {"w": np.float32(2)}), 0, local)
    assert after["old"] == {"averaged": {"w": 2}}
    np.testing.assert_array_equal(method.context(after, 0)["models"]["averaged"]["w"][0], 2)
    later = method.end_phase(after, Learned({"w": np.float32(3)}, {"w": np.float32(4)}), 0, first)
    assert later["old"] == {"averaged": {"w": 2}}
    assert all(method.start(after, 0, phase) is None for phase in method.phases(0))


def test_by_default_there_are_ten_rounds_without_distillation() -> None:
    options = default_options("continued")
    assert (options["rounds"], options["distillation"]) == (10, False)
    assert not {"first_steps", "class_delay", "local", "local_start"} & options.keys()


# -- what is refused


def test_more_than_one_task_is_refused(classifying) -> None:
    with pytest.raises(UserError, match=r"write tasks\.num_tasks=1"):
        method_of(classifying)


@pytest.mark.parametrize("rounds", [0, -1, 3, 80])
def test_rounds_of_unequal_lengths_are_refused(rounds, single) -> None:
    with pytest.raises(UserError, match=rf"method\.rounds is {rounds}; write a divisor of method\.global_steps=40"):
        method_of(single, rounds=rounds)


def test_a_network_that_does_not_classify_is_refused(single) -> None:
    with pytest.raises(UserError, match=r"classifier\.kind=joint"):
        method_of(dataclasses.replace(single, classifier=None))


# -- the steps that a schedule of the learning rate spans


@pytest.mark.parametrize(
    ("lengths_and_continues", "spans"),
    [
        ([(5, False)], [5]),
        ([(5, False), (7, False)], [5, 7]),
        ([(5, False), (7, True)], [12, 12]),
        ([(5, False), (7, True), (11, True), (13, False), (17, True)], [23, 23, 23, 30, 30]),
        ([(5, False), (7, False), (11, True), (13, True), (17, False)], [5, 31, 31, 31, 17]),
    ],
)
def test_a_schedule_spans_a_phase_and_all_that_go_on_with_its_optimiser(lengths_and_continues, spans) -> None:
    phases = [
        Phase(f"{i}", lambda params, batch, context: (0.0, {}), {}, steps, 0.0, continues=continues)
        for i, (steps, continues) in enumerate(lengths_and_continues)
    ]
    assert [chain_steps(phases, place) for place in range(len(phases))] == spans


# -- whole runs

ROUNDS, STEPS, QUOTA = 4, 8, 20
WORDS = (
    *(word for word in small_runs.JDCL if word not in ("jdcl", "method.class_delay=8")),
    "continued", "tasks.num_tasks=1", "tasks.first=0", "train.schedule=cosine", "train.steps=60", "train.batch_size=16",
    "train.steps_per_call=4", "train.log_every=4", "checkpoint.every=1000", f"method.global_steps={ROUNDS * STEPS}",
    f"method.rounds={ROUNDS}",
)  # fmt: skip


def test_a_warm_up_may_be_longer_than_a_round_but_not_than_all_of_them(tiny_config) -> None:
    words = (*WORDS, "method.global_steps=40")
    assemble(tiny_config(*words, "train.warmup=20"))
    with pytest.raises(UserError, match=r"train\.warmup=38 is not below the 36 steps of the phase global"):
        assemble(tiny_config(*words, "method.global_steps=36", "train.warmup=38"))


class Watched:
    """A run, its network at the end of each phase, and what the method then keeps; of the last, after the task."""

    def __init__(self, tiny_config, folder: Path, *words: str):
        self.phases, self.states, self.memories = [], [], []
        ended = Experiment._end_phase

        def end_phase(experiment, phase, *, last):
            ended(experiment, phase, last=last)
            self.phases.append(phase.name)
            self.states.append(to_host(experiment.state["networks"][DENOISER]))
            self.memories.append(to_host(experiment.state["memory"]))

        config = tiny_config(*WORDS, *words)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Experiment, "_end_phase", end_phase)
            self.results = run(config, folder)
        self.lines, self.parts = small_runs.lines(folder), assemble(config)

    def logged(self, phase: str) -> list[dict]:
        return [line for line in self.lines if line["phase"] == phase]


@pytest.fixture(scope="module")
def distilled(tiny_config, tmp_path_factory, small) -> Watched:
    return Watched(tiny_config, tmp_path_factory.mktemp("distilled") / "run", "method.distillation=True")


@pytest.fixture(scope="module")
def alone(tiny_config, tmp_path_factory, small) -> Watched:
    return Watched(tiny_config, tmp_path_factory.mktemp("alone") / "run")


def test_there_is_an_accuracy_after_real_data_and_after_every_round(alone) -> None:
    rows = alone.results["phases"]
    assert [row["phase"] for row in rows] == alone.phases == ["local", "draw", *["global"] * ROUNDS]
    assert [row["phase"] for row in rows if "accuracy" in row] == ["local", *["global"] * ROUNDS]
    test = alone.parts.sequence.test.seen(0)
    found = []
    for state, row in zip(alone.states, rows, strict=True):
        if "accuracy" in row:
            said = small_runs.said(alone.parts, state.averaged, test.images)
            assert row["accuracy"] == pytest.approx([np.mean(said == test.labels)])
            found += row["accuracy"]
    assert len(set(found)) > 2
    assert rows[-1]["accuracy"] == alone.results["scores"]["accuracy"]["matrix"][0]


def change(before, after) -> float:
    return float(optax.tree.norm(jax.tree.map(np.subtract, after.params, before.params)))


def test_parameters_still_change_in_the_last_round_and_the_less_the_nearer_the_schedules_end(alone) -> None:
    """A cosine over four rounds ends at 0 with the last; its means over them are .95, .69, .31 and .05 of the peak."""
    _, *states = alone.states
    changes = [change(*pair) for pair in itertools.pairwise(states)]
    assert len(changes) == ROUNDS
    assert changes[0] > changes[1] > changes[2] > changes[3] > 0.01 * changes[0]
    assert changes[3] < 0.2 * changes[0]


def test_drawing_changes_no_parameter(alone) -> None:
    jax.tree.map(np.testing.assert_array_equal, alone.states[0].params, alone.states[1].params)


def test_every_round_keeps_the_optimiser_of_the_one_before_and_the_first_starts_afresh(alone) -> None:
    """Adam's count of steps, and the schedule's."""
    found = [optax.tree.get_all_with_path(state.opt_state, "count") for state in alone.states]
    counts = [[int(count) for _, count in counts] for counts in found]
    assert counts == [[n] * 2 for n in (60, 0, *(STEPS * (i + 1) for i in range(ROUNDS)))]


def test_the_replay_set_is_drawn_once_and_labelled_by_the_network_as_it_was_after_real_data(alone) -> None:
    (entry,) = [row for row in alone.results["phases"] if "replay" in row]
    assert [(one["class"], one["source"]) for one in entry["replay"]] == [(c, "old") for c in range(10)]
    assert set(entry["samples"]) == {"old"}
    drawn, found = [memory["draw"]["images"] for memory in alone.memories], 0
    for place, one in enumerate(entry["replay"]):
        images = drawn[1][place * QUOTA : place * QUOTA + one["accepted"]]
        labels = small_runs.said(alone.parts, alone.states[0].averaged, images) if len(images) else np.zeros(0)
        assert set(labels.tolist()) <= {one["class"]}
        found += len(images)
    assert found > 3 * QUOTA
    assert not drawn[0].any()
    for images in drawn[2:]:
        np.testing.assert_array_equal(images, drawn[1])


def test_the_teacher_stays_the_network_as_it_was_after_real_data(distilled) -> None:
    """Until the task is over."""
    *during, after = (memory["old"]["averaged"] for memory in distilled.memories)
    for old in during:
        jax.tree.map(np.testing.assert_array_equal, old, distilled.states[0].averaged)
    jax.tree.map(np.testing.assert_array_equal, after, distilled.states[-1].averaged)


def test_a_teacher_is_distilled_from_where_that_is_asked_for_and_nowhere_else(alone, distilled) -> None:
    for line in distilled.logged("global"):
        assert line["loss_distillation"] > 0
        assert line["loss_class_distillation"] > 0
    for line in alone.logged("global"):
        assert (line["loss_distillation"], line["loss_class_distillation"]) == (0, 0)
        assert line["loss_class"] > 0
    assert len(alone.logged("global")) == len(distilled.logged("global")) == ROUNDS * STEPS // 4


def test_until_the_first_round_distillation_changes_nothing(alone, distilled) -> None:
    for one, other in zip(alone.states[:2], distilled.states[:2], strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert change(alone.states[2], distilled.states[2]) > 0
