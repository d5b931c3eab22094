"""Whole runs of JDCL on real digits: what they leave, stopped and resumed, on devices and in all variants.

All but one have two layers in the UNet's place, and nothing is optimised while compiling, so that a run takes seconds.
"""

import itertools
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics

from interrupted import end_of_task, leaves, position, saved, shapes_of, share_programs, stopped_at, zeros
from jdcl_jax import assembly
from jdcl_jax import sample as sample_command
from jdcl_jax.assembly import assemble, classifying_flops, forward_flops
from jdcl_jax.data.batches import to_float
from jdcl_jax.experiment import run
from jdcl_jax.keys import named_key
from jdcl_jax.measuring.generation import Generator
from jdcl_jax.methods.method import DENOISER
from jdcl_jax.models.unet import UNet
from jdcl_jax.reporting.grids import write_grid
from jdcl_jax.restored import restore
from jdcl_jax.training.checkpoint import Checkpoints
from jdcl_jax.training.parallel import Parallel
from small_runs import JDCL, Line, lines, said, stages_of

SCRATCH = (*JDCL, "method.local_start=scratch")
TWO = "tasks.first=2"
GROUPS, QUOTA = [[0, 1], [2, 3], [4, 5]], 20

pytestmark = [pytest.mark.usefixtures("small"), pytest.mark.end_to_end]


@pytest.fixture(scope="module", autouse=True)
def shared(small) -> None:
    share_programs(small)


def newest(workdir: Path, config) -> Any:
    """The tree of the newest checkpoint in the middle of a task."""
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    return checkpoints._restore(checkpoints._latest, max(checkpoints._latest.all_steps()), shapes_of(config))[0]


def averaged(workdir: Path, config, task: int) -> Any:
    return saved(workdir, config, task)["networks"][DENOISER].averaged


def accuracy(parts, params, task: int) -> float:
    """On the test images of a task (from 0), among all classes."""
    test = parts.sequence.test.task(task)
    return metrics.accuracy_score(test.labels, said(parts, params, test.images))


class Undisturbed:
    """A run of three tasks whose local stages begin from scratch."""

    def __init__(self, tiny_config, folder: Path):
        self.workdir, self.config = folder / "run", tiny_config(*SCRATCH)
        self.results = run(self.config, self.workdir, command="tests")
        self.parts = assemble(self.config)

    def phases(self, name: str) -> list[dict]:
        return [entry for entry in self.results["phases"] if entry["phase"] == name]


@pytest.fixture(scope="module")
def undisturbed(tiny_config, tmp_path_factory, small) -> Undisturbed:
    return Undisturbed(tiny_config, tmp_path_factory.mktemp("jdcl"))


# -- what a run leaves


def test_a_task_is_a_local_stage_a_draw_and_a_global_stage_and_the_first_a_local_one_alone(undisturbed) -> None:
    assert undisturbed.results["status"] == "finished"
    stages = [(entry["task"], entry["phase"]) for entry in undisturbed.results["phases"]]
    assert stages == [(1, "local"), *((task, phase) for task in (2, 3) for phase in ("local", "draw", "global"))]
    trained = [(row["task"], row["phase"]) for row in undisturbed.results["cost"] if row["steps"]]
    assert trained == stages


def test_accuracies_are_those_of_the_saved_networks_on_the_test_images(undisturbed) -> None:
    """Class-incremental and masked, and what was answered instead."""
    parts, results = undisturbed.parts, undisturbed.results
    for task in range(3):
        params, test = averaged(undisturbed.workdir, undisturbed.config, task + 1), parts.sequence.test.seen(task)
        logits = np.array(parts.network.classify(params, to_float(jnp.asarray(test.images))))
        masked = logits.copy()
        for group in GROUPS[: task + 1]:
            others = [c for c in range(10) if c not in group]
            masked[np.ix_(np.isin(test.labels, group), others)] = -np.inf
        for name, scores in (("accuracy", logits), ("accuracy_masked", masked)):
            found, right = results["scores"][name], scores.argmax(1) == test.labels
            rows = [right[np.isin(test.labels, group)].mean() for group in GROUPS[: task + 1]]
            assert found["matrix"][task] == pytest.approx([*rows, *[None] * (2 - task)])
            assert found["union"][task] == pytest.approx(right.mean())
            assert found["lower_is_better"] is False
        confusion = metrics.confusion_matrix(test.labels, logits.argmax(1), labels=range(10))
        np.testing.assert_array_equal(results["confusion"][task], confusion)
    last = [results["scores"][name]["union"][2] for name in ("accuracy", "accuracy_masked")]
    assert 0 < last[0] < last[1]


def test_each_phases_accuracy_is_that_of_the_network_it_ended_with(undisturbed) -> None:
    parts = undisturbed.parts
    matrix = undisturbed.results["scores"]["accuracy"]["matrix"]
    assert undisturbed.phases("local")[0]["accuracy"] == matrix[0]
    for task in (1, 2):
        local = saved(undisturbed.workdir, undisturbed.config, task + 1)["memory"]["local"]["averaged"]
        rows = [accuracy(parts, local, j) for j in range(task + 1)]
        assert undisturbed.phases("local")[task]["accuracy"] == pytest.approx([*rows, *[None] * (2 - task)])
        assert rows[task] > 0.45  # that it has learned its own task
        assert undisturbed.phases("global")[task - 1]["accuracy"] == matrix[task]


def test_a_draw_says_of_each_class_what_was_asked_accepted_and_topped_up(undisturbed) -> None:
    for task in (1, 2):
        entry = undisturbed.phases("draw")[task - 1]
        drawn = saved(undisturbed.workdir, undisturbed.config, task + 1)["memory"]["draw"]
        classes = [c for group in GROUPS[: task + 1] for c in group]
        assert [(one["class"], one["source"]) for one in entry["replay"]] == [
            (c, "local" if c in GROUPS[task] else "old") for c in classes
        ]
        for place, one in enumerate(entry["replay"]):
            source = ("old", "local").index(one["source"])
            assert one["quota"] == QUOTA
            assert one["drawn"] == drawn["labelled"][source, place] >= one["accepted"] == drawn["counts"][place]
            assert one["accepted"] == min(one["drawn"], QUOTA)
            assert one["topped_up"] == (QUOTA - one["accepted"] if one["accepted"] else 0)
        numbers = {"old": 2 * task, "local": 2}
        for i, (name, number) in enumerate(numbers.items()):
            assert entry["samples"][name] == drawn["labelled"][i].sum()
            assert 0 < entry["samples"][name] <= 2 * number * QUOTA
        lacking = [one["class"] for one in entry["replay"] if not one["accepted"]]
        assert len(entry.get("warnings", [])) == len(lacking)
    for source in ("old", "local"):  # or the tests of killed runs would show little
        accepted = [one["accepted"] for one in undisturbed.phases("draw")[0]["replay"] if one["source"] == source]
        assert 0 < min(accepted) < max(accepted) == QUOTA


def test_each_stored_image_was_given_its_class_by_the_classifier_of_the_model_that_drew_it(undisturbed) -> None:
    parts = undisturbed.parts
    for task in (1, 2):
        memory = saved(undisturbed.workdir, undisturbed.config, task + 1)["memory"]
        teachers = {
            "old": averaged(undisturbed.workdir, undisturbed.config, task),
            "local": memory["local"]["averaged"],
        }
        for place, one in enumerate(undisturbed.phases("draw")[task - 1]["replay"]):
            images = memory["draw"]["images"][place * QUOTA : place * QUOTA + one["accepted"]]
            labels = said(parts, teachers[one["source"]], images) if len(images) else np.zeros(0)
            assert set(labels.tolist()) <= {one["class"]}
            assert len(np.unique(images, axis=0)) == len(images)


def test_after_a_task_the_model_of_all_tasks_is_the_one_that_is_kept(undisturbed) -> None:
    for task in (1, 2, 3):
        state = saved(undisturbed.workdir, undisturbed.config, task)
        kept = state["memory"]["old"]["averaged"]
        jax.tree.map(np.testing.assert_array_equal, kept, state["networks"][DENOISER].averaged)


def test_sizes_and_operations_of_denoiser_and_classifier_are_in_the_results(undisturbed) -> None:
    results, parts = undisturbed.results, undisturbed.parts
    params = averaged(undisturbed.workdir, undisturbed.config, 3)
    head = (16 + 1) * 16 + (16 + 1) * 10
    assert sum(leaf.size for leaf in jax.tree.leaves(params["head"])) == head
    assert results["classifier_parameters"] == head
    assert results["parameters"] == head + (64 + 1) * 16 + (1 + 1) * 16 + (16 + 1) * 64
    assert results["forward_flops"] == forward_flops(parts.network, (8, 8, 1))
    assert results["classifying_flops"] == classifying_flops(parts.network, (8, 8, 1))
    assert 2 * 64 * 16 < results["classifying_flops"] < results["forward_flops"]


def test_costs_are_those_of_the_passes_of_each_stage(undisturbed) -> None:
    results = undisturbed.results
    classifying, batch = results["classifying_flops"] / results["forward_flops"], 8
    late = (24 - 8) / 24
    passes = {
        "local": 3 + 3 * classifying,
        "draw": 3 + classifying,  # replay steps of a sample; as many samples as a batch has
        "global": 3 + 1 + late * (3 + 1) * classifying,
    }
    for row in results["cost"]:
        if row["steps"]:
            per_step = row["model_flops"] / (row["steps"] * batch * results["forward_flops"])
            assert per_step == pytest.approx(passes[row["phase"]])
            assert row["steps"] == {"local": 16, "global": 24}.get(row["phase"], row["steps"])
    for entry in undisturbed.phases("draw"):
        (steps,) = [r["steps"] for r in results["cost"] if (r["task"], r["phase"]) == (entry["task"], "draw")]
        assert steps * 8 == sum(entry["samples"].values())  # those that drew something


# -- samples of a workdir


def grid(parts, params, key, target: Path) -> bytes:
    write_grid(target, Generator(parts.setup, Parallel("pmap"), 60)(params, key, 60))
    return target.read_bytes()


@pytest.mark.parametrize("task", [1, 2, 3])
def test_sampling_draws_from_the_model_that_was_evaluated_and_not_from_where_a_local_stage_began(
    undisturbed, task, tmp_path
) -> None:
    parts, workdir = undisturbed.parts, undisturbed.workdir
    params = restore(workdir, task).params
    jax.tree.map(np.testing.assert_array_equal, params, averaged(workdir, undisturbed.config, task))
    picture = (workdir / "samples" / f"task_0{task}.png").read_bytes()
    key = named_key(0, "task", task - 1, "evaluate")
    assert grid(parts, params, key, tmp_path / "evaluated.png") == picture
    scratch = parts.setup.fresh(named_key(0, "task", task - 1, "scratch"))
    assert grid(parts, scratch, key, tmp_path / "scratch.png") != picture
    images = sample_command.sample(workdir, task=task, num=60)
    write_grid(tmp_path / "sampled.png", images)
    assert (
        grid(parts, params, named_key(0, "sample"), tmp_path / "again.png") == (tmp_path / "sampled.png").read_bytes()
    )
    if task > 1:
        local = saved(workdir, undisturbed.config, task)["memory"]["local"]["averaged"]
        assert grid(parts, local, key, tmp_path / "local.png") != picture


# -- stopped in the middle of each stage of task 2

STOPPED_AT = {"local": 8, "draw": 8, "global": 12}  # of 16, 20 and 24 steps; the old model's samples are drawn by 10
STAGES = list(STOPPED_AT)


class Stopped:
    """A run stopped in each stage of task 2, and then ended.

    `at` holds copies of its folder as it was when it was stopped, `began` the first checkpoint that each part made.
    """

    def __init__(self, config, folder: Path):
        self.workdir, self.at, self.began = folder / "run", {}, {}
        for number, stage in enumerate(STAGES):
            self.began[stage] = stopped_at(config, self.workdir, number, STOPPED_AT[stage])
            self.at[stage] = folder / stage
            shutil.copytree(self.workdir, self.at[stage])
        self.results = run(config, self.workdir, command="tests")


@pytest.fixture(scope="module")
def stopped(undisturbed, tmp_path_factory) -> Stopped:
    return Stopped(undisturbed.config, tmp_path_factory.mktemp("stopped"))


def test_every_part_went_on_in_the_middle_of_the_stage_where_the_one_before_was_stopped(stopped) -> None:
    assert stopped.began == {"local": (0, 0, 4), "draw": (1, 0, 12), "global": (1, 1, 12)}
    for number, stage in enumerate(STAGES):
        assert position(stopped.at[stage]) == (1, number, STOPPED_AT[stage])
        assert Checkpoints(stopped.at[stage] / "checkpoints", read_only=True).tasks() == [1]


def test_a_local_stage_begins_from_scratch_and_a_global_one_from_the_model_of_all_tasks(stopped, undisturbed) -> None:
    """After a few steps of so small a learning rate a network is still near its beginning."""

    def distance(a, b) -> float:
        return float(optax.tree.norm(jax.tree.map(np.subtract, a, b)))

    states = {stage: newest(stopped.at[stage], undisturbed.config) for stage in ("local", "global")}
    now = {stage: state["networks"][DENOISER].params for stage, state in states.items()}
    memory = states["global"]["memory"]
    old, local = (memory[name]["averaged"] for name in ("old", "local"))
    scratch = undisturbed.parts.setup.fresh(named_key(0, "task", 1, "scratch"))
    assert distance(now["local"], scratch) < 0.5 * distance(now["local"], old)
    assert distance(now["global"], old) < 0.5 * min(distance(now["global"], x) for x in (local, scratch))


def test_sampling_from_a_run_in_the_middle_of_a_stage_draws_from_the_task_before(stopped, undisturbed) -> None:
    before = sample_command.sample(undisturbed.workdir, task=1, num=6)
    for stage in STAGES:
        np.testing.assert_array_equal(sample_command.sample(stopped.at[stage], task=0, num=6), before)


def test_networks_teachers_and_replay_set_are_bit_for_bit_those_of_an_undisturbed_run(stopped, undisturbed) -> None:
    ends = [leaves(workdir, undisturbed.config) for workdir in (stopped.workdir, undisturbed.workdir)]
    assert ends[0].keys() == ends[1].keys()
    assert sum("['draw']['images']" in name for name in ends[0]) == 3
    assert [name for name in ends[0] if ends[0][name] != ends[1][name]] == []


def test_everything_that_was_measured_is_equal(stopped, undisturbed) -> None:
    for key in ("status", "scores", "phases", "confusion", "assigned", "errors", "tasks", "config", "parameters"):
        assert stopped.results[key] == undisturbed.results[key], key
    amounts = ("task", "phase", "steps", "images", "model_flops")
    rows = [[[row[k] for k in amounts] for row in one.results["cost"]] for one in (stopped, undisturbed)]
    assert rows[0] == rows[1]
    facts = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines(one.workdir)]
        for one in (stopped, undisturbed)
    ]
    assert facts[0] == facts[1]
    for picture in sorted((undisturbed.workdir / "samples").iterdir()):
        assert (stopped.workdir / "samples" / picture.name).read_bytes() == picture.read_bytes()


def with_network(state, **changes):
    return {**state, "networks": {DENOISER: state["networks"][DENOISER].replace(**changes)}}


FORGET = {
    "nothing": lambda state: state,
    "optimiser": lambda state: with_network(state, opt_state=zeros(state["networks"][DENOISER].opt_state)),
    "average": lambda state: with_network(state, ema=state["networks"][DENOISER].params),
    "drawn": lambda state: with_network(state, tracked=zeros(state["networks"][DENOISER].tracked)),
    "old model": lambda state: {**state, "memory": {**state["memory"], "old": state["memory"]["local"]}},
    "local model": lambda state: {**state, "memory": {**state["memory"], "local": state["memory"]["old"]}},
    "replay set": lambda state: {**state, "memory": {**state["memory"], "draw": zeros(state["memory"]["draw"])}},
}


@pytest.mark.parametrize(
    ("stage", "lost", "same"),
    [
        ("draw", "nothing", True),
        ("local", "optimiser", False),
        ("local", "average", False),
        ("draw", "drawn", False),
        ("draw", "local model", False),
        ("global", "local model", False),
        ("global", "old model", False),
        ("global", "replay set", False),
    ],
)
def test_the_end_of_task_2_differs_exactly_where_a_part_of_the_state_is_lost(
    stage, lost, same, stopped, undisturbed, tmp_path
) -> None:
    shutil.copytree(stopped.at[stage], tmp_path / "run")
    assert position(tmp_path / "run")[1] == STAGES.index(stage)
    end_of_task(tmp_path / "run", undisturbed.config, FORGET[lost])
    ends = [leaves(folder, undisturbed.config, (2,)) for folder in (tmp_path / "run", undisturbed.workdir)]
    params = [name for name in ends[0] if ".params" in name]
    assert params
    assert all(ends[0][name] == ends[1][name] for name in params) is same


# -- devices


@pytest.mark.long
def test_pmap_on_two_devices_and_jit_give_the_same_accuracy(tiny_config, undisturbed, tmp_path) -> None:
    config = tiny_config(*SCRATCH, "parallel.mode=jit")
    results = run(config, tmp_path / "run")
    for name in ("accuracy", "accuracy_masked"):
        assert results["scores"][name]["matrix"] == undisturbed.results["scores"][name]["matrix"]
    assert results["phases"] == undisturbed.results["phases"]
    both = [averaged(folder, undisturbed.config, 3) for folder in (tmp_path / "run", undisturbed.workdir)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), *both)


# -- variants


ABLATIONS = list(itertools.product([True, False], [True, False], ["joint", "separate"]))
SHORT = [(False, False, "separate")]  # every part is left out


@pytest.mark.parametrize(
    ("local", "distillation", "kind"),
    [pytest.param(*one, marks=[] if one in SHORT else pytest.mark.long) for one in ABLATIONS],
)
def test_every_ablation_runs_to_the_end(kind, distillation, local, tiny_config, tmp_path) -> None:
    words = (f"classifier.kind={kind}", f"method.distillation={distillation}", f"method.local={local}")
    results = run(tiny_config(*JDCL, TWO, *words), tmp_path / "run")
    assert results["status"] == "finished"
    assert stages_of(results) == [(1, "local"), *([(2, "local")] if local else []), (2, "draw"), (2, "global")]
    (draw,) = [entry for entry in results["phases"] if entry["phase"] == "draw"]
    assert {one["source"] for one in draw["replay"]} == ({"old", "local"} if local else {"old"})
    assert [one["class"] for one in draw["replay"]] == ([0, 1, 2, 3] if local else [0, 1])
    head, encoder = 17 * 16 + 17 * 10, 65 * 16 + 2 * 16
    assert results["classifier_parameters"] == head + (encoder if kind == "separate" else 0)
    assert results["parameters"] == results["classifier_parameters"] + encoder + 17 * 64
    logged = [line for line in lines(tmp_path / "run") if line["phase"] == "global"]
    early, late = logged[0], logged[-1]
    assert (early["loss_class"], early["loss_class_distillation"]) == (0, 0)
    assert late["loss_class"] > 0
    assert (late["loss_distillation"] > 0) is distillation
    assert (late["loss_class_distillation"] > 0) is distillation
    classifying = results["classifying_flops"] / results["forward_flops"]
    taught = int(distillation)
    passes = 3 + taught + 16 / 24 * (3 + taught) * classifying
    (row,) = [row for row in results["cost"] if row["phase"] == "global"]
    assert row["model_flops"] == pytest.approx(24 * 8 * passes * results["forward_flops"])
    assert np.isfinite(results["scores"]["accuracy"]["union"]).all()


@pytest.mark.parametrize(
    ("unlabelled", "terms"),
    [
        ("fixmatch", {"loss_denoising", "loss_class", "loss_fixmatch", "sure"}),
        pytest.param("denoise", {"loss_denoising", "loss_class"}, marks=pytest.mark.long),
        pytest.param("ignore", {"loss_denoising", "loss_class"}, marks=pytest.mark.long),
    ],
)
def test_runs_that_know_a_part_of_the_labels(unlabelled, terms, tiny_config, tmp_path) -> None:
    config = tiny_config(*JDCL, TWO, "data.label_fraction=0.3", f"method.unlabelled={unlabelled}")
    results = run(config, tmp_path / "run")
    assert results["status"] == "finished"
    assert stages_of(results) == [(1, "local"), (2, "local"), (2, "draw"), (2, "global")]
    logged = [line for line in lines(tmp_path / "run") if line["phase"] == "local"]
    about = {"loss_denoising", "loss_class", "loss_fixmatch", "sure"}
    assert all(about & set(line) == terms for line in logged)
    streams = 1 if unlabelled == "ignore" else 2
    (row,) = [row for row in results["cost"] if (row["task"], row["phase"]) == (2, "local")]
    assert row["images"] == 16 * 8 * streams
    assert results["scores"]["accuracy"]["matrix"][0][0] > 0.6  # of two classes, ten that may be answered


def test_a_teacher_of_raw_weights_is_kept_beside_the_averaged_ones(tiny_config, tmp_path) -> None:
    config = tiny_config(*JDCL, TWO, "method.teacher=last")
    run(config, tmp_path / "run")
    state = saved(tmp_path / "run", config, 2)
    network, old = state["networks"][DENOISER], state["memory"]["old"]
    jax.tree.map(np.testing.assert_array_equal, old["raw"], network.params)
    jax.tree.map(np.testing.assert_array_equal, old["averaged"], network.ema)
    assert not np.array_equal(old["raw"]["head"]["logits"]["bias"], old["averaged"]["head"]["logits"]["bias"])


@pytest.mark.long
def test_the_real_network_runs_through_all_stages(tiny_config, tmp_path, small) -> None:
    small.setattr(assembly, "UNet", UNet)
    words = ("train.steps=4", "method.global_steps=4", "method.class_delay=2", "train.learning_rate=3e-3")
    try:
        config = tiny_config(*JDCL, TWO, *words, "model.dropout=0.1")
        results = run(config, tmp_path / "run")
        params = averaged(tmp_path / "run", config, 2)
    finally:
        small.setattr(assembly, "UNet", Line)
    assert results["status"] == "finished"
    assert {"down0_res0", "mid_attention", "up0_res1"} <= set(params["unet"])
    assert results["classifying_flops"] < 0.7 * results["forward_flops"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
