"""The papers' protocols: what configs of several data sets share. A preset of a config file calls one of these."""

import ml_collections

from jdcl_jax.config import default_config, set_method


def generative_distillation(config: ml_collections.ConfigDict) -> None:
    """Generative Distillation (arXiv 2311.14028 [code]); network, steps and batch are the data set's own."""
    set_method(config, config.method.name)  # S = 2 and lambda of each method: their defaults are this paper's
    config.data.update(image_size=32, fit="resize", validation=0.0)
    config.tasks.update(num_tasks=5, groups="", order="gd-42", first=0)
    config.model.update(head_channels=8, heads=0, groups=32, scale_shift=False, dropout=0.0, class_conditional=False)
    config.diffusion.update(schedule="linear", timesteps=1000, beta_start=1e-4, beta_end=0.02)
    config.diffusion.update(zero_snr=True, prediction="eps")
    config.sampler.update(kind="ddim", eta=0.0, clip=True, guidance=0.0)
    config.train.update(epochs=0, reset_optimizer=True, ema=0.0, clip_norm=1.0)
    config.train.update(optimizer="adam", learning_rate=2e-4, schedule="constant", warmup=0)
    config.evaluation.update(num_samples=10_000, scores=("fid", "kld_epsilon", "ard"), weights="raw")


def rank1_ewc(config: ml_collections.ConfigDict) -> None:
    """Rank-1 EWC + GD (arXiv 2509.23593 [2nd, paper]); what it does not state stays as the config has it [ours].

    Not stated: the network, the noise schedule, the number of scored samples, flips, clipping, validation. Its 50 DDIM
    steps are taken for the stored samples of the teacher too. It is scored with FID, which needs Inception's weights.
    """
    config.tasks.update(num_tasks=5, groups="", order="natural", first=0)
    config.model.class_conditional = True
    config.diffusion.update(timesteps=1000, prediction="eps")
    config.sampler.update(kind="ddim", steps=50, eta=0.0)
    config.train.update(epochs=200, batch_size=128, optimizer="adam", learning_rate=2e-4, schedule="constant", warmup=0)
    config.evaluation.scores = ("fid", "kld", "ard")
    method = config.method
    if "replay" in method:
        method.update(replay="stored", stored_per_class=5000, teacher_steps=50, replay_weight=1.0)
    if "weighting" in method:
        method.weighting = "sum"  # its two losses are added
    if "rank1_ewc" in method:
        method.rank1_ewc.strength = 15_000.0


def reduced(config: ml_collections.ConfigDict) -> None:
    """A reduced run for two CPU cores [ours]: the first two tasks, a small UNet, batches of 16.

    It is scored without Inception, whose features 500 images are too few for.
    """
    config.tasks.first = 2
    config.model.update(channels=(16, 32, 64), layers_per_block=1, attention_resolutions=(), groups=8)
    config.train.update(epochs=0, batch_size=16, learning_rate=1e-3, ema=0.995, log_every=50)
    config.evaluation.update(num_samples=500, batch_size=250, weights="ema", scores=default_config().evaluation.scores)
    config.checkpoint.every = 100
    if config.method.get("replay") == "stored":
        config.method.update(stored_per_class=250, teacher_steps=min(config.method.teacher_steps, 10))
