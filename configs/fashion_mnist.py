r"""Split Fashion-MNIST, 5 tasks x 2 classes: JDCL (arXiv 2411.08224), which is not published on it.

    python -m jdcl_jax.main --config=configs/fashion_mnist.py --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/fashion_mnist.py:small --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/fashion_mnist.py:gd,generation --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/fashion_mnist.py:gd,generation,small --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/fashion_mnist.py:gd,gd_paper,evaluation.inception_weights=FILE,data.dir=DIR
    python -m jdcl_jax.main --config=configs/fashion_mnist.py:rank1_ewc+gd,rank1_paper,data.dir=DIR \
        --config.evaluation.inception_weights=FILE

DIR holds the data set `fashion_mnist` prepared by TFDS as array_record. Images resized to 32x32; JDCL with half the
width of its CIFAR network, 20,000 steps of the local and 12,000 of the global stage at batch 128 [ours]. For a GPU or
TPU.

Presets; of several, the later one wins where they differ:
`generation`: the denoiser alone, as Generative Distillation has it, for methods that only generate: 42.9 M parameters,
9,400 steps a task at batch 128, about 1.6e17 FLOPs with GD.
`gd_paper`: Generative Distillation's protocol whole, scored with fid, kld_epsilon and ard. fid needs
evaluation.inception_weights=FILE; without it the run ends before the first step with a line that says so. The paper's
three class orders are tasks.order=gd-42 (the preset's), gd-69 and gd-1714. Its tables are not known here.
`rank1_paper`: the protocol of rank-1 EWC + GD (arXiv 2509.23593), scored with fid, kld and ard, for `rank1_ewc+gd` and
its baselines `gd`, `joint` and `finetune`: 200 epochs, about 18,000 steps a task. Published, final mean FID over tasks
/ mean rise: rank-1 EWC + GD 15.4 / 0.9 [paper], GD 19.1 / 3.9, joint 5.7, fine-tuning 104 / 88 [2nd].
`small`: a reduced run for two CPU cores: the first two tasks, a small UNet, few steps, images padded to 32x32. About
6 minutes with GD and `generation`.
"""

import ml_collections

from jdcl_jax import protocols
from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method, presets, and key=value pairs, such as "gr,gd_paper,small,seed=1"."""
    config = default_config()
    config.data.update(name="fashion_mnist", image_size=32, fit="resize", flip=False)
    config.model.update(channels=(64, 128, 128, 128), layers_per_block=2, attention_resolutions=(16, 8))
    config.classifier.hidden = 512
    config.train.update(steps=20_000, batch_size=128)
    config.sampler.steps = 50
    config.evaluation.classifier.update(features=128, steps=1200, batch_size=128, learning_rate=2e-3, shift=0)
    config.evaluation.classifier.channels = (32, 64)
    presets = {"generation": generation, "gd_paper": gd_paper, "rank1_paper": rank1_paper, "small": small}
    return with_arguments(config, arg, presets, {"global_steps": 12_000, "class_delay": 4000})


def generation(config: ml_collections.ConfigDict) -> None:
    """The denoiser alone, with the network and the steps of Generative Distillation (arXiv 2311.14028 [code])."""
    protocols.denoiser_of_gd(config)
    config.model.update(channels=(64, 128, 256, 512), layers_per_block=1, attention_resolutions=(4,))
    config.sampler.steps = 10
    config.train.update(steps=9400, batch_size=128)


def gd_paper(config: ml_collections.ConfigDict) -> None:
    """Generative Distillation on Fashion-MNIST (arXiv 2311.14028 [code])."""
    generation(config)
    protocols.generative_distillation(config)
    config.data.flip = False


def rank1_paper(config: ml_collections.ConfigDict) -> None:
    """Rank-1 EWC + GD on Fashion-MNIST (arXiv 2509.23593)."""
    generation(config)
    protocols.rank1_ewc(config)


def small(config: ml_collections.ConfigDict) -> None:
    """A reduced run for two CPU cores [ours]."""
    protocols.reduced(config)
    config.data.fit = "pad"
    config.sampler.steps = 10
    config.train.steps = 600
    if "global_steps" in config.method:
        config.method.global_steps = 600
    config.evaluation.classifier.update(steps=400)
