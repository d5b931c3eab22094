"""Whole runs of the methods with a generator and a classifier of its own: what they leave, stopped in each phase."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interrupted import end_of_task, leaves, position, saved, share_programs, stopped_at, zeros
from jdcl_jax.assembly import assemble
from jdcl_jax.data.batches import to_float
from jdcl_jax.experiment import run
from jdcl_jax.methods.guide import GUIDE, GUIDED
from jdcl_jax.methods.method import DENOISER, SOLVER
from jdcl_jax.reporting.page import write_report

PLAIN = (
    "classifier.kind=solver", "solver.steps=12", "solver.learning_rate=0.05", "train.ema=0.9", "evaluation.weights=ema",
    "evaluation.scores=('accuracy','accuracy_masked','kld')", "train.steps=12", "train.learning_rate=1e-2",
    "checkpoint.every=4", "method.replay_steps=3", "method.replay_per_class=24",
)  # fmt: skip
WORDS = {
    "gppdm": (
        "gppdm", *PLAIN, "method.replay_validation=8", "context.width=8", "context.label_width=8",
        "context.pooled=4", "context.resolutions=(8,)",
        "method.layers=*/cross/key;*/cross/value;conditioner/*;*/conv_in", "method.samples=48", "method.threshold=1.0",
        "method.prototype_rate=0.05",
    ),
    "ddgr": ("ddgr", *PLAIN, "method.scale=3.0"),
    "guide": ("guide", *PLAIN, "method.every=6", "method.guided_images=48", "method.scale=3.0"),
}  # fmt: skip
PHASES = {
    "gppdm": ["draw", "solver+replay", "prototype", "generator+replay", "represent"],
    "ddgr": ["draw", "generator+replay", "solver+replay"],
    "guide": ["draw", "generator+replay", "guided_draw", "solver+replay", "guided_draw", "solver+replay"],
}  # of the second task and those that follow; without the last one in the last task, where it is of no use

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module", autouse=True)
def shared(small) -> None:
    share_programs(small)


class Undisturbed:
    """A run of three tasks of each method."""

    def __init__(self, name: str, tiny_config: Any, folder: Path):
        self.name, self.config, self.workdir = name, tiny_config(*WORDS[name]), folder / name
        self.results = run(self.config, self.workdir, command="tests")
        self.parts = assemble(self.config)

    def memory(self, task: int) -> Any:
        return saved(self.workdir, self.config, task)["memory"]


LONG = pytest.mark.long  # for these two


@pytest.fixture(scope="module", params=[pytest.param("gppdm", marks=LONG), pytest.param("ddgr", marks=LONG), "guide"])
def undisturbed(request, tiny_config, tmp_path_factory, small) -> Undisturbed:
    return Undisturbed(request.param, tiny_config, tmp_path_factory.mktemp("solver"))


def test_the_phases_of_every_task_are_those_of_the_method(undisturbed) -> None:
    trained = [(row["task"], row["phase"]) for row in undisturbed.results["cost"] if row["steps"]]
    later = list(PHASES[undisturbed.name])
    by_task = {task: [phase for number, phase in trained if number == task] for task in (1, 2, 3)}
    assert by_task[2] == later
    assert by_task[3] == [phase for phase in later if phase != "represent"]
    first = [p.removesuffix("+replay") for p in later if "draw" not in p]
    assert by_task[1] == [phase for phase, _ in itertools.groupby(first)]


def test_accuracy_is_measured_when_the_classifier_has_learned_a_task(undisturbed) -> None:
    rows = [row for row in undisturbed.results["phases"] if "accuracy" in row]
    assert {row["phase"] for row in rows} == {"solver", "solver+replay"}
    assert [row["task"] for row in rows] == [1, 2, 3]  # of GUIDE after the last of its stretches
    assert rows[-1]["accuracy"] == undisturbed.results["scores"]["accuracy"]["matrix"][2]


def test_the_classifier_that_is_scored_is_the_solver_among_the_classes_seen(undisturbed) -> None:
    parts = undisturbed.parts
    for task in range(3):
        params = saved(undisturbed.workdir, undisturbed.config, task + 1)["networks"][SOLVER].params
        test, seen = parts.sequence.test.seen(task), [c for group in parts.setup.groups[: task + 1] for c in group]
        logits = np.asarray(parts.setup.solver.logits(params, to_float(jnp.asarray(test.images))))
        right = np.array(seen)[logits[:, seen].argmax(1)] == test.labels
        found = undisturbed.results["scores"]["accuracy"]
        assert found["union"][task] == pytest.approx(right.mean())
        rows = [right[np.isin(test.labels, group)].mean() for group in parts.setup.groups[: task + 1]]
        assert found["matrix"][task][: task + 1] == pytest.approx(rows)
    assert undisturbed.results["classifier_parameters"] == sum(x.size for x in jax.tree.leaves(params))


def test_their_results_are_shown_on_a_page(undisturbed) -> None:
    page = write_report(undisturbed.workdir).read_text()
    assert f"<h1>{undisturbed.name} on digits" in page
    assert "fd_replay" in page


def test_replay_sets_are_scored_as_those_of_the_generator_of_the_task_before(undisturbed) -> None:
    scores = undisturbed.results["scores"]
    for name in ("fd_replay", "label_accuracy_replay"):
        known = np.isfinite(np.array(scores[name]["matrix"], float))
        assert known.tolist() == [[True, False, False], [True, True, False], [False, False, False]]
        assert [value is None for value in scores[name]["union"]] == [False, False, True]
    images = 48 if undisturbed.name == "guide" else 24 * 4
    assert scores["fd_replay"]["num_generated"]["union"] == images


@pytest.mark.long
def test_what_is_drawn_again_in_a_task_is_drawn_from_other_noise(tiny_config, tmp_path, monkeypatch) -> None:
    """Without guidance too, where the same noise would give the same images."""
    drawn, end_phase = [], GUIDE.end_phase

    def keeping(self, memory, learned, task, phase):
        if phase.name == GUIDED:
            drawn.append(np.array(learned.tracked[GUIDED]["images"]))
        return end_phase(self, memory, learned, task, phase)

    monkeypatch.setattr(GUIDE, "end_phase", keeping)
    run(tiny_config(*WORDS["guide"], "method.scale=0.0", "tasks.first=2"), tmp_path / "run")
    first, second = drawn
    assert first.shape == second.shape
    same = (first == second).all(axis=(1, 2, 3))
    assert not same.any()


def test_the_generator_that_is_kept_is_the_averaged_one_and_the_solver_the_last_one(undisturbed) -> None:
    for task in (1, 2, 3):
        state = saved(undisturbed.workdir, undisturbed.config, task)
        jax.tree.map(np.testing.assert_array_equal, state["memory"]["generator"], state["networks"][DENOISER].averaged)
        jax.tree.map(np.testing.assert_array_equal, state["memory"]["solver"], state["networks"][SOLVER].params)


def test_replayed_images_are_of_all_old_classes_by_turns_and_none_is_drawn_twice(undisturbed) -> None:
    for task, old in ((2, [0, 1]), (3, [0, 1, 2, 3])):
        stored, size = undisturbed.memory(task)["stored"], 24 * len(old)
        assert stored["labels"][:size].tolist() == old * 24
        assert len(np.unique(stored["images"][:size].reshape(size, -1), axis=0)) == size


# -- stopped in the middle of each phase of task 2


class Stopped:
    """A run stopped in each phase of task 2, and then ended.

    `at` holds copies of its folder as it was when it was stopped, by the number of the phase.
    """

    def __init__(self, undisturbed: Undisturbed, folder: Path):
        self.workdir, self.at = folder / "run", {}
        for number in range(len(PHASES[undisturbed.name])):
            stopped_at(undisturbed.config, self.workdir, number, 4)
            assert position(self.workdir) == (1, number, 4)
            self.at[number] = folder / str(number)
            shutil.copytree(self.workdir, self.at[number])
        self.results = run(undisturbed.config, self.workdir, command="tests")


@pytest.fixture(scope="module")
def stopped(undisturbed, tmp_path_factory) -> Stopped:
    return Stopped(undisturbed, tmp_path_factory.mktemp("stopped"))


def test_stopped_in_each_phase_it_ends_bit_for_bit_like_an_undisturbed_run(stopped, undisturbed) -> None:
    ends = [leaves(workdir, undisturbed.config) for workdir in (stopped.workdir, undisturbed.workdir)]
    assert ends[0].keys() == ends[1].keys()
    assert [name for name in ends[0] if ends[0][name] != ends[1][name]] == []
    for key in ("status", "scores", "phases", "confusion", "errors", "config", "parameters"):
        assert stopped.results[key] == undisturbed.results[key], key
    pictures = sorted(undisturbed.workdir.glob("*/task_*.png"))
    assert len(pictures) == (6 if undisturbed.name == "gppdm" else 3)
    for picture in pictures:
        assert (stopped.workdir / picture.relative_to(undisturbed.workdir)).read_bytes() == picture.read_bytes()


def without(part: str, phase: str) -> Any:
    """Forgets a part of the state."""
    kind, name = part.split()

    def forget(state: Any) -> Any:
        if kind == "memory":
            return {**state, "memory": {**state["memory"], name: zeros(state["memory"][name])}}
        network = state["networks"][SOLVER if phase == "solver+replay" else DENOISER]
        lost = network.replace(**{name: zeros(getattr(network, name))})
        return {**state, "networks": {**state["networks"], SOLVER if phase == "solver+replay" else DENOISER: lost}}

    return forget


LOST = {
    "gppdm": [
        ("network tracked", "draw"), ("network opt_state", "solver+replay"), ("memory stored", "solver+replay"),
        ("network tracked", "prototype"), ("memory solver", "prototype"), ("network opt_state", "generator+replay"),
        ("memory bases", "generator+replay"), ("network tracked", "represent"),
    ],
    "ddgr": [("memory solver", "draw"), ("memory generator", "draw"), ("memory stored", "generator+replay")],
    "guide": [
        ("memory generator", "guided_draw"), ("memory solver", "guided_draw"), ("memory guided", "solver+replay"),
        ("network opt_state", "solver+replay"),
    ],
}  # fmt: skip


def test_the_end_of_the_task_differs_where_a_part_of_the_state_is_lost(stopped, undisturbed, tmp_path) -> None:
    """Every one of these parts matters, so that equal ends show that it was kept."""
    right = leaves(undisturbed.workdir, undisturbed.config, (2,))
    for number, (part, phase) in enumerate([("nothing", LOST[undisturbed.name][0][1]), *LOST[undisturbed.name]]):
        folder = tmp_path / str(number)
        shutil.copytree(stopped.at[PHASES[undisturbed.name].index(phase)], folder)
        end_of_task(folder, undisturbed.config, without(part, phase) if part != "nothing" else lambda state: state)
        end = leaves(folder, undisturbed.config, (2,))
        assert (end == right) is (part == "nothing"), (part, phase)
