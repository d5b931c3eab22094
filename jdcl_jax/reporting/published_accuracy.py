"""Published final average accuracies: JDCL, its ablations, GUIDE and joint training (arXiv 2411.08224), all [2nd].

Those on ImageNet100 are left out: a folder of images has no name by which a run could be told to be on it.
"""

from dataclasses import replace
from typing import Any

from jdcl_jax.reporting.protocol import Protocol, Published

SOURCE, TAG = "2411.08224", "2nd"

_CLASSES = {"cifar10": 10, "cifar100": 100}

# Data set, tasks, method, percent, and what is otherwise than in JDCL with all labels.
_TABLE: tuple[tuple[str, int, str, float, dict[str, Any]], ...] = (
    ("cifar10", 5, "jdcl", 83.69, {}),
    ("cifar10", 5, "jdcl", 68.4, {"classifier.kind": "separate"}),
    ("cifar10", 5, "jdcl", 48.2, {"method.distillation": False}),
    ("cifar10", 5, "jdcl", 78.93, {"data.label_fraction": 0.008}),
    ("cifar10", 5, "jdcl", 79.96, {"data.label_fraction": 0.05}),
    ("cifar10", 5, "joint", 86.41, {}),
    ("cifar10", 5, "guide", 64.47, {"method.scale": 0.5}),
    ("cifar100", 5, "jdcl", 47.95, {}),
    ("cifar100", 5, "joint", 73.07, {}),
    ("cifar100", 5, "guide", 41.66, {"method.scale": 0.5}),
    ("cifar100", 10, "jdcl", 29.04, {}),
    ("cifar100", 10, "jdcl", 22.19, {"data.label_fraction": 0.008}),
    ("cifar100", 10, "jdcl", 26.39, {"data.label_fraction": 0.05}),
    ("cifar100", 10, "joint", 64.15, {}),
    ("cifar100", 10, "guide", 26.13, {"method.scale": 1.0}),
)

_JDCL: dict[str, Any] = {
    "classifier.kind": "joint",
    "classifier.hidden": 1024,
    "classifier.weight": 0.001,
    "method.local": True,
    "method.distillation": True,
    "method.unlabelled": "fixmatch",
    "method.threshold": 0.95,
    "method.denoising_weight": 0.01,
    "method.class_weight": 1e-5,
    "method.distillation_weight": 2.0,
    "method.class_distillation_weight": 0.002,
    "method.class_delay": 10_000,
    "method.first_steps": 0,
    "method.replay_steps": 250,
    "model.channels": (128, 256, 256, 256),
    "model.layers_per_block": 3,
    "model.attention_resolutions": (16, 8),
    "model.dropout": 0.1,
    "diffusion.schedule": "linear",
    "diffusion.beta_start": 1e-3,
    "diffusion.beta_end": 0.02,
    "train.epochs": 0,
    "train.ema": 0.9999,
    "train.weight_decay": 0.01,
    "views.crop_scale": 0.85,
    "views.operations": 2,
    "views.magnitude": 10,
    "views.cutout": 0.5,
    "data.flip": True,
}
_GUIDE: dict[str, Any] = {
    "classifier.kind": "solver",
    "solver.network": "resnet18",
    "method.target": "new",
    "method.direction": "toward",
    "method.scale_schedule": "constant",
}
_OF_THE_DATA: dict[str, dict[str, Any]] = {
    "cifar10": {"train.steps": 50_000, "method.global_steps": 30_000, "method.quota": 1000},
    "cifar100": {"train.steps": 100_000, "method.global_steps": 70_000, "method.quota": 400},
}

_UNKNOWNS = ("the number of seeds", "images held out for validation, and how the model was chosen")
_OF_JDCL = (
    "whether the number was made as the paper says or as its code does (where local models begin, whose weights teach)",
)
_OF_GUIDE = ("the generator, its training and that of the classifier, and how many images are replayed how often",)
_OF_JOINT = ("network, length and optimiser of joint training, and whether it starts anew with every task",)


def _protocol(dataset: str, num_tasks: int, method: str, otherwise: dict[str, Any]) -> Protocol:
    known = Protocol(
        num_tasks=num_tasks,
        classes_per_task=_CLASSES[dataset] // num_tasks,
        label_order=True,
        image_size=32,
        settings={"data.label_fraction": 1.0},
    )
    if method == "joint":
        return known
    if method == "guide":
        return replace(known, settings={**known.settings, **_GUIDE, **otherwise})
    return replace(
        known,
        class_conditional=False,
        batch_size=256,
        optimizer="adamw",
        learning_rate=2e-4,
        timesteps=1000,
        prediction="eps",
        settings={**known.settings, **_JDCL, **_OF_THE_DATA[dataset], **otherwise},
    )


def accuracies() -> tuple[Published, ...]:
    """All of them; accuracy is a share, not percent, and any class may be answered."""
    return tuple(
        Published(
            dataset=dataset,
            method=method,
            score="accuracy",
            summary="average",
            value=round(percent / 100, 4),
            tag=TAG,
            source=SOURCE,
            protocol=_protocol(dataset, num_tasks, method, otherwise),
            unknowns=tuple(
                f"not stated: {what}"
                for what in (*_UNKNOWNS, *{"joint": _OF_JOINT, "guide": _OF_GUIDE}.get(method, _OF_JDCL))
            ),
        )
        for dataset, num_tasks, method, percent, otherwise in _TABLE
    )
