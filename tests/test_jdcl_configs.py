"""JDCL's protocol as the presets of configs/ have it: the published facts (arXiv 2411.08224 [code]) as numbers."""

from typing import Any

import pytest

from jdcl_jax.config import default_config, flatten
from jdcl_jax.errors import UserError
from jdcl_jax.validation import validate

FACTS: dict[str, Any] = {
    "method.name": "jdcl",
    "method.denoising_weight": 0.01,
    "method.class_weight": 1e-5,
    "method.distillation_weight": 2.0,
    "method.class_distillation_weight": 0.002,
    "method.class_delay": 10_000,
    "method.replay_steps": 250,
    "method.local": True,
    "method.distillation": True,
    "method.unlabelled": "fixmatch",
    "method.threshold": 0.95,
    "method.local_start": "global",
    "method.teacher": "ema",
    "tasks.order": "natural",
    "tasks.groups": "",
    "tasks.first": 0,
    "data.flip": True,
    "views.crop_scale": 0.85,
    "views.operations": 2,
    "views.magnitude": 10,
    "views.cutout": 0.5,
    "model.layers_per_block": 3,
    "model.scale_shift": True,
    "model.dropout": 0.1,
    "model.class_conditional": False,
    "classifier.kind": "joint",
    "classifier.dropout": 0.1,
    "classifier.weight": 0.001,
    "diffusion.schedule": "linear",
    "diffusion.timesteps": 1000,
    "diffusion.beta_start": 1e-3,
    "diffusion.beta_end": 0.02,
    "diffusion.zero_snr": False,
    "diffusion.prediction": "eps",
    "sampler.kind": "ddim",
    "sampler.steps": 250,
    "sampler.eta": 0.0,
    "train.epochs": 0,
    "train.batch_size": 256,
    "train.optimizer": "adamw",
    "train.learning_rate": 2e-4,
    "train.weight_decay": 0.01,
    "train.schedule": "constant",
    "train.warmup": 0,
    "train.clip_norm": 0.0,
    "train.ema": 0.9999,
    "train.reset_optimizer": True,
    "evaluation.weights": "ema",
    "evaluation.scores": tuple(default_config().evaluation.scores),
}
CIFAR = {
    "model.channels": (128, 256, 256, 256),
    "model.attention_resolutions": (16, 8),
    "model.heads": 4,
    "model.head_channels": 0,
    "classifier.hidden": 1024,
    "method.first_steps": 0,
    "tasks.num_tasks": 5,
}
OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "cifar10": {**CIFAR, "train.steps": 50_000, "method.global_steps": 30_000, "method.quota": 1000},
    "cifar100": {**CIFAR, "train.steps": 100_000, "method.global_steps": 70_000, "method.quota": 400},
    "imagenet100": {
        "data.image_size": 64,
        "model.channels": (192, 384, 384, 384),
        "model.attention_resolutions": (8,),
        "model.heads": 0,
        "model.head_channels": 64,
        "classifier.hidden": 2048,
        "train.steps": 90_000,
        "method.first_steps": 120_000,
        "method.global_steps": 90_000,
        "method.quota": 1040,
        "tasks.num_tasks": 5,
    },
}
FILES = list(OF_ITS_OWN)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "before", ["", "train.steps=3,method.quota=2,", "model.dropout=0.0,classifier.weight=1.0,train.ema=0.0,"]
)
def test_paper_is_the_published_protocol_whatever_the_file_has_else(config_file, file, before) -> None:
    """Pairs are applied after presets, so only the preset's own values can be here."""
    module = config_file(file)
    config = default_config()
    for word in before.rstrip(",").split(",") if before else []:
        key, value = word.split("=")
        section, name = key.split(".")
        with config.unlocked():
            config[section][name] = type(config[section][name])(float(value))
    config.data.image_size = 64 if file == "imagenet100" else 0
    module.paper(config)
    facts = {**FACTS, **OF_ITS_OWN[file]}
    flat = flatten(config)
    assert {key: flat[key] for key in facts} == facts


@pytest.mark.parametrize("file", FILES)
def test_the_default_of_a_file_is_its_protocol_but_for_images_held_out(config_file, file) -> None:
    config = flatten(config_file(file).get_config(""))
    facts = {**FACTS, **OF_ITS_OWN[file]}
    free = ("sampler.steps", "data.validation")
    assert {key: config[key] for key in facts if key not in free} == {k: v for k, v in facts.items() if k not in free}


@pytest.mark.parametrize("file", FILES)
def test_released_begins_local_models_from_scratch_and_lets_raw_weights_teach(config_file, file) -> None:
    module = config_file(file)
    paper, released = (flatten(module.get_config(name)) for name in ("paper", "released"))
    assert {key: released[key] for key in paper if paper[key] != released[key]} == {
        "method.local_start": "scratch",
        "method.teacher": "last",
    }


@pytest.mark.parametrize("preset", ["generation", "gd_paper", "rank1_paper"])
def test_paper_after_another_protocol_scores_accuracy_again(config_file, preset) -> None:
    config = config_file("cifar10").get_config(f"{preset},paper")
    validate(config)
    assert config.classifier.kind == "joint"
    assert tuple(config.evaluation.scores) == tuple(default_config().evaluation.scores)


@pytest.mark.parametrize("words", ["ten,paper", "paper,ten", "ten,released"])
def test_the_division_into_tasks_stays_where_a_preset_chose_it(config_file, words) -> None:
    assert config_file("cifar100").get_config(words).tasks.num_tasks == 10


def test_a_share_of_the_labels_that_nothing_learns_is_refused(config_file) -> None:
    digits = config_file("digits")
    with pytest.raises(UserError, match=r"data\.label_fraction=1"):
        validate(digits.get_config("gd,generation,data.label_fraction=0.5"))
    validate(digits.get_config("gd,generation,data.label_fraction=0.5,model.class_conditional=True"))
