"""Split ImageNet100 at 64x64, 5 tasks x 20 classes: JDCL (arXiv 2411.08224 [code]).

    python -m jdcl_jax.main --config=configs/imagenet100.py:data.name=folder:/data/imagenet100

The folder has `train/` and `test/` with one folder per class. 114 M parameters and 11.6 M of the classifier: 192
channels, a hidden layer of 2,048, attention at 8x8 in heads of 64 channels. 120,000 steps for the first task, then
90,000 of the local and 90,000 of the global stage at batch 256, 1,040 replay images per class [code]. Training images
take 1.5 GB on the device, replayed ones 1.3 GB twice. Published final average accuracy: 54.53, joint training 50.59
[2nd]. For several GPUs or a TPU host, and days.

Presets: `paper` and `released` as in configs/cifar10.py.
"""

import ml_collections

from jdcl_jax import protocols
from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method, presets, and key=value pairs, such as "gr,data.name=folder:PATH"."""
    config = default_config()
    config.data.update(name="folder:imagenet100", image_size=64)
    config.model.update(channels=(192, 384, 384, 384), attention_resolutions=(8,))
    config.model.update(head_channels=64, heads=0, dtype="bfloat16")
    config.classifier.hidden = 2048
    config.context.resolutions = (8,)
    config.train.steps = 90_000
    config.evaluation.classifier.update(channels=(32, 64, 128, 256), features=256, steps=20_000)
    options = {"quota": 1040, "global_steps": 90_000, "first_steps": 120_000}
    return with_arguments(config, arg, {"paper": paper, "released": released}, options)


def paper(config: ml_collections.ConfigDict) -> None:
    """JDCL on ImageNet100 (arXiv 2411.08224)."""
    config.tasks.num_tasks = 5
    config.model.update(channels=(192, 384, 384, 384), layers_per_block=3, attention_resolutions=(8,))
    config.classifier.hidden = 2048
    protocols.jdcl(config, quota=1040, local=90_000, after=90_000, first=120_000)
    config.model.update(head_channels=64, heads=0)


def released(config: ml_collections.ConfigDict) -> None:
    """JDCL's released code on ImageNet100 (arXiv 2411.08224 [code])."""
    paper(config)
    protocols.released(config)
