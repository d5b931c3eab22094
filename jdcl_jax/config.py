"""Configs: every key with its default, and how `config.py:method,preset,key=value` is read.

A config file sets what differs from `default_config()` and returns `with_arguments(config, arg, presets)`.
"""

import ast
import difflib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from jdcl_jax.errors import UserError
from jdcl_jax.methods.registry import (
    canonical_name,
    default_options,
    is_method_name,
    known_methods,
    known_penalties,
    method_settings,
)

Preset = Callable[[ml_collections.ConfigDict], None]

ACCURACIES = ("accuracy", "accuracy_by_class", "accuracy_masked", "accuracy_masked_by_class", "accuracy_raw")
GENERATION_SCORES = ("fd_classifier", "kd_classifier", "precision_classifier", "recall_classifier", "kld", "ard")


def default_config() -> ml_collections.ConfigDict:
    """All keys; defaults are JDCL's on CIFAR-10 (arXiv 2411.08224 [code]) or marked [ours]."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.method = ml_collections.ConfigDict({"name": "jdcl", **default_options("jdcl")})
    config.data = _section(
        name="cifar10",  # digits, a TFDS name, npz:PATH or folder:PATH
        dir="",  # where TFDS data was prepared; empty: TFDS's own default
        image_size=32,  # side of the square the network sees; 0: the data's own
        fit="resize",  # resize or pad
        flip=True,
        validation=0.05,  # share held out of train, per class [ours]
        label_fraction=1.0,  # share of each class's training labels that is known
        device_memory_mib=4096,  # a larger training set stays in host memory and is fed to the device [ours]
    )
    config.tasks = _section(
        num_tasks=5,
        domain="",  # what is divided in place of classes, such as sessions: a TFDS feature, or "domains" of npz files
        groups="",  # instead of num_tasks: sizes "50+10x5" or classes "2,6|1,8|..."
        order="natural",  # natural, shuffled, shuffled:SEED, gd-42, gd-69, gd-1714, or "3,1,2,..."
        first=0,  # only the first n tasks of the sequence; 0: all
    )
    _networks(config)
    config.diffusion = _section(
        schedule="linear",
        timesteps=1000,
        beta_start=1e-3,
        beta_end=0.02,
        zero_snr=False,
        prediction="eps",
        variance="fixed_small",  # of ancestral steps; fixed_large, or learned (arXiv 2102.09672)
    )
    config.sampler = _section(
        kind="ddim",
        steps=250,
        eta=0.0,
        clip=True,
        guidance=0.0,
        classifier_guidance=0.0,  # scale of guidance by the classifier of an unconditional denoiser; 0 is off
    )
    config.train = _section(
        steps=50_000,  # a task; of JDCL, its local stage
        epochs=0,  # instead of steps: passes over each task's data; 1 is an online, single-pass stream
        batch_size=256,
        optimizer="adamw",
        learning_rate=2e-4,
        schedule="constant",  # constant or cosine
        warmup=0,
        weight_decay=0.01,  # adamw only
        clip_norm=0.0,  # 0 does not clip
        ema=0.9999,  # decay, with warm-up; 0 is off
        reset_optimizer=True,  # at each task
        steps_per_call=10,  # in one compiled call; must divide steps
        log_every=100,
        skip_bad_steps=0,  # of a run: with a loss or gradient that is not finite, they change nothing; 0: the run ends
    )
    config.parallel = _section(mode="pmap")
    config.evaluation = _evaluation()
    config.checkpoint = _section(
        every=1000,  # steps; each task's end is kept besides
        grace=8.0,  # seconds that a run has to save and end when it gets SIGTERM [ours]
    )
    return config.lock()


def _networks(config: ml_collections.ConfigDict) -> None:
    config.views = _section(
        crop_scale=0.85,  # smallest share of the area that the random resized crop of the weak view keeps; 1: none
        operations=2,  # of the strong view's RandAugment, for the classifier
        magnitude=10,  # of them, 1 to 10
        cutout=0.5,  # side of the strong view's cut-out square as a share of the image's side
    )
    config.model = _section(
        channels=(128, 256, 256, 256),
        layers_per_block=3,
        attention_resolutions=(16, 8),
        head_channels=0,
        heads=4,  # with head_channels=0: that many heads in every attention
        groups=32,
        scale_shift=True,
        dropout=0.1,
        class_conditional=False,
        conditioning="time",  # classes are added to the time embedding, or are the "context" of cross-attention
        label_dropout=0.1,  # of a conditional network, for classifier-free guidance [ours]
        dtype="float32",  # float32 or bfloat16; parameters and statistics stay float32
    )
    config.context = _section(  # of a denoiser with model.conditioning=context (GPPDM, arXiv 2312.06710)
        width=768,  # of a token [code]
        resolutions=(4,),  # feature maps whose blocks attend to the tokens, besides the middle block's [code]
        embeddings="",  # npz file of a vector for each class name; empty: learned
        label_width=768,  # of the learned ones
        prototypes="both",  # class prototypes as input "channels" [code], as a "token" too ("both"), or "none"
        pooled=8,  # side to which a prototype is averaged before it becomes a token [ours]
    )
    config.classifier = _section(
        kind="joint",  # on the denoiser's pooled features, "separate" with an encoder of its own, "solver", or "none"
        hidden=1024,
        dropout=0.1,
        weight=0.001,  # alpha, of the cross-entropy beside the denoising loss
    )
    config.solver = _section(  # a network of its own, with classifier.kind=solver, trained in phases of its own [ours]
        network="resnet18",  # or resnet32, cnn
        steps=0,  # a task; 0: as many as train.steps
        learning_rate=0.05,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cosine",  # constant or cosine
        warm_start=True,  # each task goes on from the weights that the task before left; False: from new ones
    )


def _evaluation() -> ml_collections.ConfigDict:
    evaluation = _section(
        scores=(*ACCURACIES, *GENERATION_SCORES),
        num_samples=10_000,
        batch_size=500,
        weights="ema",  # raw or ema
        inception_weights="",  # a weights file, for fid, kid, precision_inception, recall_inception
        cache_dir="",  # of the classifier behind the scores; empty: ~/.cache/jdcl_jax
    )
    evaluation.probe = _section(images=5000)  # training images of the tasks seen that the probes are fitted to, at most
    evaluation.likelihood = _section(
        images=0,  # test images of each task for bits/dim and errors at every timestep; 0 is off
        batch_size=1000,  # pairs of image and timestep at a time
        clip=True,  # the predicted x_0 to [-1, 1], which changes bits/dim
    )
    evaluation.classifier = _section(
        channels=(32, 64, 128), features=128, steps=4000, batch_size=128, learning_rate=1e-3, shift=2
    )
    return evaluation


def _section(**entries: Any) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(entries)


def set_method(config: ml_collections.ConfigDict, name: str) -> None:
    """Chooses a method, or penalties and a method joined by "+", and takes its default options."""
    with config.unlocked():
        config.method = ml_collections.ConfigDict({"name": canonical_name(name), **default_options(name)})


def with_arguments(
    config: ml_collections.ConfigDict,
    arg: str | None,
    presets: Mapping[str, Preset] | None = None,
    options: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
    """Applies what stands behind the colon of `--config=file.py:arg`.

    Args:
      config: the file's config, changed in place.
      arg: comma-separated: at most one method, any of the file's presets, and `key=value` pairs with dotted keys:
        "gr,small,seed=1,train.steps=500". Pairs are applied last. A comma inside brackets does not separate.
      presets: the file's named variations.
      options: what the file has for options of methods other than their defaults; each method takes those that it has.
        Below a method's name stand keys of the whole config for that method: {"gppdm": {"sampler.guidance": 0.0}}.

    Raises:
      UserError: an unknown word, key or value type.
    """
    presets = presets or {}
    words = split_words(arg or "")
    named = [word for word in words if "=" not in word]
    chosen = [word for word in named if word not in presets]
    for word in chosen:
        if not is_method_name(word):
            _unknown_word(word, presets)
    if len(chosen) > 1:
        raise UserError(f"--config names two methods, {' and '.join(chosen)}; write one")
    if chosen:
        set_method(config, chosen[0])
    options = options or {}
    of_file = options.get(config.method.name, {})
    for key, value in {**method_settings(config.method.name), **of_file}.items():
        _assign(config, key, value)
    config.method.update({key: value for key, value in options.items() if key in config.method})
    for word in named:
        if word in presets:
            presets[word](config)
    for word in words:
        if "=" in word:
            key, value = word.split("=", 1)
            set_key(config, key.strip(), value.strip())
    return config.lock()


def _unknown_word(word: str, presets: Mapping[str, Preset]) -> None:
    parts = [part for part in word.split("+") if not is_method_name(part)]
    close = difflib.get_close_matches(parts[0], [*known_methods(), *known_penalties(), *presets], 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise UserError(
        f"'{parts[0]}' is no method of this config: {hint}methods: {', '.join(sorted(known_methods()))}; "
        f"penalties, joined by +: {', '.join(sorted(known_penalties()))}; "
        f"presets: {', '.join(sorted(presets)) or 'none'}; anything else as key=value, "
        "and a value with commas as a flag of its own, --config.KEY=VALUE"
    )


def split_words(arg: str) -> list[str]:
    """Splits at commas outside brackets."""
    words, depth, word = [], 0, ""
    for character in arg:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            words.append(word)
            word = ""
        else:
            word += character
    return [stripped for w in [*words, word] if (stripped := w.strip())]


def set_key(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets a dotted key from text, keeping the type of what stood there.

    Raises:
      UserError: an unknown key, or a value of another type.
    """
    known = flatten(config)
    if key == "method.name":
        raise UserError(f"method.name can't be set as a key; write the method itself, as in --config=FILE:{text}")
    if key not in known:
        raise UserError(f"unknown config key '{key}'{_hint(config, key, list(known))}")
    _assign(config, key, _convert(key, text, known[key]))


def _hint(config: ml_collections.ConfigDict, key: str, known: list[str]) -> str:
    """Says who has an option of a method, or which key was meant."""
    section, _, option = key.partition(".")
    if section == "method":
        methods = [name for name, (_, options) in known_methods().items() if option in options]
        penalties = [name for name in known_penalties() if option.split(".")[0] == name]
        if methods:
            return f": {config.method.name} has no {option}; these methods do: {', '.join(sorted(methods))}"
        if penalties:
            return f": write the penalty behind the colon as well, {penalties[0]}+{config.method.name}"
    close = difflib.get_close_matches(key, known, 1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _assign(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    *path, name = key.split(".")
    for part in path:
        config = config[part]
    config[name] = value


def _convert(key: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    try:
        repr(value)
    except ValueError as error:  # Python writes no whole number of more than 4300 digits
        raise UserError(f"{key} has a number of thousands of digits; write for example {key}={old}") from error
    if isinstance(old, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    try:
        return _of_type(key, value, old)
    except TypeError as error:
        raise UserError(
            f"{key} is {old!r}, of type {type(old).__name__}; '{text}' is none; write for example {key}={old}"
        ) from error


def _of_type(key: str, value: Any, old: Any) -> Any:
    """The value if it is of the same type as the one before it, a whole number also for one that need not be whole."""
    if isinstance(old, float) and type(value) is int and abs(value) < sys.float_info.max:
        return float(value)
    if type(value) is not type(old):
        raise TypeError(f"{key} is {value!r}, which is no {type(old).__name__}")
    return value


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested config -> {"train.steps": ...}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Sorted "key: old -> new" of two configs that came through JSON."""
    missing = "(absent)"
    a, b = flatten(old), flatten(new)
    return [
        f"{k}: {a.get(k, missing)} -> {b.get(k, missing)}"
        for k in sorted({*a, *b})
        if a.get(k, missing) != b.get(k, missing)
    ]


def from_json(file: Path) -> ml_collections.ConfigDict:
    """The config of a run, from its config.json.

    Raises:
      UserError: it is no config of this version.
    """
    try:
        saved = json.loads(file.read_text())
        config = default_config()
        set_method(config, saved["method"]["name"])
        known = flatten(config)
        for key, value in flatten(saved).items():
            if key != "method.name":
                _assign(config, key, _of_type(key, tuple(value) if isinstance(value, list) else value, known[key]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is no config of this version of jdcl_jax: {error}") from error
    return config.lock()
