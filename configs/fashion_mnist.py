r"""Split Fashion-MNIST, 5 tasks x 2 classes, after Generative Distillation (arXiv 2311.14028 [code]).

    python -m jdcl_jax.main --config=configs/fashion_mnist.py:gd --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/fashion_mnist.py:gd,small --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/fashion_mnist.py:gd,gd_paper,evaluation.inception_weights=FILE,data.dir=DIR
    python -m jdcl_jax.main --config=configs/fashion_mnist.py:rank1_ewc+gd,rank1_paper,data.dir=DIR \
        --config.evaluation.inception_weights=FILE

DIR holds the data set `fashion_mnist` prepared by TFDS as array_record. The full protocol (42.9 M parameters, 9,400
steps a task, batch 128, images resized to 32x32) wants a GPU or TPU: about 1.6e17 FLOPs with GD.

Presets; of several, the later one wins where they differ:
`gd_paper`: Generative Distillation's protocol whole, scored with fid, kld_epsilon and ard. fid needs
evaluation.inception_weights=FILE; without it the run ends before the first step with a line that says so. The paper's
three class orders are tasks.order=gd-42 (the preset's), gd-69 and gd-1714. Its tables are not known here.
`rank1_paper`: the protocol of rank-1 EWC + GD (arXiv 2509.23593), scored with fid, kld and ard, for `rank1_ewc+gd` and
its baselines `gd`, `joint` and `finetune`: 200 epochs, about 18,000 steps a task. Published, final mean FID over tasks
/ mean rise: rank-1 EWC + GD 15.4 / 0.9 [paper], GD 19.1 / 3.9, joint 5.7, fine-tuning 104 / 88 [2nd].
`small`: a reduced run for two CPU cores: the first two tasks, a small UNet, few steps, images padded to 32x32. About
6 minutes with GD.
"""

import ml_collections

from jdcl_jax import protocols
from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method, presets, and key=value pairs, such as "gr,gd_paper,small,seed=1"."""
    config = default_config()
    config.data.update(name="fashion_mnist", image_size=32, fit="resize", flip=False)
    config.model.update(channels=(64, 128, 256, 512), layers_per_block=1, attention_resolutions=(4,))
    config.train.update(steps=9400, batch_size=128)
    config.sampler.steps = 10
    config.evaluation.classifier.update(features=128, steps=1200, batch_size=128, learning_rate=2e-3, shift=0)
    config.evaluation.classifier.channels = (32, 64)
    return with_arguments(config, arg, {"gd_paper": gd_paper, "rank1_paper": protocols.rank1_ewc, "small": small})


def gd_paper(config: ml_collections.ConfigDict) -> None:
    """Generative Distillation on Fashion-MNIST (arXiv 2311.14028 [code])."""
    protocols.generative_distillation(config)
    config.data.flip = False
    config.model.update(channels=(64, 128, 256, 512), layers_per_block=1, attention_resolutions=(4,))
    config.sampler.steps = 10
    config.train.update(steps=9400, batch_size=128)


def small(config: ml_collections.ConfigDict) -> None:
    """A reduced run for two CPU cores [ours]."""
    protocols.reduced(config)
    config.data.fit = "pad"
    config.sampler.steps = 10
    config.train.steps = 600
    config.evaluation.classifier.update(steps=400)
