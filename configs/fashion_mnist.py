"""Split Fashion-MNIST, 5 tasks x 2 classes, after Generative Distillation (arXiv 2311.14028 [code]).

    python -m jdcl_jax.main --config=configs/fashion_mnist.py:gd --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/fashion_mnist.py:gd,small --config.data.dir=DIR

DIR holds the data set `fashion_mnist` prepared by TFDS as array_record. The full protocol (42.9 M parameters, 9,400
steps a task, batch 128, images resized to 32x32) wants a GPU or TPU: about 1.6e17 FLOPs with GD. `small` is a reduced
run for two CPU cores: the first two tasks, a small UNet, few steps, images padded to 32x32.
The paper's three class orders are tasks.order=gd-42, gd-69 and gd-1714.
"""

import ml_collections

from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method, "small", and key=value pairs, such as "gr,small,seed=1"."""
    config = default_config()
    config.data.update(name="fashion_mnist", image_size=32, fit="resize", flip=False)
    config.model.update(channels=(64, 128, 256, 512), layers_per_block=1, attention_resolutions=(4,))
    config.train.update(steps=9400, batch_size=128)
    config.sampler.steps = 10
    config.evaluation.classifier.update(features=128, steps=1200, batch_size=128, learning_rate=2e-3, shift=0)
    config.evaluation.classifier.channels = (32, 64)
    return with_arguments(config, arg, {"small": small})


def small(config: ml_collections.ConfigDict) -> None:
    """A reduced run for two CPU cores [ours]."""
    config.data.fit = "pad"
    config.tasks.first = 2
    config.model.update(channels=(16, 32, 64), attention_resolutions=(), groups=8)
    config.train.update(steps=600, batch_size=16, learning_rate=1e-3, ema=0.995, log_every=50)
    config.evaluation.update(num_samples=500, batch_size=250, weights="ema")
    config.evaluation.classifier.update(steps=400)
    config.checkpoint.every = 100
