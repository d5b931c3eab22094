r"""Split CIFAR-10, 5 tasks x 2 classes: JDCL (arXiv 2411.08224 [code]).

    python -m jdcl_jax.main --config=configs/cifar10.py --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:released,seed=1 --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:data.label_fraction=0.05 --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:gr,generation --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:small --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:gd,gd_paper,evaluation.inception_weights=FILE,data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:rank1_ewc+gd,rank1_paper,data.dir=DIR \
        --config.evaluation.inception_weights=FILE

DIR holds the data set `cifar10` prepared by TFDS as array_record. 52.5 M parameters and 3.8 M of the classifier, 50,000
steps of the local and 30,000 of the global stage at batch 256, 1,000 replay images per class. Published final average
accuracy: 83.69, joint training 86.41; with 5 % of the labels 79.96, with 0.8 % 78.93 [2nd]. For a GPU or TPU, and days.

Presets; of several, the later one wins where they differ:
`paper`: JDCL's protocol whole: like the default, without images held out for validation.
`released`: the same as its released code does it: local models start from scratch, raw weights label and teach.
`generation`: the denoiser alone, as Generative Distillation has it, for methods that only generate: 35.7 M parameters,
31,400 steps a task at batch 64, DDIM with 20 steps for 10,000 evaluation samples.
`gd_paper`: Generative Distillation's protocol whole, scored with fid, kld_epsilon and ard. fid needs
evaluation.inception_weights=FILE; without it the run ends before the first step with a line that says so. The paper's
three class orders are tasks.order=gd-42 (the preset's), gd-69 and gd-1714. Its tables are not known here.
`rank1_paper`: the protocol of rank-1 EWC + GD (arXiv 2509.23593), scored with fid, kld and ard, for `rank1_ewc+gd` and
its baselines `gd`, `joint` and `finetune`: 200 epochs, about 15,000 steps a task. Published, final mean FID over tasks
/ mean rise: rank-1 EWC + GD 50.5 / 7.4 [paper], GD 61.2 / 16.6, joint 23.3, fine-tuning 115.4 / 72.5 [2nd].
`gppdm_released`, `ddgr_released`, `guide_released`: what the released code of these methods has of network, diffusion
and guidance; the first has 64x64 pixels and 144.2 M parameters. Published final average accuracy of GUIDE: 64.47, of
replay by a diffusion model without guidance 59.00 [2nd]. GUIDE's scale is .5; with two tasks write method.scale=0.2.
`small`: a reduced run for two CPU cores: the first two tasks, a small UNet, few steps.
"""

import ml_collections

from jdcl_jax import protocols
from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method, presets, and key=value pairs, such as "gr,gd_paper,small,seed=1"."""
    presets = {
        "paper": paper,
        "released": released,
        "generation": generation,
        "gd_paper": gd_paper,
        "rank1_paper": rank1_paper,
        "gppdm_released": protocols.gppdm,
        "ddgr_released": protocols.ddgr,
        "guide_released": protocols.guide,
        "small": small,
    }
    return with_arguments(default_config(), arg, presets)


def paper(config: ml_collections.ConfigDict) -> None:
    """JDCL on CIFAR-10 (arXiv 2411.08224)."""
    config.model.update(channels=(128, 256, 256, 256), layers_per_block=3, attention_resolutions=(16, 8))
    config.classifier.hidden = 1024
    protocols.jdcl(config, quota=1000, local=50_000, after=30_000)


def released(config: ml_collections.ConfigDict) -> None:
    """JDCL's released code on CIFAR-10 (arXiv 2411.08224 [code])."""
    paper(config)
    protocols.released(config)


def generation(config: ml_collections.ConfigDict) -> None:
    """The denoiser alone, with the network and the steps of Generative Distillation (arXiv 2311.14028 [code])."""
    protocols.denoiser_of_gd(config)
    config.model.update(channels=(128, 256, 256, 256), layers_per_block=2, attention_resolutions=(16,))
    config.sampler.steps = 20
    config.train.update(steps=31_400, batch_size=64)


def gd_paper(config: ml_collections.ConfigDict) -> None:
    """Generative Distillation on CIFAR-10 (arXiv 2311.14028 [code])."""
    generation(config)
    protocols.generative_distillation(config)
    config.data.flip = True


def rank1_paper(config: ml_collections.ConfigDict) -> None:
    """Rank-1 EWC + GD on CIFAR-10 (arXiv 2509.23593)."""
    generation(config)
    protocols.rank1_ewc(config)


def small(config: ml_collections.ConfigDict) -> None:
    """A reduced run for two CPU cores [ours]."""
    protocols.reduced(config)
    config.sampler.steps = 20
    config.train.steps = 1000
    if "global_steps" in config.method:
        config.method.global_steps = 1000
    config.evaluation.classifier.update(channels=(32, 64), features=128, steps=800, learning_rate=2e-3)
