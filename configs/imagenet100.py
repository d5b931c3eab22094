"""Split ImageNet100 at 64x64, 5 tasks x 20 classes: the stream of JDCL (arXiv 2411.08224 [code]).

    python -m jdcl_jax.main --config=configs/imagenet100.py:gd,data.name=folder:/data/imagenet100

The folder has `train/` and `test/` with one folder per class. The network has 192 channels and attention at 16 and 8
as in JDCL; 90,000 steps a task [code]. Training images take 1.5 GB on the device. About 1.2e20 FLOPs with GD: for
several GPUs or a TPU host, and days.
"""

import ml_collections

from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method and key=value pairs, such as "gr,data.name=folder:PATH"."""
    config = default_config()
    config.data.update(name="folder:imagenet100", image_size=64)
    config.model.update(
        channels=(192, 384, 384, 384),
        layers_per_block=3,
        attention_resolutions=(16, 8),
        head_channels=0,
        heads=4,
        scale_shift=True,
        dropout=0.1,
        dtype="bfloat16",
    )
    config.train.update(steps=90_000, batch_size=256, ema=0.9999)
    config.evaluation.weights = "ema"
    config.evaluation.classifier.update(channels=(32, 64, 128, 256), features=256, steps=20_000)
    return with_arguments(config, arg)
