"""Checks a whole config before anything is loaded or compiled."""

import math
from typing import Any

import ml_collections

from jdcl_jax.config import default_config, flatten
from jdcl_jax.diffusion.process import PREDICTIONS
from jdcl_jax.diffusion.sampler import SAMPLERS, STEP_VARIANCES
from jdcl_jax.diffusion.schedule import SCHEDULES
from jdcl_jax.errors import UserError
from jdcl_jax.evaluation.scores import SCORES, check_conditional, check_needs, select
from jdcl_jax.methods.registry import default_options
from jdcl_jax.models.joint import KINDS
from jdcl_jax.models.resnet import CLASSIFIERS
from jdcl_jax.training.optimizer import LEARNING_RATE_SCHEDULES, OPTIMIZERS
from jdcl_jax.training.parallel import MODES

DTYPES = ("float32", "bfloat16")
CONDITIONINGS = ("time", "context")
PROTOTYPE_USES = ("both", "channels", "token", "none")
CLASSIFIER_KINDS = (*KINDS, "solver")

_CHOICES = {
    "data.fit": ("resize", "pad"),
    "model.dtype": DTYPES,
    "classifier.kind": CLASSIFIER_KINDS,
    "diffusion.schedule": SCHEDULES,
    "diffusion.prediction": PREDICTIONS,
    "diffusion.variance": STEP_VARIANCES,
    "model.conditioning": CONDITIONINGS,
    "context.prototypes": PROTOTYPE_USES,
    "solver.network": CLASSIFIERS,
    "solver.schedule": LEARNING_RATE_SCHEDULES,
    "sampler.kind": SAMPLERS,
    "train.optimizer": OPTIMIZERS,
    "train.schedule": LEARNING_RATE_SCHEDULES,
    "parallel.mode": MODES,
    "evaluation.weights": ("raw", "ema"),
}

MOST = 2**31 - 1  # of anything counted; more does not fit into the 32 bits of JAX's whole numbers
LARGEST = 1e30  # of any other number; its square still is a number of float32's exponent
WIDEST, DEEPEST = 2**16, 64  # channels of a layer, layers of a level

# key -> (smallest, largest)
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "data.image_size": (0, 2048),
    "data.validation": (0.0, 0.5),
    "data.label_fraction": (0.0, 1.0),
    "data.device_memory_mib": (0, MOST),
    "views.crop_scale": (0.01, 1.0),
    "views.operations": (0, 10),
    "views.magnitude": (1, 10),
    "views.cutout": (0.0, 1.0),
    "classifier.hidden": (1, WIDEST),
    "classifier.dropout": (0.0, 0.99),
    "classifier.weight": (0.0, LARGEST),
    "sampler.classifier_guidance": (0.0, LARGEST),
    "evaluation.probe.images": (2, MOST),
    "context.width": (1, WIDEST),
    "context.label_width": (1, WIDEST),
    "context.pooled": (1, MOST),
    "solver.steps": (0, MOST),
    "solver.learning_rate": (1e-12, LARGEST),
    "solver.momentum": (0.0, 0.9999),
    "solver.weight_decay": (0.0, LARGEST),
    "tasks.num_tasks": (0, MOST),
    "tasks.first": (0, MOST),
    "model.layers_per_block": (1, DEEPEST),
    "model.head_channels": (0, WIDEST),
    "model.heads": (0, WIDEST),
    "model.groups": (1, WIDEST),
    "model.dropout": (0.0, 0.99),
    "model.label_dropout": (0.0, 1.0),
    "diffusion.timesteps": (2, 100_000),
    "diffusion.beta_start": (1e-6, 0.999),
    "diffusion.beta_end": (1e-6, 0.999),
    "sampler.eta": (0.0, 1.0),
    "sampler.guidance": (0.0, LARGEST),
    "sampler.steps": (1, MOST),
    "train.steps": (1, MOST),
    "train.epochs": (0, MOST),
    "train.batch_size": (1, MOST),
    "train.learning_rate": (1e-12, LARGEST),
    "train.warmup": (0, MOST),
    "train.weight_decay": (0.0, LARGEST),
    "train.clip_norm": (0.0, LARGEST),
    "train.ema": (0.0, 0.9999999),
    "train.steps_per_call": (1, MOST),
    "train.log_every": (1, MOST),
    "evaluation.num_samples": (2, MOST),
    "evaluation.batch_size": (1, MOST),
    "evaluation.likelihood.images": (0, MOST),
    "evaluation.likelihood.batch_size": (1, MOST),
    "evaluation.classifier.features": (1, WIDEST),
    "evaluation.classifier.steps": (1, MOST),
    "evaluation.classifier.batch_size": (1, MOST),
    "evaluation.classifier.shift": (0, 64),
    "evaluation.classifier.learning_rate": (1e-12, LARGEST),
    "checkpoint.every": (1, MOST),
    "checkpoint.grace": (0.0, 86400.0),
    "train.skip_bad_steps": (0, MOST),
}


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` naming the first key that cannot be."""
    for key, choices in _CHOICES.items():
        if (value := _get(config, key)) not in choices:
            raise UserError(f"{key} is '{value}'; write one of: {', '.join(choices)}")
    for key, (low, high) in _RANGES.items():
        value = _get(config, key)
        if not low <= value <= high:  # nor is NaN
            raise UserError(f"{key} is {value}; write {_span(low, high)}")
    _validate_method(config)
    _validate_diffusion(config)
    _validate_model(config)
    _validate_context(config)
    _validate_training(config)
    _validate_evaluation(config)


def _get(config: ml_collections.ConfigDict, key: str) -> Any:
    value = config
    for part in key.split("."):
        value = value[part]
    return value


def _span(low: float, high: float) -> str:
    if high in (MOST, LARGEST):
        return f"{low} or more, up to {high}"
    return f"a value from {low} to {high}"


def _validate_method(config: ml_collections.ConfigDict) -> None:
    known = flatten(default_options(config.method.name))
    for key, value in flatten(config.method).items():
        if key != "name" and key not in known:
            raise UserError(
                f"method.{key} is no option of '{config.method.name}'; it has: {', '.join(known) or 'none'}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"method.{key} is {value}; write a finite number")
        if isinstance(value, int | float) and not abs(value) <= (MOST if isinstance(value, int) else LARGEST):
            raise UserError(f"method.{key} is {value}; write a smaller number")


def _validate_diffusion(config: ml_collections.ConfigDict) -> None:
    if config.sampler.steps > config.diffusion.timesteps:
        raise UserError(
            f"sampler.steps is {config.sampler.steps}; write at most diffusion.timesteps={config.diffusion.timesteps}"
        )
    if config.sampler.guidance > 0 and not config.model.class_conditional:
        raise UserError(
            "sampler.guidance needs a conditional denoiser; write model.class_conditional=True or sampler.guidance=0"
        )
    if config.sampler.classifier_guidance > 0 and (config.model.class_conditional or config.classifier.kind != "joint"):
        raise UserError(
            "sampler.classifier_guidance guides an unconditional denoiser by its own classifier; write "
            "classifier.kind=joint and model.class_conditional=False, or sampler.classifier_guidance=0"
        )
    if config.sampler.guidance > 0 and config.model.label_dropout == 0:
        raise UserError("sampler.guidance needs a network that also knows no class; write model.label_dropout=0.1")
    if config.diffusion.variance != "fixed_small" and config.sampler.kind != "ddpm":
        raise UserError(
            f"diffusion.variance={config.diffusion.variance} is of ancestral steps and has no effect with "
            "sampler.kind=ddim; write sampler.kind=ddpm, or diffusion.variance=fixed_small"
        )
    if config.diffusion.variance == "learned" and config.diffusion.zero_snr and config.diffusion.prediction == "eps":
        raise UserError(
            "diffusion.variance=learned reads the x_0 predicted at every t, and eps-prediction has none at zero SNR; "
            "write diffusion.prediction=v or diffusion.zero_snr=False"
        )
    if config.diffusion.zero_snr and config.diffusion.prediction == "eps" and not config.sampler.clip:
        raise UserError(
            "sampler.clip=False with eps-prediction and zero-SNR divides by almost 0; write sampler.clip=True, "
            "diffusion.prediction=v or diffusion.zero_snr=False"
        )
    if config.sampler.eta > 0 and config.sampler.kind == "ddpm":
        raise UserError("sampler.eta has no effect with ddpm; write sampler.kind=ddim or sampler.eta=0")
    defaults = default_config().diffusion
    betas = (config.diffusion.beta_start, config.diffusion.beta_end)
    if config.diffusion.schedule == "cosine" and betas != (defaults.beta_start, defaults.beta_end):
        raise UserError("diffusion.beta_start and beta_end have no effect with the cosine schedule; leave them out")
    if config.diffusion.beta_start > config.diffusion.beta_end:
        raise UserError("diffusion.beta_start is larger than diffusion.beta_end; swap them")


def _validate_model(config: ml_collections.ConfigDict) -> None:
    model = config.model
    _check_widths(config, "model.channels")
    for width in model.channels:
        if width % model.groups:
            raise UserError(
                f"model.groups={model.groups} does not divide model.channels={model.channels}; write a common divisor"
            )
    if model.channels[0] % 2:
        raise UserError("model.channels[0] is odd; the timestep embedding needs an even number")
    if model.head_channels and model.heads:
        raise UserError("model.heads has no effect beside model.head_channels; write model.head_channels=0 as well")
    if config.data.image_size:
        check_image_size(config, config.data.image_size)


def _validate_context(config: ml_collections.ConfigDict) -> None:
    if config.model.conditioning == "time":
        return
    context = config.context
    if not config.model.class_conditional:
        raise UserError("model.conditioning=context is of a conditional denoiser; write model.class_conditional=True")
    if not context.resolutions:
        raise UserError(
            "context.resolutions is empty, and no block would attend to the context; write some, such as (4,)"
        )
    size, pooled = config.data.image_size, context.pooled
    if context.prototypes in ("token", "both") and size > pooled and size % pooled:
        raise UserError(f"context.pooled={pooled} does not divide data.image_size={size}; write a divisor")


def _check_widths(config: ml_collections.ConfigDict, key: str) -> None:
    widths = _get(config, key)
    if not widths or any(type(width) is not int or not 1 <= width <= WIDEST for width in widths):
        raise UserError(
            f"{key} is {widths}; write one positive whole number per level, at most {WIDEST}, such as (32, 64)"
        )


def _check_heads(config: ml_collections.ConfigDict, size: int) -> None:
    model, attending = config.model, _attending_widths(config, size)
    if model.head_channels:
        bad = [w for w in attending if w % model.head_channels]
        if bad:
            raise UserError(
                f"model.head_channels={model.head_channels} does not divide the {bad[0]} channels of an attention layer"
            )
    elif model.heads < 1 or any(w % model.heads for w in attending):
        raise UserError(
            f"model.heads is {model.heads} and model.head_channels 0; write a number of heads that divides the channels"
        )


def _attending_widths(config: ml_collections.ConfigDict, size: int) -> list[int]:
    model = config.model
    maps = {*model.attention_resolutions, *(config.context.resolutions if model.conditioning == "context" else ())}
    inner = [w for level, w in enumerate(model.channels) if size >> level in maps]
    return [*inner, model.channels[-1]]


def check_image_size(config: ml_collections.ConfigDict, size: int) -> None:
    """The levels must halve the image evenly, attention sit on a feature map, and heads divide its channels.

    Raises:
      UserError: they do not.
    """
    levels = len(config.model.channels)
    unit = 2 ** (levels - 1)
    if size % unit or size < unit:
        raise UserError(
            f"images of {size}x{size} can't be halved {levels - 1} times by the {levels} levels of model.channels; "
            f"write data.image_size={max(-(-size // unit) * unit, unit)} or fewer levels"
        )
    sizes = [size >> level for level in range(levels)]
    for wanted in config.model.attention_resolutions:
        if wanted not in sizes:
            raise UserError(
                f"model.attention_resolutions has {wanted}, but the feature maps are {sizes}; write some of these or ()"
            )
    for wanted in config.context.resolutions if config.model.conditioning == "context" else ():
        if wanted not in sizes:
            raise UserError(f"context.resolutions has {wanted}, but the feature maps are {sizes}; write some of these")
    _check_heads(config, size)


def _validate_training(config: ml_collections.ConfigDict) -> None:
    train = config.train
    if train.epochs == 0 and train.steps % train.steps_per_call:
        low = [d for d in range(1, math.isqrt(train.steps) + 1) if train.steps % d == 0]
        fitting = max(d for d in [*low, *(train.steps // d for d in low)] if d < train.steps_per_call)
        raise UserError(
            f"train.steps_per_call={train.steps_per_call} does not divide train.steps={train.steps}; "
            f"write train.steps_per_call={fitting}"
        )
    if train.epochs == 0 and train.warmup >= train.steps:
        raise UserError(f"train.warmup={train.warmup} is not below train.steps={train.steps}")
    if train.weight_decay > 0 and train.optimizer != "adamw":
        raise UserError(
            "train.weight_decay has no effect with adam; write train.optimizer=adamw or train.weight_decay=0"
        )


def _validate_evaluation(config: ml_collections.ConfigDict) -> None:
    evaluation = config.evaluation
    if evaluation.weights == "ema" and config.train.ema == 0:
        raise UserError("evaluation.weights=ema needs an average; write train.ema=0.999 or evaluation.weights=raw")
    _check_widths(config, "evaluation.classifier.channels")
    if not evaluation.scores:
        raise UserError(f"evaluation.scores is empty; write some of {', '.join(SCORES)}")
    scores = select(evaluation.scores)
    check_conditional(scores, config.model.class_conditional or config.sampler.classifier_guidance > 0)
    classifies = config.classifier.kind != "none"
    if config.data.label_fraction < 1 and not (classifies or config.model.class_conditional):
        raise UserError(
            "nothing here learns labels, so that their share is of no effect; write data.label_fraction=1, or "
            "classifier.kind=joint"
        )
    there = {
        "likelihood": evaluation.likelihood.images > 0,
        "classifier": classifies,
        "average": classifies and config.classifier.kind != "solver" and config.train.ema > 0,
        "validation": classifies and config.data.validation > 0,
    }
    check_needs(scores, there)
    if not evaluation.inception_weights:
        needing = [name for name, score in scores.items() if score.features == "inception"]
        if needing:
            raise UserError(
                f"evaluation.scores has {needing[0]}; write the weights file in evaluation.inception_weights"
            )
