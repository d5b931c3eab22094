"""Whole runs that take seconds: their words, and two layers in the UNet's place."""

import json
import math
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jdcl_jax import assembly
from jdcl_jax.data.batches import to_float
from jdcl_jax.models.transformer import TokenAttention
from jdcl_jax.models.unet import UNet
from jdcl_jax.training import parallel

JDCL = (  # as TINY_JDCL, but long enough for the classifier to name several classes
    "jdcl", "classifier.kind=joint", "classifier.hidden=16", "classifier.weight=1.0", "train.ema=0.9",
    "evaluation.weights=ema", "evaluation.scores=('accuracy','accuracy_masked','kld')", "views.operations=0",
    "train.steps=16", "train.learning_rate=1e-2", "checkpoint.every=4", "method.global_steps=24",
    "method.class_delay=8", "method.class_weight=0.1", "method.class_distillation_weight=1.0", "method.quota=20",
    "method.replay_steps=3", "method.replay_batch=8",
)  # fmt: skip


class Line(UNet):
    """Two linear layers with one feature map in the UNet's place, told of classes as it is."""

    @nn.compact
    def _layers(self, x, t, given, keys, edit):
        h = nn.Dense(16, name="conv_in")(x.reshape(len(x), -1))
        h = nn.leaky_relu(h + nn.Dense(16, name="time")(t[:, None] / 1000.0))
        if given.labels is not None:
            h = h + nn.Embed(self.num_classes + 1, 16, name="classes")(given.labels)
        if given.context is not None:
            h = h + TokenAttention(2, jnp.float32, name="cross")(h[:, None, :], given.context)[:, 0]
        features = (h[:, None, None, :],)
        if edit is None:
            return features
        shape = (*x.shape[:3], self.out_channels)
        return (nn.Dense(math.prod(shape[1:]), name="conv_out")(edit(features)[0][:, 0, 0]).reshape(shape),)


def quick(patch) -> None:
    """Makes runs small; `patch` is setattr or that of a monkeypatch."""
    patch(assembly, "UNet", Line)
    patch(parallel, "compiler_options", lambda: {"xla_backend_optimization_level": 0})


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def stages_of(results: dict) -> list[tuple]:
    return [(entry["task"], entry["phase"]) for entry in results["phases"]]


def said(parts, params, images: np.ndarray) -> np.ndarray:
    """The classes that the network's classifier gives images uint8 [N, H, W, C]."""
    return np.asarray(parts.network.classify(params, to_float(jnp.asarray(images)))).argmax(1)
