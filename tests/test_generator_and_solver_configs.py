"""What the names of GPPDM, DDGR and GUIDE set, and what the presets of their released code are."""

import jax
import pytest

from jdcl_jax.assembly import make_network
from jdcl_jax.errors import UserError
from jdcl_jax.validation import validate

NAMES = ("gppdm", "ddgr", "guide")
FILES = ("digits", "fashion_mnist", "cifar10", "cifar100", "imagenet100", "core50")
CLASSES = tuple(str(c) for c in range(100))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", FILES)
def test_the_name_alone_makes_a_config_of_every_data_set(file, name, config_file) -> None:
    config = config_file(file).get_config(name)
    validate(config)
    assert config.classifier.kind == "solver"
    assert config.model.class_conditional
    assert config.model.conditioning == ("context" if name == "gppdm" else "time")
    usual, of_digits = {"gppdm": 3.0, "ddgr": 0.0, "guide": 1.0}, {"gppdm": 0.0, "ddgr": 0.0, "guide": 0.5}
    assert config.sampler.guidance == (of_digits if file == "digits" else usual)[name]


def test_guide_asks_for_the_class_itself_where_all_tasks_have_the_same_classes(config_file) -> None:
    assert config_file("core50").get_config("guide").method.target == "asked"
    assert config_file("cifar10").get_config("guide").method.target == "new"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["fashion_mnist", "cifar10"])
def test_reduced_runs_are_there_for_them_too(file, name, config_file) -> None:
    config = config_file(file).get_config(f"{name},small")
    validate(config)
    assert (config.solver.network, config.tasks.first) == ("cnn", 2)


def test_the_released_network_may_be_reduced_too(config_file) -> None:
    config = config_file("cifar10").get_config("gppdm,gppdm_released,small")
    validate(config)
    assert (config.data.image_size, config.context.resolutions) == (64, (16,))


def test_other_methods_are_not_changed_by_them(config_file) -> None:
    config = config_file("cifar10").get_config("gd")
    assert (config.classifier.kind, config.model.class_conditional, config.sampler.guidance) == ("joint", False, 0.0)


def test_what_a_name_sets_may_be_set_otherwise(config_file) -> None:
    assert config_file("cifar10").get_config("gppdm,sampler.guidance=1.5").sampler.guidance == 1.5


def test_the_released_network_of_gppdm_has_its_published_size(config_file) -> None:
    """144.2 M at 64x64: the UNet as diffusers counts it, and the linear layer that reads label embeddings."""
    config = config_file("cifar100").get_config("gppdm,gppdm_released,half")
    validate(config)
    network = make_network(config, 3, CLASSES)
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), (64, 64, 3)))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    assert sizes["unet"] == 143_607_171
    label = params["conditioner"]["label"]["kernel"].shape
    assert label == (768, 768)
    assert sizes["unet"] + label[0] * label[1] == 144_196_995
    assert set(params["conditioner"]) == {"labels", "label", "prototypes"}
    assert params["conditioner"]["prototypes"].shape == (100, 64, 64, 3)


@pytest.mark.parametrize("file", ["cifar10", "cifar100"])
def test_gppdms_released_protocol(file, config_file) -> None:
    config = config_file(file).get_config("gppdm,gppdm_released")
    validate(config)
    assert (config.model.label_dropout, config.sampler.guidance, config.sampler.steps) == (0.2, 3.0, 100)
    assert (config.train.steps, config.train.batch_size, config.train.learning_rate) == (15_000, 64, 1e-4)
    assert (config.train.optimizer, config.train.warmup, config.train.schedule, config.train.clip_norm) == (
        "adamw", 500, "cosine", 1.0,
    )  # fmt: skip
    method = config.method
    assert (method.replay_per_class, method.replay_validation, method.projection) == (20, 4, False)
    assert (method.prototype_start, method.prototype_update) == ("confident", "one_step")


@pytest.mark.parametrize("file", ["cifar10", "cifar100"])
def test_ddgrs_released_diffusion(file, config_file) -> None:
    config = config_file(file).get_config("ddgr,ddgr_released")
    validate(config)
    assert (config.diffusion.schedule, config.diffusion.timesteps, config.diffusion.variance) == (
        "cosine",
        4000,
        "learned",
    )
    assert (config.sampler.kind, config.sampler.steps, config.method.replay_steps) == ("ddpm", 250, 250)
    assert (config.method.scale, config.method.replay_per_class) == (1.0, 20)


@pytest.mark.parametrize("file", ["cifar10", "cifar100"])
def test_guides_released_guidance(file, config_file) -> None:
    config = config_file(file).get_config("guide,guide_released")
    validate(config)
    assert (config.method.scale, config.method.target, config.method.direction) == (0.5, "new", "toward")
    assert config.solver.network == "resnet18"


def test_a_method_of_another_name_keeps_its_own_beside_these_presets(config_file) -> None:
    config = config_file("cifar10").get_config("joint,ddgr_released")
    validate(config)
    assert (config.method.name, config.classifier.kind, config.diffusion.variance) == ("joint", "joint", "learned")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gppdm,model.class_conditional=False", "model.class_conditional=True"),
        ("gppdm,context.resolutions=()", "context.resolutions is empty"),
        ("gppdm,context.resolutions=(16,8,5)", "context.resolutions has 5"),
        ("gppdm,context.pooled=7", "context.pooled=7 does not divide data.image_size=32"),
        ("gppdm,context.prototypes=all", "both, channels, token, none"),
        ("ddgr,solver.network=vgg", "resnet18, resnet32, cnn"),
        ("ddgr,solver.learning_rate=0.0", "solver.learning_rate is 0.0"),
        ("ddgr,solver.momentum=1.0", "solver.momentum is 1.0"),
        ("ddgr,classifier.kind=apart", "none, joint, separate, solver"),
        ("ddgr,evaluation.scores=('accuracy_ema',)", "accuracy_ema"),
    ],
)
def test_keys_that_cannot_be_are_refused(words, message, config_file) -> None:
    with pytest.raises(UserError) as refused:
        validate(config_file("cifar10").get_config(words))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
