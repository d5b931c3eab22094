r"""Split CIFAR-10, 5 tasks x 2 classes, after Generative Distillation (arXiv 2311.14028 [code]).

    python -m jdcl_jax.main --config=configs/cifar10.py --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:gr,seed=1 --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:gd,small --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:gd,gd_paper,evaluation.inception_weights=FILE,data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:rank1_ewc+gd,rank1_paper,data.dir=DIR \
        --config.evaluation.inception_weights=FILE

DIR holds the data set `cifar10` prepared by TFDS as array_record. 35.7 M parameters, 31,400 steps a task at batch 64,
random flips, DDIM with 20 steps for 10,000 evaluation samples. With GD about 9e17 FLOPs: hours on a GPU or TPU, not
for a CPU.

Presets; of several, the later one wins where they differ:
`gd_paper`: Generative Distillation's protocol whole, scored with fid, kld_epsilon and ard. fid needs
evaluation.inception_weights=FILE; without it the run ends before the first step with a line that says so. The paper's
three class orders are tasks.order=gd-42 (the preset's), gd-69 and gd-1714. Its tables are not known here.
`rank1_paper`: the protocol of rank-1 EWC + GD (arXiv 2509.23593), scored with fid, kld and ard, for `rank1_ewc+gd` and
its baselines `gd`, `joint` and `finetune`: 200 epochs, about 15,000 steps a task. Published, final mean FID over tasks
/ mean rise: rank-1 EWC + GD 50.5 / 7.4 [paper], GD 61.2 / 16.6, joint 23.3, fine-tuning 115.4 / 72.5 [2nd].
`small`: a reduced run for two CPU cores: the first two tasks, a small UNet, few steps. About 10 minutes with GD.
"""

import ml_collections

from jdcl_jax import protocols
from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method, presets, and key=value pairs, such as "gr,gd_paper,small,seed=1"."""
    return with_arguments(
        default_config(), arg, {"gd_paper": gd_paper, "rank1_paper": protocols.rank1_ewc, "small": small}
    )


def gd_paper(config: ml_collections.ConfigDict) -> None:
    """Generative Distillation on CIFAR-10 (arXiv 2311.14028 [code])."""
    protocols.generative_distillation(config)
    config.data.flip = True
    config.model.update(channels=(128, 256, 256, 256), layers_per_block=2, attention_resolutions=(16,))
    config.sampler.steps = 20
    config.train.update(steps=31_400, batch_size=64)


def small(config: ml_collections.ConfigDict) -> None:
    """A reduced run for two CPU cores [ours]."""
    protocols.reduced(config)
    config.sampler.steps = 20
    config.train.steps = 1000
    config.evaluation.classifier.update(channels=(32, 64), features=128, steps=800, learning_rate=2e-3)
