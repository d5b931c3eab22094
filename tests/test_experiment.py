"""Whole runs on real digits, of a few steps: every method, what a workdir holds, who may run in it, NaN."""

import fcntl
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import small_runs
from jdcl_jax import experiment
from jdcl_jax.assembly import RunArrays, assemble, forward_flops, solver_flops
from jdcl_jax.errors import UserError
from jdcl_jax.experiment import run
from jdcl_jax.keys import named_key
from jdcl_jax.methods.method import DENOISER
from jdcl_jax.models.resnet import make_classifier
from jdcl_jax.training.checkpoint import Checkpoints
from jdcl_jax.training.state import Context
from jdcl_jax.training.stopping import Stopped
from jdcl_jax.training.streams import draw_batch
from jdcl_jax.workdir import Workdir

pytestmark = pytest.mark.end_to_end


def saved(workdir: Path, config, kind: str, number: int):
    """The tree of one checkpoint: its `networks` and `memory`."""
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    shapes = RunArrays(assemble(config)).shapes()
    manager = checkpoints._tasks if kind == "tasks" else checkpoints._latest
    state, _ = checkpoints._restore(manager, number, shapes)
    return state


def equal(a, b) -> bool:
    leaves = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(leaves[0]) == len(leaves[1]) and all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True))


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# -- what a run leaves


def test_a_workdir_is_complete(gd_run) -> None:
    names = {path.name for path in gd_run.workdir.iterdir()}
    assert names == {
        ".lock", "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "samples", "results.json", "report.html"
    }  # fmt: skip
    assert list((gd_run.workdir / "tensorboard").glob("events.out.tfevents.*"))
    pictures = sorted((gd_run.workdir / "samples").iterdir())
    assert [p.name for p in pictures] == ["task_01.png", "task_02.png", "task_03.png"]
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert len(set(np.asarray(image).ravel().tolist())) > 10
    assert not list(gd_run.workdir.rglob("*.tmp"))


def test_metrics_have_a_line_at_every_log_step_and_one_per_evaluation(gd_run) -> None:
    lines = metrics(gd_run.workdir)
    trained = [line for line in lines if line["phase"] != "evaluate"]
    assert [line["step"] for line in trained] == list(range(2, 25, 2))
    assert [line["phase_step"] for line in trained] == [2, 4, 6, 8] * 3
    assert [line["phase"] for line in trained] == ["train"] * 4 + ["distil"] * 8
    assert all(np.isfinite(line["loss"]) and line["images_per_second"] > 0 for line in trained)
    evaluated = [line for line in lines if line["phase"] == "evaluate"]
    assert [(line["step"], line["task"]) for line in evaluated] == [(8, 1), (16, 2), (24, 3)]
    assert set(gd_run.config.evaluation.scores) <= set(evaluated[0])


def test_results_follow_the_schema(gd_run) -> None:
    results = json.loads((gd_run.workdir / "results.json").read_text())
    assert results == gd_run.results
    assert (results["format"], results["status"], results["method"], results["dataset"], results["seed"]) == (
        1, "finished", "gd", "digits", 0
    )  # fmt: skip
    assert results["command"] == "tests"
    assert results["started"] <= results["finished"]
    assert "scikit-learn" in results["provenance"]
    assert results["weights"] == "raw"
    assert [(task["task"], task["classes"], task["names"]) for task in results["tasks"]] == [
        (1, [0, 1], ["0", "1"]), (2, [2, 3], ["2", "3"]), (3, [4, 5], ["4", "5"])
    ]  # fmt: skip
    assert set(results["scores"]) == set(gd_run.config.evaluation.scores)
    known = np.tri(3, dtype=bool)
    for name, score in results["scores"].items():
        matrix = np.array(score["matrix"], float)
        np.testing.assert_array_equal(np.isfinite(matrix), known, err_msg=name)
        assert np.isfinite(np.array(score["union"], float)).all()
        assert isinstance(score["lower_is_better"], bool)
        assert score["description"]
        assert set(score["summary"]) == {"last_union", "average", "incremental", "forgetting_max", "bwt", "rise"}
        assert all(entry["formula"] for entry in score["summary"].values())
        assert score["summary"]["last_union"]["value"] == score["union"][-1]
        assert len(score["num_real"]["per_task"]) == 3
    assert results["scores"]["fd_classifier"]["num_generated"] == {"per_task": 20, "union": 60}
    assigned = np.array(results["assigned"], float)
    np.testing.assert_array_equal(np.isfinite(assigned), np.isfinite(known))  # samples may show classes yet to come
    assert ((assigned >= 0) & (assigned <= 60)).all()
    assert (assigned.sum(1) <= 60).all()  # the rest shows classes of no task of this run
    assert {"jdcl_jax", "jax", "flax", "optax"} <= set(results["versions"])
    assert results["hardware"]["backend"] == "cpu"
    assert results["config"]["train"]["steps"] == 8


def test_costs_are_the_papers_arithmetic(gd_run) -> None:
    cost = {(row["task"], row["phase"]): row for row in gd_run.results["cost"]}
    training = [(1, "train"), (2, "distil"), (3, "distil")]
    assert set(cost) == {*training, *((task, name) for task in (1, 2, 3) for name in ("measure", "evaluate"))}
    assert cost[1, "train"]["steps"] == cost[3, "distil"]["steps"] == 8
    assert cost[1, "train"]["images"] == 8 * 8
    assert cost[2, "distil"]["images"] == 8 * 16
    # plain training 3 passes a step; GD 2 teacher steps + 1 target + 2 halves forward and backward
    assert cost[2, "distil"]["model_flops"] / cost[1, "train"]["model_flops"] == pytest.approx(9 / 3)
    # 60 images x 3 DDIM steps against 8 steps x 3 passes x 8 images
    assert cost[1, "evaluate"]["model_flops"] / cost[1, "train"]["model_flops"] == pytest.approx(180 / 192)
    assert gd_run.results["totals"]["images"] == 64 + 128 + 128 + 3 * 60
    assert all(row["seconds"] >= row["compile_seconds"] >= 0 for row in cost.values())


def test_each_phase_is_traced_once_for_the_whole_run(gd_run) -> None:
    cost = {(row["task"], row["phase"]): row for row in gd_run.results["cost"]}
    assert cost[2, "distil"]["compile_seconds"] > 0
    assert cost[3, "distil"]["compile_seconds"] == 0
    assert cost[3, "evaluate"]["compile_seconds"] == 0
    assert gd_run.losses_traced == 2  # train, distil


def test_the_report_needs_no_other_file_and_no_network(gd_run) -> None:
    page = (gd_run.workdir / "report.html").read_text()
    links = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", page) + re.findall(r"url\(([^)]*)\)", page)
    assert all(link.startswith(("data:", "#")) for link in links), [link[:60] for link in links]
    assert page.count("data:image/png;base64,") >= 3
    assert "@import" not in page
    outside = [u for u in re.findall(r"https?://[^\s\"'<>]+", page) if not u.startswith("http://www.w3.org/")]
    assert outside == []
    assert "fd_classifier" in page


def test_checkpoints_are_the_last_two_and_every_task(gd_run) -> None:
    checkpoints = Checkpoints(gd_run.workdir / "checkpoints", read_only=True)
    assert checkpoints.tasks() == [1, 2, 3]
    assert sorted(checkpoints._latest.all_steps()) == [20, 24]


# -- the teacher


def test_the_teacher_is_the_model_of_the_task_before_and_stays_so(gd_run) -> None:
    after_1 = saved(gd_run.workdir, gd_run.config, "tasks", 1)
    after_2 = saved(gd_run.workdir, gd_run.config, "tasks", 2)
    in_3 = saved(gd_run.workdir, gd_run.config, "latest", 20)
    first, second = (state["networks"][DENOISER].params for state in (after_1, after_2))
    assert equal(after_1["memory"]["teacher"], first)
    assert equal(after_2["memory"]["teacher"], second)
    assert equal(in_3["memory"]["teacher"], second)
    assert not equal(in_3["networks"][DENOISER].params, second)
    assert not equal(first, second)


def test_consecutive_replay_batches_of_the_run_differ(gd_run) -> None:
    parts = assemble(gd_run.config)
    memory = saved(gd_run.workdir, gd_run.config, "tasks", 1)["memory"]
    (phase,) = parts.method.phases(1)
    key = named_key(0, "task", 1, phase.name)
    context = jax.device_put(Context(key, None, parts.method.context(memory, 1)))
    streams, ids = {"replay": phase.streams["replay"]}, {"replay": jnp.arange(8)}
    drawn = jax.jit(lambda step: draw_batch(streams, context.replace(step=step), ids, {})["replay"].image)
    first, second, again = (np.asarray(drawn(jnp.int32(step))) for step in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert min(np.abs(a - b).max() for a in first for b in second) > 1e-3


# -- whose workdir it is


def test_a_finished_run_returns_its_results_at_once(gd_run, monkeypatch) -> None:
    monkeypatch.setattr(experiment, "assemble", lambda config: pytest.fail("it started again"))
    before = {path: path.stat().st_mtime_ns for path in gd_run.workdir.rglob("*") if path.is_file()}
    start = time.perf_counter()
    assert run(gd_run.config, gd_run.workdir) == gd_run.results
    assert time.perf_counter() - start < 2
    assert {path: path.stat().st_mtime_ns for path in gd_run.workdir.rglob("*") if path.is_file()} == before


def test_another_config_is_refused_and_the_keys_are_named(gd_run, tiny_config) -> None:
    other = tiny_config("gd", "train.steps=8", "checkpoint.every=4", "train.ema=0.5", "seed=3")
    with pytest.raises(UserError) as error:
        run(other, gd_run.workdir)
    assert "seed: 0 -> 3" in str(error.value)
    assert "train.ema: 0.0 -> 0.5" in str(error.value)
    assert "train.steps:" not in str(error.value)
    assert "evaluation.cache_dir" not in str(error.value)


def test_another_method_is_refused(gd_run, tiny_config) -> None:
    with pytest.raises(UserError, match=r"method\.name: gd -> finetune"):
        run(tiny_config("finetune", "train.steps=8", "checkpoint.every=4"), gd_run.workdir)


def test_two_processes_in_one_workdir_are_refused(tiny_config, tmp_path) -> None:
    workdir = tmp_path / "run"
    workdir.mkdir()
    with (workdir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is running"):
            run(tiny_config("finetune"), workdir)
    assert [path.name for path in workdir.iterdir()] == [".lock"]


def test_a_run_that_an_earlier_version_began_is_refused_in_one_line(tiny_config, tmp_path, monkeypatch) -> None:
    """Its records do not say which metrics are not written yet."""
    small_runs.quick(monkeypatch.setattr)
    config, workdir = tiny_config("finetune"), tmp_path / "run"
    Workdir(workdir, config).write_config()
    checkpoints = Checkpoints(workdir / "checkpoints")
    position = {"task": 0, "phase": 0, "step": 2, "global_step": 2}
    checkpoints.save(2, RunArrays(assemble(config)).initial(), {"position": position, "history": {}})
    checkpoints.close()
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"was begun with an earlier version of jdcl_jax.* write another --workdir"):
        run(config, workdir)
    after = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert {path.name for path in after.keys() - before.keys()} <= {".lock"}
    assert all(after[path] == data for path, data in before.items())


def test_a_run_does_not_go_on_with_other_labels(tiny_config, tmp_path, monkeypatch) -> None:
    """Also before its first scores, which say what data they are of."""
    small_runs.quick(monkeypatch.setattr)
    images, labels = np.random.default_rng(0).integers(0, 256, (120, 8, 8), np.uint8), np.arange(120) % 6
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    config = tiny_config(
        "finetune", f"data.name=npz:{tmp_path / 'data.npz'}", "data.validation=0.0", "tasks.num_tasks=3"
    )
    with pytest.raises(Stopped):
        run(config, tmp_path / "run", asked_to_stop=lambda: True)
    np.savez(tmp_path / "data.npz", images=images, labels=labels[::-1])
    with pytest.raises(UserError, match=r"begun with other images, labels or label embeddings; bring them back"):
        run(config, tmp_path / "run")
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    assert run(config, tmp_path / "run")["status"] == "finished"


# -- every other method, each with other settings


@pytest.fixture(scope="module")
def bounds(tiny_config, tmp_path_factory):
    """Method -> (config, workdir, results) of fine-tuning and joint training."""
    found = {}
    for method in ("finetune", "joint"):
        workdir = tmp_path_factory.mktemp("bounds") / method
        config = tiny_config(method)
        found[method] = (config, workdir, run(config, workdir))
    return found


@pytest.mark.parametrize("method", ["finetune", "joint"])
@pytest.mark.long
def test_the_bounds_run_to_the_end_and_keep_nothing(method, bounds) -> None:
    config, workdir, results = bounds[method]
    assert (results["status"], results["method"]) == ("finished", method)
    trained = [(row["phase"], row["steps"]) for row in results["cost"] if row["steps"]]
    assert trained == [("train", 4)] * 3
    assert {row["compile_seconds"] for row in results["cost"] if row["task"] > 1} == {0}
    assert saved(workdir, config, "tasks", 3)["memory"] == {}


@pytest.mark.long
def test_joint_and_fine_tuning_part_after_the_first_task(bounds) -> None:
    """The first task is the same for both; from then on joint training sees other data."""
    ends = {}
    for method, (config, workdir, _) in bounds.items():
        ends[method] = [saved(workdir, config, "tasks", k)["networks"][DENOISER].params for k in (1, 2)]
    assert equal(ends["finetune"][0], ends["joint"][0])
    assert not equal(ends["finetune"][1], ends["joint"][1])


def run_tiny(tiny_config, tmp_path, *words: str):
    config = tiny_config(*words)
    results = run(config, tmp_path / "run")
    assert results["status"] == "finished"
    return config, results


@pytest.mark.long
def test_experience_replay_keeps_a_balanced_buffer_of_seen_classes(tiny_config, tmp_path) -> None:
    config, results = run_tiny(tiny_config, tmp_path, "er", "method.buffer_size=10")
    labels = assemble(config).setup.labels
    buffers = [saved(tmp_path / "run", config, "tasks", k)["memory"]["buffer"] for k in (1, 2, 3)]
    counts = [np.bincount(labels[buffer["rows"]]).tolist() for buffer in buffers]
    assert counts == [[5, 5], [3, 3, 2, 2], [2, 2, 2, 2, 1, 1]]
    after = ["measure", "evaluate"]
    assert [row["phase"] for row in results["cost"]] == ["train", *after, *["rehearse", *after] * 2]
    assert [set(errors) for errors in results["errors"]] == [
        {"validation"},
        *[{"validation", "buffer", "held_out"}] * 2,
    ]
    logged = [line for line in metrics(tmp_path / "run") if line["phase"] == "evaluate"]
    assert logged[2]["eps_mse_buffer"] == results["errors"][2]["buffer"]
    assert all("loss_buffer" in line for line in metrics(tmp_path / "run") if line["phase"] == "rehearse")


def test_a_conditional_guided_averaged_run_under_jit(tiny_config, tmp_path, monkeypatch) -> None:
    """Generative replay with everything that the other runs leave at its default."""
    small_runs.quick(monkeypatch.setattr)
    config, results = run_tiny(
        tiny_config, tmp_path, "gr", "model.class_conditional=True", "sampler.guidance=1.5", "train.ema=0.9",
        "evaluation.weights=ema", "parallel.mode=jit", "train.reset_optimizer=False", "train.optimizer=adamw",
        "train.weight_decay=0.01", "train.schedule=cosine", "train.warmup=2", "data.flip=True",
        "tasks.order=shuffled:7", "evaluation.scores=('fd_classifier','label_accuracy','bpd_fixed_small')",
        "evaluation.likelihood.images=2", "diffusion.timesteps=20",
    )  # fmt: skip
    assert results["weights"] == "ema"
    assert [task["classes"] for task in results["tasks"]] != [[0, 1], [2, 3], [4, 5]]
    assert set(results["scores"]) == {"fd_classifier", "label_accuracy", "bpd_fixed_small"}
    with np.load(tmp_path / "run" / "curves" / "task_02.npz") as curves:
        bits = curves["bits_fixed_small"].sum(axis=1) + curves["prior_bits"]
    found = np.array(results["scores"]["bpd_fixed_small"]["matrix"][1], float)
    np.testing.assert_allclose(found[:2], bits[:2], rtol=1e-5)
    assert np.isnan(bits[2])
    assert np.isnan(found[2])
    last = saved(tmp_path / "run", config, "tasks", 3)["networks"][DENOISER]
    assert int(last.updates) == 12
    assert not equal(last.ema, last.params)
    # reset_optimizer=False: Adam has counted the updates of all tasks
    counts = [int(leaf) for leaf in jax.tree.leaves(last.opt_state) if np.shape(leaf) == ()]
    assert counts
    assert set(counts) == {12}
    assert equal(saved(tmp_path / "run", config, "tasks", 3)["memory"]["teacher"], last.params)
    # guidance doubles the price of a sample
    cost = {(row["task"], row["phase"]): row["model_flops"] for row in results["cost"]}
    assert cost[1, "evaluate"] / cost[1, "train"] == pytest.approx(2 * 60 * 3 / (4 * 3 * 8))


def test_a_model_has_the_same_operations_on_every_backend(tiny_config, monkeypatch) -> None:
    attention = ("model.channels=(8, 8)", "model.attention_resolutions=(8,)", "model.head_channels=4")
    # On a CPU convolutions of so many channels are done with fewer products, on images of 16 pixels a side.
    convolutions = ("model.channels=(128, 128)",)
    for words, shape in ((attention, (8, 8, 1)), (convolutions, (16, 16, 1))):
        network = assemble(tiny_config("finetune", *words)).network
        counts = [counted(monkeypatch, backend, forward_flops, network, shape) for backend in ("cpu", "gpu")]
        assert counts[0] == counts[1] > 1e5


def test_a_classifier_of_its_own_has_the_same_operations_on_every_backend(monkeypatch) -> None:
    network = make_classifier("resnet18", 10)
    counts = [counted(monkeypatch, backend, solver_flops, network, (32, 32, 3)) for backend in ("cpu", "gpu")]
    assert counts[0] == counts[1] > 1e8


def counted(monkeypatch, backend: str, flops: Callable[..., float], *arguments: object) -> float:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    return getattr(flops, "__wrapped__", flops)(*arguments)  # not what a cache remembers


# -- NaN


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tiny_config, tmp_path, monkeypatch
) -> None:
    """Fine-tuning whose second task meets NaN from its third step on: training images there are spoiled."""
    config = tiny_config("finetune")
    original = experiment.Experiment._run_phase

    def spoiled(self, phase):
        if self.task == 1:
            state = self.state["networks"][DENOISER]
            (name,) = self._compiled
            call = self._compiled[name]

            def poisoned(state, *args):
                new, values = call(state, *args)
                after = int(new.step)
                return new, {**values, "loss": values["loss"] * (jnp.nan if after > 2 else 1.0)}

            self._compiled[name] = poisoned
            assert int(state.step) == 0
        return original(self, phase)

    monkeypatch.setattr(experiment.Experiment, "_run_phase", spoiled)
    with pytest.raises(UserError) as error:
        run(config, tmp_path / "run")
    assert "loss became nan in task 2, phase train, step 3;" in str(error.value)
    assert "\n" not in str(error.value)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    assert checkpoints.tasks() == [1]
    assert 6 in checkpoints._latest.all_steps()
    kept = saved(tmp_path / "run", config, "latest", 6)["networks"][DENOISER]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept.params))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "running"


def test_a_learning_rate_that_destroys_the_network_is_noticed(tiny_config, tmp_path) -> None:
    config = tiny_config("finetune", "train.learning_rate=1e30", "train.clip_norm=0.0")
    with pytest.raises(UserError, match=r"became (nan|inf) in task 1, phase train, step [12];"):
        run(config, tmp_path / "run")
    assert Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)._latest.all_steps() == []
    assert metrics(tmp_path / "run") == []


def test_training_sees_the_same_examples_and_noise_whether_or_not_something_is_observed_before_it(tiny_config) -> None:
    """Stored replay draws before it trains; only what is replayed may differ from fresh replay."""

    def keys(*words: str) -> dict[str, tuple]:
        phases = assemble(tiny_config("gd", *words)).method.phases(1)
        return {phase.name: experiment.key_name(phases, place) for place, phase in enumerate(phases)}

    fresh, stored = keys(), keys("method.replay=stored", "method.stored_per_class=4")
    assert set(fresh) == {"distil"}
    assert set(stored) == {"draw", "distil"}
    assert stored["distil"] == fresh["distil"] == ("phase", 0)
    assert stored["draw"] != stored["distil"]
