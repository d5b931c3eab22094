"""Split CIFAR-10, 5 tasks x 2 classes, after Generative Distillation (arXiv 2311.14028 [code]).

    python -m jdcl_jax.main --config=configs/cifar10.py --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/cifar10.py:gr,seed=1 --config.data.dir=DIR

DIR holds the data set `cifar10` prepared by TFDS as array_record. 35.7 M parameters, 31,400 steps a task at batch 64,
random flips, DDIM with 20 steps for 10,000 evaluation samples. With GD about 9e17 FLOPs: hours on a GPU or TPU, not
for a CPU. The paper's three class orders are tasks.order=gd-42, gd-69 and gd-1714.
"""

import ml_collections

from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method and key=value pairs, such as "gr,seed=1"."""
    return with_arguments(default_config(), arg)
