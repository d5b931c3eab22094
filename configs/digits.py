"""Split digits: scikit-learn's 1,797 real 8x8 digits, 5 tasks x 2 classes. The demo: no download, no GPU.

Generative Distillation (arXiv 2311.14028) with a small UNet of our own; its weights, teacher steps and
zero-terminal-SNR schedule are the paper's.

    python -m jdcl_jax.main --config=configs/digits.py

Expected on 2 CPU cores: under 4 minutes, compilation included.
"""

import ml_collections

from jdcl_jax.config import default_config, with_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method and key=value pairs, such as "gr,seed=1"."""
    config = default_config()
    config.data.update(name="digits", image_size=8, flip=False, validation=0.1)
    config.model.update(channels=(16, 32), layers_per_block=1, attention_resolutions=(), groups=8)
    config.train.update(steps=300, batch_size=64, learning_rate=2e-3, schedule="cosine", log_every=50)
    config.sampler.steps = 10
    denoiser = ("eps_mse", "bpd_fixed_small", "bpd_fixed_large")
    config.evaluation.update(num_samples=1000, scores=(*config.evaluation.scores, *denoiser))
    config.evaluation.likelihood.images = 8
    config.evaluation.classifier.update(
        channels=(32, 64), features=64, steps=300, batch_size=64, learning_rate=2e-3, shift=0
    )
    config.checkpoint.every = 100
    return with_arguments(config, arg)
