"""What publications report, and how it was made as far as that is known.

A published value is worth comparing with only if it was made in the same way (`comparable.py`). What a publication does
not state cannot be checked: it is named in `unknowns`, and agreement is never claimed for it.

All values here are from the table of arXiv 2509.23593: its own methods [paper], and the baselines as it reports them
[2nd].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """How a published value was made; None is "not stated", or has no meaning for the method.

    Attributes:
      num_tasks: tasks of the sequence.
      classes_per_task: the same for every task.
      label_order: classes come in the order of their labels.
      image_size: side of the square images, in pixels.
      class_conditional: the denoiser is told the class.
      stored_per_class: teacher samples of each old class, drawn once a task; 0 would be fresh ones at each step.
      distil_on: "renoised": teacher samples are noised again before they are distilled.
      stop_snr: signal-to-noise ratio at which the teacher's reverse process stops; 0 lets it end.
      replay_timesteps: how the timesteps of replayed images are drawn.
      weighting: "sum" if the losses of current and replayed images are added.
      replay_weight: what the loss of replayed images is multiplied by besides.
      penalty_strength: lambda of the rank-1 penalty.
      penalty_form: its curvature, "mean" for E[(mu . g)^2] / |mu|^4.
      penalty_rank: its directions a task.
      compute_matched: joint training spends more steps on later tasks.
      epochs: passes over each task's data.
      batch_size: images of the current task in one step.
      optimizer: its name.
      learning_rate: its rate.
      timesteps: T of the diffusion.
      prediction: what the network says.
      sampler: its kind and its steps, for the scored images.
    """

    num_tasks: int
    classes_per_task: int | None = None
    label_order: bool | None = None
    image_size: int | None = None
    class_conditional: bool | None = None
    stored_per_class: int | None = None
    distil_on: str | None = None
    stop_snr: float | None = None
    replay_timesteps: str | None = None
    weighting: str | None = None
    replay_weight: float | None = None
    penalty_strength: float | None = None
    penalty_form: str | None = None
    penalty_rank: int | None = None
    compute_matched: bool | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    timesteps: int | None = None
    prediction: str | None = None
    sampler: tuple[str, int] | None = None


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
      dataset: a name as in `data.name`.
      method: a canonical method name, such as "rank1_ewc+gd".
      score: a name as in `evaluation.scores`.
      summary: "average", the final mean over tasks of the per-task value; or "rise", the mean over tasks of its
        increase since the task was learned.
      value: the number, in the score's unit.
      tag: "paper" if from the method's own paper, "2nd" if reported by another publication.
      source: arXiv number of the publication that prints it.
      protocol: what is known of how it was made.
      unknowns: what is not, each as "not stated: ...".
    """

    dataset: str
    method: str
    score: str
    summary: str
    value: float
    tag: str
    source: str
    protocol: Protocol
    unknowns: tuple[str, ...]

    def cite(self) -> str:
        """The value as it may be printed, never without its tag and source: "19.1 [2nd, 2509.23593]"."""
        return f"{self.value:g} [{self.tag}, {self.source}]"


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


def _all_published() -> tuple[Published, ...]:
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


PUBLISHED = _all_published()


def find(dataset: str, method: str, summary: str) -> Published | None:
    """The published value of a data set (with or without a TFDS version), method and summary, if there is one."""
    for entry in PUBLISHED:
        if (entry.dataset, entry.method, entry.summary) == (without_version(dataset), method, summary):
            return entry
    return None


def unstated(dataset: str, methods: Sequence[str]) -> list[str]:
    """What the publications leave open about a data set's values of these methods, each as "not stated: ..."."""
    own = [entry for entry in PUBLISHED if entry.dataset == without_version(dataset) and entry.method in methods]
    return list(dict.fromkeys(unknown for entry in own for unknown in entry.unknowns))


def without_version(dataset: str) -> str:
    """A TFDS name without ":1.2.3"; npz:PATH and folder:PATH as they are."""
    name = dataset.partition(":")[0]
    return dataset if name in ("npz", "folder") else name
