"""Split CIFAR-100: 5 tasks x 20 classes, `ten` for 10 x 10, `half` for 50 + 5 x 10 classes.

    python -m jdcl_jax.main --config=configs/cifar100.py:gd --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar100.py:gd,half --config.data.dir=DIR

DIR holds the data set `cifar100` prepared by TFDS as array_record. The streams are those of JDCL (arXiv 2411.08224
[code]) and GPPDM (arXiv 2312.06710 [paper]); network and training are Generative Distillation's on CIFAR-10 [ours for
this data set]. For a GPU or TPU: about as dear as configs/cifar10.py.
"""

import ml_collections

from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method, "ten" or "half", and key=value pairs, such as "gr,ten,seed=1"."""
    config = default_config()
    config.data.name = "cifar100"
    return with_arguments(config, arg, {"ten": ten, "half": half})


def ten(config: ml_collections.ConfigDict) -> None:
    """10 tasks x 10 classes."""
    config.tasks.num_tasks = 10


def half(config: ml_collections.ConfigDict) -> None:
    """Half of the classes first, then ten at a time."""
    config.tasks.update(num_tasks=0, groups="50+10x5")
