"""Whole runs of GPPDM on digits: what is protected stays, what is frozen keeps its bits, and what is said of it."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from interrupted import saved
from jdcl_jax.assembly import assemble
from jdcl_jax.data.batches import to_float
from jdcl_jax.errors import UserError
from jdcl_jax.experiment import run
from jdcl_jax.methods.gpm import kernel_of
from jdcl_jax.methods.gppdm import reads_context
from jdcl_jax.methods.method import DENOISER
from small_runs import lines

WORDS = (
    "gppdm", "classifier.kind=solver", "solver.steps=30", "solver.learning_rate=0.05", "train.ema=0.9",
    "evaluation.weights=ema", "evaluation.scores=('accuracy','kld')", "train.steps=30", "train.learning_rate=1e-2",
    "train.optimizer=adamw", "train.weight_decay=0.1", "train.clip_norm=0.0", "checkpoint.every=1000",
    "method.replay_steps=3", "method.replay_per_class=8", "method.replay_validation=2", "context.width=24",
    "context.label_width=12", "context.pooled=4", "context.resolutions=(8,)",
)  # fmt: skip
LEARNED, ALL = "method.prototype_rate=0.05", "method.threshold=1.0"
HIDDEN = "method.layers=*/cross/key;*/cross/value;conditioner/*;unet/conv_in"
GROUPS = [[0, 1], [2, 3], [4, 5]]

pytestmark = pytest.mark.usefixtures("small")


class Run:
    """A run of three tasks."""

    def __init__(self, config: Any, workdir: Path):
        self.config, self.workdir = config, workdir
        self.results = run(config, workdir, command="tests")
        self.method = assemble(config).method

    @functools.cache  # noqa: B019 (a run lives as long as the tests)
    def state(self, task: int) -> Any:
        """After a task, from 1."""
        return saved(self.workdir, self.config, task)

    def generator(self, task: int) -> Any:
        """The averaged weights after a task, from 1."""
        return self.state(task)["memory"]["generator"]

    def facts(self, task: int) -> dict:
        """What was said after a task, from 1."""
        (found,) = [row for row in self.results["phases"] if (row["task"], row["phase"]) == (task, "end")]
        return found


@pytest.fixture(scope="module")
def protected(tiny_config, tmp_path_factory, small) -> Run:
    """With inputs of one layer over sampled timesteps besides all that reads the context."""
    return Run(tiny_config(*WORDS, LEARNED, ALL, HIDDEN, "method.samples=32"), tmp_path_factory.mktemp("gppdm") / "run")


@pytest.fixture(scope="module")
def unprotected(tiny_config, tmp_path_factory, small) -> Run:
    return Run(tiny_config(*WORDS, "method.projection=False"), tmp_path_factory.mktemp("gppdm") / "run")


def answers(method, params, layers, task: int) -> dict[str, np.ndarray]:
    """What layers make of the context of a task's classes (from 0), in float64."""
    shown = type(method).context_inputs(method, params, task)
    return {k: np.asarray(kernel_of(params, k), np.float64).T @ shown[k].astype(np.float64) for k in layers}


LATER = [(1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize(("learned", "now"), LATER)
def test_keys_and_values_of_every_old_context_vector_stay_what_they_were(protected, learned, now) -> None:
    """With Adam and weight decay, in raw and in averaged weights; the tokens themselves stay as well."""
    method = protected.method
    layers = [layer for layer in method.layers if reads_context(layer)]
    assert layers == ["conditioner/label", "conditioner/prototype", "unet/cross/key", "unet/cross/value"]
    before = answers(method, protected.generator(learned), layers, learned - 1)
    raw = protected.state(now)["networks"][DENOISER].params
    for params in (protected.generator(now), raw):
        after = answers(method, params, layers, learned - 1)
        for layer in layers:
            assert np.abs(before[layer]).max() > 0.1
            np.testing.assert_allclose(after[layer], before[layer], atol=1e-6 * max(1, np.abs(before[layer]).max()))


@pytest.mark.parametrize(("learned", "now"), LATER)
def test_training_goes_on_meanwhile(protected, learned, now) -> None:
    """The kernels move, and with them the answers to new context vectors."""
    method = protected.method
    before, after = protected.generator(learned), protected.generator(now)
    for layer in ("unet/cross/key", "unet/cross/value", "conditioner/label"):
        assert np.abs(np.asarray(kernel_of(after, layer)) - kernel_of(before, layer)).max() > 1e-2
    new = type(method).context_inputs(method, after, now - 1)["unet/cross/value"]
    moved = (np.asarray(kernel_of(after, "unet/cross/value")) - kernel_of(before, "unet/cross/value")).T @ new
    assert np.abs(moved).max() > 1e-2


@pytest.mark.parametrize(("learned", "now"), LATER)
def test_without_projection_keys_and_values_of_old_context_vectors_change(protected, unprotected, learned, now) -> None:
    """The same context vectors, or what the network makes of the old classes now."""
    before, after = unprotected.generator(learned), unprotected.generator(now)
    shown = type(protected.method).context_inputs(protected.method, before, learned - 1)
    for layer in ("unet/cross/key", "unet/cross/value", "conditioner/label"):
        moved = (np.asarray(kernel_of(after, layer)) - kernel_of(before, layer)).T @ shown[layer]
        assert np.abs(moved).max() > 1e-2


def test_what_was_shown_of_images_at_sampled_timesteps_is_protected_too(protected) -> None:
    kept = protected.state(1)["memory"]["bases"]["unet/conv_in"]
    rank = int(kept["rank"])
    assert 32 <= rank <= 64  # of 128 inputs: as many as images, or their own and their prototypes' directions
    vectors = np.asarray(kept["vectors"], np.float64)[:, :rank]
    for task in (1, 2, 3):
        kernel = np.asarray(protected.generator(task)["unet"]["conv_in"]["kernel"], np.float64)
        np.testing.assert_allclose(vectors.T @ kernel, np.asarray(kept["kept"])[:rank], atol=2e-6)


def test_layers_are_protected_on_what_the_generator_that_is_kept_is_shown(protected) -> None:
    """Beside an image conv_in is shown a prototype: that of the averaged weights, which stays, not that of the raw."""
    tracked = protected.state(1)["networks"][DENOISER].tracked
    shown = np.asarray(tracked["columns"]["unet/conv_in"]).reshape(8, 8, 2, -1)[:, :, 1].reshape(64, -1).T
    shown = shown[shown.any(axis=1)]  # a label that was dropped has no prototype
    raw = protected.state(1)["networks"][DENOISER].params
    away = {}
    for name, params in (("kept", protected.generator(1)), ("raw", raw)):
        prototypes = np.asarray(params["conditioner"]["prototypes"])[GROUPS[0]].reshape(1, 2, 64)
        away[name] = np.abs(shown[:, None] - prototypes).max(axis=2).min(axis=1)
    assert len(shown) > 10
    assert away["kept"].max() < 1e-6
    assert away["raw"].min() > 1e-3


def test_prototypes_that_are_channels_only_need_no_list_of_layers(tiny_config) -> None:
    method = assemble(tiny_config(*WORDS, "context.prototypes=channels")).method
    assert method.layers == ["conditioner/label", "unet/cross/key", "unet/cross/value"]
    with pytest.raises(UserError, match="no layer matches 'conditioner/prototype'"):
        assemble(tiny_config(*WORDS, "context.prototypes=channels", "method.layers=conditioner/prototype"))


def test_warm_up_is_the_denoisers_and_may_be_longer_than_the_classifier_trains(tiny_config) -> None:
    assemble(tiny_config(*WORDS, "train.warmup=20", "solver.steps=10"))
    with pytest.raises(UserError, match=r"train\.warmup=30 is not below"):
        assemble(tiny_config(*WORDS, "train.warmup=30", "solver.steps=10"))


def test_a_prototype_moves_in_its_own_task_and_not_by_a_bit_in_any_other(protected) -> None:
    rows = [np.asarray(protected.generator(task)["conditioner"]["prototypes"]) for task in (1, 2, 3)]
    raw = [
        np.asarray(protected.state(task)["networks"][DENOISER].params["conditioner"]["prototypes"])
        for task in (1, 2, 3)
    ]
    for own, group in enumerate(GROUPS):
        begun = np.asarray(protected.state(own + 1)["memory"]["prototypes"])
        for c in group:
            assert np.abs(rows[own][c] - begun[c]).max() > 0.05
            for task in range(3):
                if task < own:
                    assert not rows[task][c].any()
                if task > own:
                    assert rows[task][c].tobytes() == raw[task][c].tobytes() == rows[own][c].tobytes()


def test_label_embeddings_of_old_classes_keep_their_bits(protected) -> None:
    rows = [np.asarray(protected.generator(task)["conditioner"]["labels"]) for task in (1, 2, 3)]
    assert rows[0][GROUPS[0]].tobytes() == rows[1][GROUPS[0]].tobytes() == rows[2][GROUPS[0]].tobytes()
    assert (rows[1][GROUPS[1]] != rows[0][GROUPS[1]]).all()


def test_a_prototype_begins_as_the_training_image_that_the_classifier_is_surest_of(protected) -> None:
    """The classifier after the task's own phase, among the classes seen by then."""
    parts = assemble(protected.config)
    for task, group in enumerate(GROUPS):
        memory, train = protected.state(task + 1)["memory"], parts.sequence.train.task(task)
        logits = np.array(parts.setup.solver.logits(memory["solver"], to_float(jnp.asarray(train.images))))
        seen = [c for old in GROUPS[: task + 1] for c in old]
        sure = np.asarray(jax.nn.log_softmax(logits[:, seen]))
        for c in group:
            rows = np.flatnonzero(train.labels == c)
            begun = np.asarray(memory["prototypes"][c])
            distance = np.abs(np.asarray(to_float(jnp.asarray(train.images[rows]))) - begun).max((1, 2, 3))
            assert distance.min() < 1e-6
            own = sure[rows, seen.index(c)]
            assert own[distance.argmin()] == pytest.approx(own.max(), abs=1e-6)


def test_ranks_energies_memory_and_cost_are_said_of_every_layer_and_task(protected) -> None:
    before = dict.fromkeys(protected.method.layers, 0)
    for task in (1, 2):
        found = protected.facts(task)
        assert found["threshold"] == 1.0
        assert [row["layer"] for row in found["projection"]] == protected.method.layers
        for row in found["projection"]:
            basis = protected.state(task)["memory"]["bases"][row["layer"]]
            inputs, outputs = basis["kept"].shape
            vectors = np.asarray(basis["vectors"], np.float64)
            assert before[row["layer"]] == row["rank_before"] <= row["rank"] == basis["rank"] <= row["width"] == inputs
            np.testing.assert_allclose(vectors.T @ vectors, np.diag(np.arange(inputs) < row["rank"]), atol=1e-6)
            assert row["energy"] == pytest.approx(1.0, abs=1e-6)
            assert row["energy_before"] < 1.0 or task > 1
            assert row["bytes"] == 4 * (inputs * inputs + inputs * outputs + 1)
            before[row["layer"]] = row["rank"]
    tokens = {row["layer"]: row["rank"] for row in protected.facts(1)["projection"]}
    assert tokens["unet/cross/key"] == 4  # of two classes with two tokens each
    assert tokens["conditioner/label"] == tokens["conditioner/prototype"] == 2
    assert not [row for row in protected.results["phases"] if row["task"] == 3 and row["phase"] == "end"]


@pytest.mark.end_to_end
@pytest.mark.long
def test_a_layer_that_can_learn_nothing_more_is_said(tiny_config, tmp_path) -> None:
    """With a width of 4 the tokens of the first task are all directions there are."""
    config = tiny_config(*WORDS, ALL, "context.width=4", "tasks.first=2", "train.steps=4", "solver.steps=4")
    results = run(config, tmp_path / "run")
    (found,) = [row for row in results["phases"] if row["phase"] == "end"]
    assert len(found["warnings"]) == 2
    assert "unet/cross/key: all 4 directions are protected" in found["warnings"][0]
    kernels = [saved(tmp_path / "run", config, task)["memory"]["generator"]["unet"]["cross"] for task in (1, 2)]
    for name in ("key", "value"):
        assert kernels[0][name]["kernel"].tobytes() == kernels[1][name]["kernel"].tobytes()


def test_a_part_of_the_replay_is_held_out_of_training_and_the_classifier_is_tried_on_it(protected) -> None:
    parts, rows = assemble(protected.config), protected.results["phases"]
    for task, old in ((2, [0, 1]), (3, [0, 1, 2, 3])):
        memory = protected.state(task)["memory"]
        context = parts.method.context(memory, task - 1)
        assert context["stored"]["count"] == 6 * len(old)
        held_out = slice(6 * len(old), 8 * len(old))
        images, labels = (memory["stored"][name][held_out] for name in ("images", "labels"))
        assert labels.tolist() == old * 2
        logits = np.array(parts.setup.solver.logits(memory["solver"], to_float(jnp.asarray(images))))
        seen = [c for group in GROUPS[:task] for c in group]
        right = np.mean(np.array(seen)[logits[:, seen].argmax(1)] == labels)
        (found,) = [r for r in rows if r["task"] == task and "replay_validation_accuracy" in r]
        assert found["replay_validation_accuracy"] == pytest.approx(right)


def test_prototypes_are_saved_as_images(protected) -> None:
    for task in (1, 2, 3):
        with Image.open(protected.workdir / "prototypes" / f"task_0{task}.png") as picture:
            assert picture.size[0] > 2 * 8
    sizes = {(protected.workdir / "prototypes" / f"task_0{task}.png").stat().st_size for task in (1, 2, 3)}
    assert len(sizes) == 3


@pytest.mark.end_to_end
@pytest.mark.long
def test_without_prototypes_the_denoiser_is_shown_zeros_in_their_place(tiny_config, tmp_path) -> None:
    config = tiny_config(*WORDS, "method.prototypes=False", "tasks.first=2", "train.steps=4", "solver.steps=4")
    results = run(config, tmp_path / "run")
    assert not saved(tmp_path / "run", config, 2)["memory"]["generator"]["conditioner"]["prototypes"].any()
    assert "prototype" not in {row["phase"] for row in results["cost"]}
    assert not (tmp_path / "run" / "prototypes").exists()


@pytest.mark.end_to_end
@pytest.mark.long
@pytest.mark.parametrize("start", ["mean", "noise"])
def test_other_beginnings(start, tiny_config, tmp_path) -> None:
    words = (f"method.prototype_start={start}", "method.prototype_update=none", "tasks.first=2", "train.steps=4")
    config = tiny_config(*WORDS, *words, "solver.steps=4")
    results = run(config, tmp_path / "run")
    prototypes = saved(tmp_path / "run", config, 2)["memory"]["generator"]["conditioner"]["prototypes"]
    train = assemble(config).sequence.train
    for c in (0, 1, 2, 3):
        mean = train.images[train.labels == c].mean(0) / 127.5 - 1
        close = np.abs(prototypes[c] - mean).max() < 1e-5
        assert close == (start == "mean")
        assert prototypes[c].any()
    assert ("prototype" in {row["phase"] for row in results["cost"]}) == (start == "mean")


def test_metrics_of_both_losses_are_logged(protected) -> None:
    logged = [line for line in lines(protected.workdir) if line["phase"] == "generator+replay"]
    assert logged
    assert all({"loss_current", "loss_replay", "gradient_norm"} <= set(line) for line in logged)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("method.threshold=0.0",), "method.threshold is 0.0; write a share above 0 and up to 1"),
        (("method.threshold=1.01",), "method.threshold is 1.01; write a share above 0 and up to 1"),
        (("method.growth=-0.1",), "method.growth is negative"),
        (("method.layers=*/corss/key",), "no layer matches '*/corss/key'"),
        (("method.prototype_start=best",), "confident, mean, noise"),
        (("method.prototype_update=twice",), "learned, one_step, none"),
        (("method.prototype_rate=0.0",), "method.prototype_update=none"),
        (("method.replay_validation=8",), "write less than method.replay_per_class=8"),
        (("method.projection=False", "method.growth=0.1"), "no effect with method.projection=False"),
        (("method.prototypes=False", "method.prototype_start=mean"), "no effect with method.prototypes=False"),
        (("context.prototypes=none",), "write model.conditioning=context and context.prototypes=both"),
        (("model.conditioning=time",), "write model.conditioning=context"),
        (("method.prototype_update=none", "method.prototype_rate=0.1"), "no effect with method.prototype_update=none"),
        (("method.samples=32",), "method.samples is of layers whose inputs depend on x_t"),
        (("context.embeddings=nowhere.npz",), "nowhere.npz can't be read"),
        (("context.resolutions=(4,)",), "context.resolutions has 4"),
    ],
)
def test_what_cannot_be_ends_in_one_line_before_training(words, message, tiny_config, tmp_path) -> None:
    with pytest.raises(UserError) as found:
        run(tiny_config(*WORDS, *words), tmp_path / "run")
    assert message in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


# -- embeddings from a file


@pytest.fixture
def vectors() -> dict[str, np.ndarray]:
    return {str(c): np.random.default_rng(c).normal(size=7).astype(np.float32) for c in range(10)}


@pytest.mark.end_to_end
@pytest.mark.long
def test_label_embeddings_may_come_from_a_file_and_are_no_parameters_then(tiny_config, vectors, tmp_path) -> None:
    np.savez(tmp_path / "words.npz", **vectors, unused=np.zeros(3))
    words = (f"context.embeddings={tmp_path / 'words.npz'}", "tasks.first=2")
    config = tiny_config(*WORDS, *words, "train.steps=4", "solver.steps=4")
    run(config, tmp_path / "run")
    state = saved(tmp_path / "run", config, 2)["memory"]["generator"]["conditioner"]
    assert set(state) == {"label", "prototype", "prototypes"}
    assert state["label"]["kernel"].shape == (7, 24)
    method = assemble(config).method
    shown = method.context_inputs(saved(tmp_path / "run", config, 2)["memory"]["generator"], 1)["conditioner/label"]
    np.testing.assert_array_equal(shown, np.stack([vectors["2"], vectors["3"]], axis=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("7"), "no vector for the class '7'"),
        (lambda v: v.update({"3": np.zeros(8)}), "the vector of '3'"),
        (lambda v: v.update({"3": np.full(7, np.nan)}), "not finite"),
        (lambda v: v.update({"3": np.array(["a"] * 7)}), "the vector of '3'"),
    ],
)
def test_a_file_that_does_not_fit_the_classes_is_refused(change, message, tiny_config, vectors, tmp_path) -> None:
    change(vectors)
    np.savez(tmp_path / "words.npz", **vectors)
    words = (f"context.embeddings={tmp_path / 'words.npz'}",)
    with pytest.raises(UserError) as found:
        run(tiny_config(*WORDS, *words), tmp_path / "run")
    assert message in str(found.value)
    assert "\n" not in str(found.value)
