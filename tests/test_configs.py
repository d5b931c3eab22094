"""The presets of configs/: the published facts as numbers, how they combine, and what a reduced run is."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jdcl_jax.assembly import assemble, make_network
from jdcl_jax.config import flatten, set_key
from jdcl_jax.data.groups import domain_groups, task_groups
from jdcl_jax.errors import UserError
from jdcl_jax.reporting.comparable import protocol_differences
from jdcl_jax.reporting.published import find
from jdcl_jax.validation import validate

ROOT = Path(__file__).parents[1]
FILES = ("fashion_mnist", "cifar10")
COLOURS = {"fashion_mnist": 1, "cifar10": 3}
ORDERS = {
    "gd-42": ((2, 6), (1, 8), (4, 5), (0, 9), (3, 7)),
    "gd-69": ((0, 2), (3, 5), (4, 1), (6, 9), (8, 7)),
    "gd-1714": ((7, 3), (8, 0), (1, 4), (6, 2), (9, 5)),
}

GD_FACTS: dict[str, Any] = {
    "data.image_size": 32,
    "data.validation": 0.0,
    "tasks.num_tasks": 5,
    "tasks.groups": "",
    "tasks.order": "gd-42",
    "tasks.first": 0,
    "model.class_conditional": False,
    "model.groups": 32,
    "model.head_channels": 8,
    "model.dropout": 0.0,
    "diffusion.schedule": "linear",
    "diffusion.beta_start": 1e-4,
    "diffusion.beta_end": 0.02,
    "diffusion.timesteps": 1000,
    "diffusion.zero_snr": True,
    "diffusion.prediction": "eps",
    "sampler.kind": "ddim",
    "sampler.eta": 0.0,
    "sampler.clip": True,
    "train.epochs": 0,
    "train.optimizer": "adam",
    "train.learning_rate": 2e-4,
    "train.schedule": "constant",
    "train.warmup": 0,
    "train.reset_optimizer": True,
    "train.clip_norm": 1.0,
    "train.ema": 0.0,
    "evaluation.num_samples": 10_000,
    "evaluation.scores": ("fid", "kld_epsilon", "ard"),
    "evaluation.weights": "raw",
}
OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "fashion_mnist": {
        "data.name": "fashion_mnist",
        "data.fit": "resize",
        "data.flip": False,
        "model.channels": (64, 128, 256, 512),
        "model.layers_per_block": 1,
        "model.attention_resolutions": (4,),
        "sampler.steps": 10,
        "train.steps": 9400,
        "train.batch_size": 128,
    },
    "cifar10": {
        "data.name": "cifar10",
        "data.flip": True,
        "model.channels": (128, 256, 256, 256),
        "model.layers_per_block": 2,
        "model.attention_resolutions": (16,),
        "sampler.steps": 20,
        "train.steps": 31_400,
        "train.batch_size": 64,
    },
}
RANK1_FACTS: dict[str, Any] = {
    "tasks.num_tasks": 5,
    "tasks.groups": "",
    "tasks.order": "natural",
    "tasks.first": 0,
    "model.class_conditional": True,
    "diffusion.timesteps": 1000,
    "diffusion.prediction": "eps",
    "sampler.kind": "ddim",
    "sampler.steps": 50,
    "sampler.eta": 0.0,
    "train.epochs": 200,
    "train.optimizer": "adam",
    "train.learning_rate": 2e-4,
    "train.batch_size": 128,
}

Made = Callable[[str, str], Any]


@pytest.fixture(scope="session")
def made(config_file: Callable[[str], Any]) -> Made:
    """`made("cifar10", "gd,small")` is that file's config."""
    modules = {name: config_file(name) for name in (*FILES, "cifar100", "core50")}
    return lambda file, arg: modules[file].get_config(arg)


def among(config: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """The config's values of these keys."""
    flat = flatten(config)
    return {key: flat[key] for key in facts}


def parameters(config: Any, file: str) -> int:
    size, colours = config.data.image_size, COLOURS[file]
    network = make_network(config, colours, tuple(map(str, range(10))))
    tree = jax.eval_shape(lambda: network.init(jax.random.key(0), (size, size, colours)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("before", ["", "small,", "rank1_paper,", "small,rank1_paper,"])
def test_gd_paper_is_its_papers_protocol_whatever_came_before(made: Made, file: str, before: str) -> None:
    config = made(file, f"gd,{before}gd_paper")
    facts = GD_FACTS | OF_ITS_OWN[file]
    assert among(config, facts) == facts
    wanted = {"teacher_steps": 2, "replay_weight": 0.75, "weighting": "by_task", "replay": "fresh"}
    assert {key: config.method[key] for key in wanted} == wanted


@pytest.mark.parametrize(("file", "count"), [("fashion_mnist", 42_855_873), ("cifar10", 35_746_307)])
def test_gd_paper_has_the_papers_networks(made: Made, file: str, count: int) -> None:
    assert parameters(made(file, "gd,small,gd_paper"), file) == count


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("method", "weight"), [("gd", 0.75), ("gr", 1.0), ("gaussian", 8.0), ("lwf", 1.25)])
def test_gd_paper_weighs_replay_as_its_paper_does(made: Made, file: str, method: str, weight: float) -> None:
    assert made(file, f"{method},rank1_paper,gd_paper").method.replay_weight == weight


@pytest.mark.parametrize("order", ORDERS)
def test_gd_paper_takes_each_of_the_three_class_orders(made: Made, order: str) -> None:
    assert made("cifar10", "gd,gd_paper").tasks.order == "gd-42"
    config = made("cifar10", f"gd,gd_paper,tasks.order={order}")
    assert task_groups(10, num_tasks=config.tasks.num_tasks, order=config.tasks.order) == ORDERS[order]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("words", ["gd,gd_paper", "rank1_ewc+gd,rank1_paper"])
def test_a_paper_s_preset_without_inception_weights_says_what_to_write(made: Made, file: str, words: str) -> None:
    config = made(file, words)
    with pytest.raises(UserError, match=r"evaluation\.inception_weights"):
        validate(config)
    set_key(config, "evaluation.inception_weights", "inception.safetensors")
    validate(config)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("before", ["", "gd_paper,", "small,"])
def test_rank1_paper_is_its_papers_protocol(made: Made, file: str, before: str) -> None:
    config = made(file, f"rank1_ewc+gd,{before}rank1_paper")
    assert among(config, RANK1_FACTS) == RANK1_FACTS
    wanted = {
        "replay": "stored",
        "stored_per_class": 5000,
        "teacher_steps": 50,
        "weighting": "sum",
        "replay_weight": 1.0,
    }
    assert {key: config.method[key] for key in wanted} == wanted
    penalty = {"strength": 15_000.0, "form": "mean", "rank": 1}
    assert {key: config.method.rank1_ewc[key] for key in penalty} == penalty


@pytest.mark.parametrize("file", FILES)
def test_rank1_paper_leaves_what_is_not_stated(made: Made, file: str) -> None:
    plain, preset = flatten(made(file, "rank1_ewc+gd,generation")), flatten(made(file, "rank1_ewc+gd,rank1_paper"))
    changed = {key for key in plain if plain[key] != preset[key]}
    replay = ("replay", "stored_per_class", "teacher_steps", "weighting", "replay_weight")
    told = {*RANK1_FACTS, *(f"method.{key}" for key in replay), "evaluation.scores"}
    assert changed <= {*told, "method.rank1_ewc.strength"}
    for section in ("model.channels", "diffusion.schedule", "diffusion.zero_snr", "data.flip"):
        assert plain[section] == preset[section]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("method", ["rank1_ewc+gd", "ewc+gd", "gd", "joint", "finetune"])
def test_a_run_with_rank1_paper_may_stand_beside_the_published_value(
    made: Made, as_results: Callable[..., dict[str, Any]], file: str, method: str
) -> None:
    (published,) = find(file, method, "average", "fid")
    assert protocol_differences(published, as_results(made(file, f"{method},rank1_paper"))) == []
    reduced = protocol_differences(published, as_results(made(file, f"{method},rank1_paper,small")))
    assert reduced[:2] == ["other score: fd_classifier instead of fid", "reduced: 2 of 5 tasks"]
    other = protocol_differences(published, as_results(made(file, f"{method},gd_paper")), "fid")
    assert other[:2] == [
        "classes in the order 2, 6, 1, 8, 4, 5, ... instead of label order",
        "unconditional instead of class-conditional",
    ]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("before", ["", "gd_paper,", "rank1_paper,", "gd_paper,rank1_paper,"])
@pytest.mark.parametrize("method", ["gd", "rank1_ewc+gd", "finetune"])
def test_small_is_reduced_and_needs_no_inception(made: Made, file: str, before: str, method: str) -> None:
    config = made(file, f"{method},{before}small")
    validate(config)
    assert (config.tasks.first, config.train.epochs, config.evaluation.num_samples) == (2, 0, 500)
    assert config.train.steps <= 1000
    assert config.train.batch_size == 16
    assert parameters(config, file) < 1_000_000
    assert config.method.get("replay") != "stored" or config.method.stored_per_class <= 250
    assert config.tasks.order == ("gd-42" if before == "gd_paper," else "natural")
    assert config.model.class_conditional == ("rank1_paper" in before)


def test_small_is_the_run_whose_results_are_kept(made: Made) -> None:
    kept = json.loads((ROOT / "results" / "fashion-mnist-small" / "gd-0.json").read_text())["config"]
    facts = {key: tuple(v) if isinstance(v, list) else v for key, v in flatten(kept).items() if key != "data.dir"}
    assert among(made("fashion_mnist", "gd,generation,small"), facts) == facts


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("method", ["joint", "er", "agem", "gr", "trajectory", "lwf", "gaussian", "ewc", "l2+si"])
@pytest.mark.parametrize("presets", ["gd_paper", "rank1_paper", "small", "gd_paper,rank1_paper,small"])
def test_every_method_takes_every_preset(made: Made, file: str, method: str, presets: str) -> None:
    validate(made(file, f"{method},{presets},evaluation.inception_weights=inception.safetensors"))


@pytest.mark.parametrize(
    "method",
    [pytest.param("jdcl", marks=pytest.mark.long), "gd", "gppdm", pytest.param("guide", marks=pytest.mark.long)],
)
def test_eight_devices_can_share_the_default_batches(made: Made, tmp_path: Path, method: str) -> None:
    labels = np.arange(100) % 10
    np.savez(tmp_path / "few.npz", images=np.zeros((100, 32, 32, 3), np.uint8), labels=labels)
    words = (
        f"{method},evaluation.scores=('accuracy',)," if method != "gd" else "gd,generation,evaluation.scores=('kld',),"
    )
    phases = assemble(made("cifar10", f"{words}data.name=npz:{tmp_path}/few.npz")).method.phases(1)
    streams = [(phase.name, name, stream) for phase in phases for name, stream in phase.streams.items()]
    assert streams
    assert [(phase, name) for phase, name, stream in streams if stream.batch_size % (8 * stream.multiple)] == []


def test_keys_win_over_presets(made: Made) -> None:
    config = made("cifar10", "gd,train.steps=50,gd_paper,small,seed=3,method.teacher_steps=4")
    assert (config.train.steps, config.seed, config.method.teacher_steps) == (50, 3, 4)


# -- CIFAR-100 in GPPDM's streams, and CORe50


@pytest.mark.parametrize(("preset", "sizes"), [("half", [50] + [10] * 5), ("half_ten", [50] + [5] * 10)])
def test_half_of_cifar100_comes_first_and_then_five_tasks_of_ten_or_ten_of_five(
    made: Made, preset: str, sizes: list[int]
) -> None:
    config = made("cifar100", f"gd,{preset}")
    validate(config)
    tasks = config.tasks
    groups = task_groups(100, num_tasks=tasks.num_tasks, groups=tasks.groups, order=tasks.order)
    assert [len(group) for group in groups] == sizes
    assert [c for group in groups for c in group] == list(range(100))
    changed = {k for k, v in flatten(config).items() if flatten(made("cifar100", "gd"))[k] != v}
    assert changed == {"tasks.num_tasks", "tasks.groups"}


def test_core50_is_eight_training_sessions_one_a_task(made: Made) -> None:
    config = made("core50", "")
    validate(config)
    tasks, sessions = config.tasks, [1, 2, 4, 5, 6, 8, 9, 11]
    assert (config.data.name, tasks.domain, config.method.name) == ("core50", "session", "gd")
    groups = domain_groups(sessions, num_tasks=tasks.num_tasks, groups=tasks.groups, order=tasks.order)
    assert groups == tuple((session,) for session in sessions)


def test_core50_has_the_network_of_cifar100_and_fits_64_pixels_too(made: Made) -> None:
    own, cifar = flatten(made("core50", "gd")), flatten(made("cifar100", "gd"))
    changed = {key for key in own if own[key] != cifar[key]}
    assert changed == {"data.name", "tasks.domain", "tasks.num_tasks", "tasks.groups", "train.steps"}
    validate(made("core50", "er,data.image_size=64"))
