"""The runs that faults are tried on: three tasks of digits, seconds long, with every kind of state that is kept."""

COMMON = (
    "classifier.hidden=16", "model.channels=(8,)", "model.groups=4", "tasks.first=3", "train.steps=12",
    "train.steps_per_call=2", "train.batch_size=8", "train.learning_rate=1e-2", "train.schedule=constant",
    "train.ema=0.9", "evaluation.weights=ema", "train.log_every=3", "checkpoint.every=4", "sampler.steps=3",
    "evaluation.num_samples=60", "evaluation.batch_size=60", "evaluation.classifier.channels=(8,)",
    "evaluation.classifier.features=8", "evaluation.classifier.steps=5", "evaluation.likelihood.images=0",
)  # fmt: skip
DENOISER_SCORES = "evaluation.scores=('fd_classifier','kd_classifier','kld','ard')"
CLASSIFIER_SCORES = "evaluation.scores=('accuracy','accuracy_masked','kld','fd_classifier')"

METHODS = {
    "jdcl": (
        "jdcl", *COMMON, CLASSIFIER_SCORES, "classifier.kind=joint", "classifier.weight=1.0", "method.global_steps=8",
        "method.quota=10", "method.replay_steps=3", "method.replay_batch=8", "method.class_delay=2",
        "method.class_weight=0.1", "method.class_distillation_weight=1.0", "views.operations=0",
    ),
    "gd": ("gd", "generation", *COMMON, DENOISER_SCORES),
    "er": ("er", "generation", *COMMON, DENOISER_SCORES, "method.buffer_size=12"),
    "gppdm": (
        "gppdm", *COMMON, CLASSIFIER_SCORES, "classifier.kind=solver", "solver.network=cnn", "solver.steps=12",
        "solver.learning_rate=0.05", "method.replay_validation=8", "method.replay_steps=3",
        "method.replay_per_class=24", "context.width=8",
        "context.label_width=8", "context.pooled=4", "context.resolutions=(8,)", "method.samples=48",
        "method.layers=*/cross/key;*/cross/value;conditioner/*;*/conv_in", "method.threshold=1.0",
        "method.prototype_rate=0.05",
    ),
}  # fmt: skip

LOST = {  # method -> part of the state -> phase of the second task that can't go on alike without it
    "jdcl": {
        "denoiser.opt_state": "local", "denoiser.ema": "local", "memory.old": "global", "memory.draw.row": "global",
    },
    "gd": {"denoiser.opt_state": "distil", "denoiser.ema": "distil", "memory.teacher": "distil"},
    "er": {
        "denoiser.opt_state": "rehearse", "denoiser.ema": "rehearse", "memory.buffer.row": "rehearse",
    },
    "gppdm": {
        "denoiser.opt_state": "generator+replay", "denoiser.ema": "generator+replay",
        "memory.bases": "generator+replay", "memory.stored.row": "solver+replay",
        "solver.opt_state": "solver+replay",
    },
}  # fmt: skip


def words(method: str, cache: str) -> str:
    """What stands behind the colon of the config; `cache` is the folder of the scores' classifier."""
    return ",".join([*METHODS[method], f"evaluation.cache_dir={cache}"])
