"""Published FIDs: the table of arXiv 2509.23593, its own methods [paper] and the baselines as it reports them [2nd]."""

from typing import Any

from jdcl_jax.reporting.protocol import Protocol, Published

_IMAGENET = "imagenet_resized/32x32"  # TFDS's name of ImageNet-1k at 32x32

# Data set, method, average, rise (None: not given), tag.
_TABLE: tuple[tuple[str, str, float, float | None, str], ...] = (
    ("mnist", "joint", 2.6, None, "2nd"),
    ("mnist", "gd", 10.1, 2.3, "2nd"),
    ("mnist", "ewc+gd", 14.3, 5.2, "paper"),
    ("mnist", "rank1_ewc+gd", 7.6, 0.6, "paper"),
    ("fashion_mnist", "joint", 5.7, None, "2nd"),
    ("fashion_mnist", "finetune", 104.0, 88.0, "2nd"),
    ("fashion_mnist", "gd", 19.1, 3.9, "2nd"),
    ("fashion_mnist", "ewc+gd", 27.7, 9.1, "paper"),
    ("fashion_mnist", "rank1_ewc+gd", 15.4, 0.9, "paper"),
    ("cifar10", "joint", 23.3, None, "2nd"),
    ("cifar10", "finetune", 115.4, 72.5, "2nd"),
    ("cifar10", "gd", 61.2, 16.6, "2nd"),
    ("cifar10", "ewc+gd", 72.6, 17.9, "paper"),
    ("cifar10", "rank1_ewc+gd", 50.5, 7.4, "paper"),
    (_IMAGENET, "ewc+gd", 73.8, 25.8, "paper"),
    (_IMAGENET, "rank1_ewc+gd", 48.5, 15.2, "paper"),
)


def _protocol(dataset: str, method: str) -> Protocol:
    """The protocol of the table; on ImageNet-1k only the tasks, the image size and the methods themselves are known."""
    facts: dict[str, Any] = {"prediction": "eps"}
    if dataset == _IMAGENET:
        facts |= {"num_tasks": 20, "image_size": 32}
    else:
        facts |= {"num_tasks": 5, "classes_per_task": 2, "label_order": True, "class_conditional": True}
        facts |= {"epochs": 200, "batch_size": 128, "optimizer": "adam", "learning_rate": 2e-4}
        facts |= {"timesteps": 1000, "sampler": ("ddim", 50)}
    if dataset == "cifar10":
        facts |= {"image_size": 32}  # its own
    if method == "joint":
        facts |= {"compute_matched": False}
    if method.endswith("gd"):
        facts |= {"distil_on": "renoised", "stop_snr": 0.0, "replay_timesteps": "uniform"}
        facts |= {"stored_per_class": 5000} if dataset != _IMAGENET else {}
    if method == "rank1_ewc+gd":
        facts |= {"weighting": "sum", "replay_weight": 1.0}
        facts |= {"penalty_strength": 15_000.0, "penalty_form": "mean", "penalty_rank": 1}
    return Protocol(**facts)


def _unknowns(dataset: str, method: str, summary: str) -> tuple[str, ...]:
    unknowns = [
        "which Inception port, how many generated images and which real ones are behind the FID",
        "guidance of the sampler, and how generated images are matched with tasks",
        "the network",
        "the noise schedule",
        "learning-rate schedule, clipping of gradients and averaging of weights",
        "random flips and images held out for validation",
        "the number of seeds",
    ]
    if dataset == _IMAGENET:
        unknowns += ["the conditioning, replay and training settings on ImageNet-1k"]
    else:
        unknowns += ["the image size"] if dataset != "cifar10" else []
    if method == "joint":
        unknowns += ["whether joint training starts anew on the data of all tasks"]
        unknowns += ["what an epoch of joint training goes through (here as many images as the current task has)"]
    if method.endswith("gd"):
        unknowns += ["the teacher's sampler"]
    if method in ("gd", "ewc+gd"):
        unknowns += ["how the losses of current and replayed images are weighed"]
    if method == "ewc+gd":
        unknowns += ["strength and estimate of the penalty"]
    if method == "rank1_ewc+gd":
        unknowns += ["how many examples estimate the penalty"]
    if summary == "rise":
        unknowns += ["whether the last task, which cannot rise, counts in the mean"]
    return tuple(f"not stated: {what}" for what in unknowns)


def frechet_distances() -> tuple[Published, ...]:
    """The whole table."""
    return tuple(
        Published(
            dataset=dataset,
            method=method,
            score="fid",
            summary=summary,
            value=value,
            tag=tag,
            source="2509.23593",
            protocol=_protocol(dataset, method),
            unknowns=_unknowns(dataset, method, summary),
        )
        for dataset, method, average, rise, tag in _TABLE
        for summary, value in (("average", average), ("rise", rise))
        if value is not None
    )
