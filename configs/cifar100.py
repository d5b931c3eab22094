"""Split CIFAR-100: 5 tasks x 20 classes, 10 x 10, or half of the classes first: JDCL (arXiv 2411.08224).

    python -m jdcl_jax.main --config=configs/cifar100.py --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar100.py:ten,data.label_fraction=0.05 --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar100.py:gd,half --config.data.dir=DIR

DIR holds the data set `cifar100` prepared by TFDS as array_record. The network of configs/cifar10.py, 100,000 steps of
the local and 70,000 of the global stage at batch 256, 400 replay images per class [code]. Published final average
accuracy: 47.95 with 5 tasks and 29.04 with 10, joint training 73.07 and 64.15; with 10 tasks and 5 % of the labels
26.39, with 0.8 % 22.19 [2nd]. For a GPU or TPU, and days.

Presets: `ten`, 10 tasks x 10 classes; GPPDM's two streams (arXiv 2312.06710 [paper]), `half`, 50 classes and then 5
tasks x 10, and `half_ten`, 50 classes and then 10 tasks x 5; `paper` and `released` as in configs/cifar10.py, which
keep the division into tasks; `gppdm_released`, `ddgr_released` and `guide_released` as there. Published for GUIDE:
41.66 with 5 tasks, 26.13 with 10 [2nd]. GUIDE's scale is .5; with `ten` write method.scale=1.0 [code].
"""

import ml_collections

from jdcl_jax import protocols
from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method, presets, and key=value pairs, such as "gr,ten,seed=1"."""
    config = default_config()
    config.data.name = "cifar100"
    config.train.steps = 100_000
    presets = {"paper": paper, "released": released, "ten": ten, "half": half, "half_ten": half_ten}
    presets |= {"gppdm_released": protocols.gppdm, "ddgr_released": protocols.ddgr, "guide_released": protocols.guide}
    return with_arguments(config, arg, presets, {"quota": 400, "global_steps": 70_000})


def paper(config: ml_collections.ConfigDict) -> None:
    """JDCL on CIFAR-100 (arXiv 2411.08224)."""
    config.model.update(channels=(128, 256, 256, 256), layers_per_block=3, attention_resolutions=(16, 8))
    config.classifier.hidden = 1024
    protocols.jdcl(config, quota=400, local=100_000, after=70_000)


def released(config: ml_collections.ConfigDict) -> None:
    """JDCL's released code on CIFAR-100 (arXiv 2411.08224 [code])."""
    paper(config)
    protocols.released(config)


def ten(config: ml_collections.ConfigDict) -> None:
    """10 tasks x 10 classes."""
    config.tasks.update(num_tasks=10, groups="")


def half(config: ml_collections.ConfigDict) -> None:
    """Half of the classes first, then ten at a time."""
    config.tasks.update(num_tasks=0, groups="50+10x5")


def half_ten(config: ml_collections.ConfigDict) -> None:
    """Half of the classes first, then five at a time."""
    config.tasks.update(num_tasks=0, groups="50+5x10")
