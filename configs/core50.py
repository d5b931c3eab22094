"""CORe50 (arXiv 1705.03550): 50 objects filmed in 11 sessions; 8 tasks of one session each, all with the same classes.

    python -m jdcl_jax.main --config=configs/core50.py --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/core50.py:er,method.buffer_size=1000 --config.data.dir=DIR
    python -m jdcl_jax.main --config=configs/core50.py:gr,data.image_size=64,tasks.order=shuffled --config.data.dir=DIR

DIR holds the data set `core50` as array_record. TFDS does not know it and downloads nothing: unpack core50_128x128.zip
in a folder SOURCE, and

    python -c "from jdcl_jax.data.builders.core50 import prepare; prepare('SOURCE', 'DIR')"

Domain-incremental: a task is one of the training sessions 1, 2, 4, 5, 6, 8, 9, 11, of about 15,000 images; several in
one task, or another order, as in tasks.groups="1,2|4|5|6|8,9,11". The usual test sessions 3, 7, 10 are of no task. So a
fixed fifth of every object's images of a session is test, and the test sessions are left out [ours]. These are frames
of the same films as the training images: the scores say what is kept of a session, not whether an object would be known
in a new one. Methods that need new classes in every task, such as jdcl, are refused.

Generative Distillation with the network of configs/cifar100.py at 32x32, 50,000 steps a task at batch 256 [ours]; other
methods as usual. Nothing is measured with this config yet. For a GPU or TPU, and days.
"""

import ml_collections

from jdcl_jax.config import default_config, set_method, with_arguments

OPTIONS = {"guide": {"method.target": "asked"}}
"""GUIDE's own target, a class that only the current task has, is not there where all tasks have the same classes."""


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method and key=value pairs, such as "er,seed=1"."""
    config = default_config()
    set_method(config, "gd")
    config.data.name = "core50"
    config.tasks.update(domain="session", num_tasks=0, groups="1x8")
    config.train.steps = 50_000
    return with_arguments(config, arg, options=OPTIONS)
