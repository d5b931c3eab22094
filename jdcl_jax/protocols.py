"""The papers' protocols: what configs of several data sets share. A preset of a config file calls some of these."""

import ml_collections

from jdcl_jax.config import GENERATION_SCORES, default_config, set_method
from jdcl_jax.evaluation.scores import SCORES, MeasuredScore

CLASSIFIER_SCORES = [
    name
    for name, score in SCORES.items()
    if isinstance(score, MeasuredScore) and score.needs in ("classifier", "average", "validation")
]


def denoiser_alone(config: ml_collections.ConfigDict) -> None:
    """No classifier beside the denoiser, and none of the views and scores that go with one."""
    config.classifier.kind = "none"
    config.views.crop_scale = 1.0
    config.evaluation.scores = tuple(name for name in config.evaluation.scores if name not in CLASSIFIER_SCORES)


def jdcl(config: ml_collections.ConfigDict, *, quota: int, local: int, after: int, first: int = 0) -> None:
    """JDCL (arXiv 2411.08224 [code]; "local" stages that begin with the global model, and averaged teachers [2nd]).

    Images held out for validation are not mentioned and none are. Not stated: how many samples are scored.

    Args:
      config: changed in place; its method keeps its name.
      quota: replay images per class.
      local: steps of the local stage, or of any other method's only one.
      after: steps of the global stage.
      first: steps of the first task's local stage; 0: as of the others.
    """
    set_method(config, config.method.name)
    config.data.update(flip=True, validation=0.0)
    config.tasks.update(groups="", order="natural", first=0)
    config.views.update(crop_scale=0.85, operations=2, magnitude=10, cutout=0.5)
    config.model.update(head_channels=0, heads=4, groups=32, scale_shift=True, dropout=0.1, class_conditional=False)
    config.classifier.update(kind="joint", dropout=0.1, weight=0.001)
    config.diffusion.update(schedule="linear", timesteps=1000, beta_start=1e-3, beta_end=0.02)
    config.diffusion.update(zero_snr=False, prediction="eps")
    config.sampler.update(kind="ddim", steps=250, eta=0.0, clip=True, guidance=0.0, classifier_guidance=0.0)
    config.train.update(steps=local, epochs=0, batch_size=256, reset_optimizer=True, ema=0.9999, clip_norm=0.0)
    config.train.update(optimizer="adamw", learning_rate=2e-4, weight_decay=0.01, schedule="constant", warmup=0)
    config.evaluation.update(weights="ema", scores=default_config().evaluation.scores)
    if config.method.name == "jdcl":
        config.method.update(quota=quota, global_steps=after, first_steps=first)


def released(config: ml_collections.ConfigDict) -> None:
    """What JDCL's released code does otherwise [code]: local models from scratch, raw weights label and teach."""
    if config.method.name == "jdcl":
        config.method.update(local_start="scratch", teacher="last")


def denoiser_of_gd(config: ml_collections.ConfigDict) -> None:
    """The denoiser of Generative Distillation, alone, and its training (arXiv 2311.14028 [code]).

    Levels, steps and batch are the data set's own.
    """
    denoiser_alone(config)
    config.model.update(head_channels=8, heads=0, groups=32, scale_shift=False, dropout=0.0)
    config.diffusion.update(schedule="linear", timesteps=1000, beta_start=1e-4, beta_end=0.02)
    config.diffusion.update(zero_snr=True, prediction="eps")
    config.train.update(optimizer="adam", learning_rate=2e-4, weight_decay=0.0, schedule="constant", warmup=0)
    config.train.update(epochs=0, ema=0.0, clip_norm=1.0)
    config.evaluation.weights = "raw"


def generative_distillation(config: ml_collections.ConfigDict) -> None:
    """Generative Distillation (arXiv 2311.14028 [code]); network, steps and batch are the data set's own."""
    set_method(config, config.method.name)  # S = 2 and lambda of each method: their defaults are this paper's
    denoiser_of_gd(config)
    config.data.update(image_size=32, fit="resize", validation=0.0)
    config.tasks.update(num_tasks=5, groups="", order="gd-42", first=0)
    config.model.class_conditional = False
    config.sampler.update(kind="ddim", eta=0.0, clip=True, guidance=0.0, classifier_guidance=0.0)
    config.train.reset_optimizer = True
    config.evaluation.update(num_samples=10_000, scores=("fid", "kld_epsilon", "ard"))


def rank1_ewc(config: ml_collections.ConfigDict) -> None:
    """Rank-1 EWC + GD (arXiv 2509.23593 [2nd, paper]); what it does not state stays as the config has it [ours].

    Not stated: the network, the noise schedule, the number of scored samples, flips, clipping, validation. Its 50 DDIM
    steps are taken for the stored samples of the teacher too. It is scored with FID, which needs Inception's weights.
    """
    denoiser_alone(config)
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


def gppdm(config: ml_collections.ConfigDict) -> None:
    """GPPDM's network and training in its released code, the version before the projection (arXiv 2312.06710 [code]).

    144.2 M parameters at 64x64. Its context is one token, which teaches neither queries nor keys; a second one, of the
    prototype, learned prototypes and the projection are the default here. Label embeddings are learned; the released
    ones are fixed and of 768 entries, which `context.embeddings=FILE` reads. Not stated: averaged weights, the
    classifier's training, how many samples are scored.
    """
    _generator_and_solver(config, "gppdm")
    config.data.image_size = 64
    config.model.update(channels=(128, 128, 256, 256, 512, 512), layers_per_block=2, attention_resolutions=())
    config.model.update(head_channels=0, heads=8, groups=32, scale_shift=False, dropout=0.0)
    config.model.update(class_conditional=True, conditioning="context", label_dropout=0.2)
    config.context.update(width=768, resolutions=(4,), prototypes="channels")
    config.diffusion.update(schedule="linear", timesteps=1000, beta_start=1e-4, beta_end=0.02, zero_snr=False)
    config.sampler.update(kind="ddim", steps=100, eta=0.0, clip=True, guidance=3.0)
    config.train.update(steps=15_000, epochs=0, batch_size=64, optimizer="adamw", learning_rate=1e-4)
    config.train.update(schedule="cosine", warmup=500, clip_norm=1.0)
    if config.method.name == "gppdm":
        config.method.update(replay_per_class=20, replay_validation=4, replay_steps=100, projection=False)
        config.method.update(prototype_start="confident", prototype_update="one_step")


def ddgr(config: ml_collections.ConfigDict) -> None:
    """DDGR's diffusion and replay (ICML 2023 [code]); the networks stay as the config has them [ours]."""
    _generator_and_solver(config, "ddgr")
    betas = default_config().diffusion
    config.model.update(class_conditional=True, conditioning="time")
    config.diffusion.update(schedule="cosine", timesteps=4000, zero_snr=False, prediction="eps", variance="learned")
    config.diffusion.update(beta_start=betas.beta_start, beta_end=betas.beta_end)
    config.sampler.update(kind="ddpm", steps=250, eta=0.0, clip=True, guidance=0.0)
    if config.method.name == "ddgr":
        config.method.update(scale=1.0, scale_schedule="constant", replay_per_class=20, replay_steps=250)


def guide(config: ml_collections.ConfigDict) -> None:
    """GUIDE's guidance, at its scale for five tasks, and classifier (arXiv 2403.03938 [code]); the rest is [ours]."""
    _generator_and_solver(config, "guide")
    config.model.update(class_conditional=True, conditioning="time")
    config.solver.network = "resnet18"
    config.sampler.update(kind="ddim", eta=0.0, clip=True)
    if config.method.name == "guide":
        config.method.update(scale=0.5, scale_schedule="constant", target="new", direction="toward")


def _generator_and_solver(config: ml_collections.ConfigDict, name: str) -> None:
    """The method of this name takes its defaults; another keeps its own, to be compared on the same diffusion."""
    if config.method.name == name:
        set_method(config, name)
        config.classifier.kind = "solver"
    config.sampler.classifier_guidance = 0.0


def reduced(config: ml_collections.ConfigDict) -> None:
    """A reduced run for two CPU cores [ours]: the first two tasks, a small UNet, batches of 16.

    Class terms weigh more and strong views are weaker than in long runs, as for digits. It is scored without Inception,
    whose features 500 images are too few for.
    """
    config.tasks.first = 2
    config.model.update(channels=(16, 32, 64), layers_per_block=1, attention_resolutions=(), groups=8)
    config.classifier.update(hidden=256, weight=0.05)
    config.context.update(width=64, resolutions=(max(8, config.data.image_size // 4),))
    config.solver.network = "cnn"
    config.views.update(magnitude=5, cutout=0.25)
    config.train.update(epochs=0, batch_size=16, learning_rate=1e-3, ema=0.995, log_every=50)
    scores = default_config().evaluation.scores if config.classifier.kind != "none" else GENERATION_SCORES
    config.evaluation.update(num_samples=500, batch_size=250, weights="ema", scores=scores)
    config.checkpoint.every = 100
    if config.method.get("replay") == "stored":
        config.method.update(stored_per_class=250, teacher_steps=min(config.method.teacher_steps, 10))
    if "quota" in config.method:
        config.method.update(quota=250, replay_steps=15, replay_batch=250)
        config.method.update(class_weight=5e-4, class_distillation_weight=0.1)
    if "class_delay" in config.method:
        config.method.class_delay = 0
    if "replay_per_class" in config.method:
        config.method.replay_steps = 15
