"""Split digits: scikit-learn's 1,797 real 8x8 digits, 5 tasks x 2 classes. The demo: no download, no GPU.

JDCL (arXiv 2411.08224) with a small network, few steps and weights of its own [ours]; its two stages, its replay and
its losses are the paper's.

    python -m jdcl_jax.main --config=configs/digits.py
    python -m jdcl_jax.main --config=configs/digits.py:joint,seed=1
    python -m jdcl_jax.main --config=configs/digits.py:gppdm
    python -m jdcl_jax.main --config=configs/digits.py:gd,generation

Expected on 2 CPU cores: minutes, compilation included.

Preset `generation`: the denoiser alone, for methods that only generate; Generative Distillation (arXiv 2311.14028) with
a small UNet of our own, its weights, teacher steps and zero-terminal-SNR schedule being the paper's.
"""

import ml_collections

from jdcl_jax import protocols
from jdcl_jax.config import default_config, with_arguments

OPTIONS = {
    "global_steps": 270,
    "quota": 300,
    "replay_steps": 15,
    "replay_batch": 300,
    "class_weight": 5e-4,
    "class_distillation_weight": 0.1,
    "class_delay": 0,
    "ddgr": {"train.steps": 520},
    "guide": {"train.steps": 520, "sampler.guidance": 0.5},
    "gppdm": {"train.steps": 520, "sampler.guidance": 0.0},
}
"""On these data [ours]. JDCL's class terms weigh more beside the denoising ones than in the paper, as steps are few.

Generators that keep a classifier apart train for as many steps as JDCL's two stages have together.
"""


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """arg: a method, "generation", and key=value pairs, such as "gr,seed=1"."""
    config = default_config()
    config.data.update(name="digits", image_size=8, flip=False, validation=0.1)
    config.views.update(crop_scale=1.0, operations=2, magnitude=5, cutout=0.25)
    config.model.update(channels=(16, 32), layers_per_block=1, attention_resolutions=(), groups=8, dropout=0.0)
    config.classifier.update(hidden=128, weight=0.05)
    config.context.update(width=32, label_width=32, resolutions=(4,))
    config.solver.update(network="cnn", steps=250, learning_rate=0.05)
    config.sampler.steps = 10
    config.train.update(steps=250, batch_size=64, learning_rate=2e-3, schedule="cosine", ema=0.99, log_every=50)
    config.evaluation.num_samples = 1000
    config.evaluation.probe.images = 1000
    config.evaluation.classifier.update(
        channels=(32, 64), features=64, steps=300, batch_size=64, learning_rate=2e-3, shift=0
    )
    config.checkpoint.every = 100
    return with_arguments(config, arg, {"generation": generation}, OPTIONS)


def generation(config: ml_collections.ConfigDict) -> None:
    """The denoiser alone, as Generative Distillation trains it, with a small UNet [ours]."""
    protocols.denoiser_alone(config)
    config.model.update(head_channels=8, heads=0, scale_shift=False)
    config.diffusion.update(beta_start=1e-4, beta_end=0.02, zero_snr=True)
    config.train.update(steps=300, optimizer="adam", weight_decay=0.0, clip_norm=1.0, ema=0.0)
    denoiser = ("eps_mse", "bpd_fixed_small", "bpd_fixed_large")
    config.evaluation.update(weights="raw", scores=(*config.evaluation.scores, *denoiser))
    config.evaluation.likelihood.images = 8
