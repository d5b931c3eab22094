"""Published final average accuracies: JDCL, its ablations and joint training (arXiv 2411.08224), all [2nd].

Those on ImageNet100 are left out: a folder of images has no name by which a run could be told to be on it.
"""

from dataclasses import replace
from typing import Any

from jdcl_jax.reporting.protocol import Protocol, Published

SOURCE, TAG = "2411.08224", "2nd"

# Data set, tasks, method, percent, and what of JDCL is otherwise.
_TABLE: tuple[tuple[str, int, str, float, dict[str, Any]], ...] = (
    ("cifar10", 5, "jdcl", 83.69, {}),
    ("cifar10", 5, "jdcl", 68.4, {"classifier": "separate"}),
    ("cifar10", 5, "jdcl", 48.2, {"distillation": False}),
    ("cifar10", 5, "jdcl", 78.93, {"label_fraction": 0.008}),
    ("cifar10", 5, "jdcl", 79.96, {"label_fraction": 0.05}),
    ("cifar10", 5, "joint", 86.41, {}),
    ("cifar100", 5, "jdcl", 47.95, {}),
    ("cifar100", 5, "joint", 73.07, {}),
    ("cifar100", 10, "jdcl", 29.04, {}),
    ("cifar100", 10, "jdcl", 22.19, {"label_fraction": 0.008}),
    ("cifar100", 10, "jdcl", 26.39, {"label_fraction": 0.05}),
    ("cifar100", 10, "joint", 64.15, {}),
)
_CLASSES = {"cifar10": 10, "cifar100": 100}
_SCHEDULES = {
    "cifar10": {"quota": 1000, "steps": (50_000, 30_000)},
    "cifar100": {"quota": 400, "steps": (100_000, 70_000)},
}

_UNKNOWNS = ("the number of seeds", "images held out for validation, and how the model was chosen")
_OF_JDCL = (
    "whether the number was made as the paper says or as its code does (where local models begin, whose weights teach)",
)
_OF_JOINT = ("network, length and optimiser of joint training, and whether it starts anew with every task",)


def _protocol(dataset: str, num_tasks: int, method: str, otherwise: dict[str, Any]) -> Protocol:
    known = Protocol(
        num_tasks=num_tasks,
        classes_per_task=_CLASSES[dataset] // num_tasks,
        label_order=True,
        image_size=32,
        label_fraction=1.0,
    )
    if method == "joint":
        return known
    jdcl: dict[str, Any] = {
        "class_conditional": False,
        "classifier": "joint",
        "distillation": True,
        "batch_size": 256,
        "optimizer": "adamw",
        "learning_rate": 2e-4,
        "timesteps": 1000,
        "prediction": "eps",
    }
    return replace(known, **{**jdcl, **_SCHEDULES[dataset], **otherwise})


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
                f"not stated: {what}" for what in (*_UNKNOWNS, *(_OF_JOINT if method == "joint" else _OF_JDCL))
            ),
        )
        for dataset, num_tasks, method, percent, otherwise in _TABLE
    )
