"""What publications report, and why a number of ours may not stand beside it.

A published value is worth comparing with only if it was made in the same way. So each one carries the protocol that is
known of it, and a run's own record (results.json) says where it departs. What a publication does not state cannot be
checked: it is named in `unknowns`, and agreement is never claimed for it.

All values here are from the table of arXiv 2509.23593: its own methods [paper], and the baselines as it reports them
[2nd].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_IN_A_CELL = 3  # differences written out in one cell of a table


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
        if (entry.dataset, entry.method, entry.summary) == (_without_version(dataset), method, summary):
            return entry
    return None


def protocol_differences(published: Published, results: Mapping[str, Any], score: str | None = None) -> list[str]:
    """What keeps a run's number from being compared with a published one, the weightiest first; [] if nothing known.

    Args:
      published: the published value.
      results: the tree of results.json.
      score: the run's score beside which the value is to stand; by default the published one, or the run's first if it
        has not got that.

    Returns:
      Short phrases, such as "unconditional instead of class-conditional". A setting that the run does not record counts
      as a difference.
    """
    found = [*_subject_differences(published, results, score), *_task_differences(published.protocol, results)]
    for name, (read, subject, words) in _FACTS.items():
        theirs = getattr(published.protocol, name)
        if theirs is None:
            continue
        ours = read(results)
        if ours is None:
            found.append(f"{name.replace('_', ' ')} not recorded")
        elif ours != theirs:
            found.append(f"{subject}{words(ours)} instead of {words(theirs)}")
    return found


def published_cell(results: Mapping[str, Any], score: str, summary: str) -> str:
    """What a table may say of publications beside a run's `summary` ("average" or "rise") of `score`.

    Only a Frechet distance is set beside a published FID; other scores have none. Where the protocol differs, the text
    begins with that, so that the value is not read as comparable.

    Returns:
      "none for digits"; "none published"; "another protocol (DIFFERENCE; ...; N more): 19.1 [2nd, 2509.23593]"; or
      "19.1 [2nd, 2509.23593], same protocol where stated".
    """
    dataset = _without_version(str(results["dataset"]))
    if dataset not in {entry.dataset for entry in PUBLISHED}:
        return f"none for {dataset}"
    published = find(dataset, str(results["method"]), summary)
    if published is None or not (score == published.score or score.startswith("fd_")):
        return "none published"
    differences = protocol_differences(published, results, score)
    if not differences:
        return f"{published.cite()}, same protocol where stated"
    shown, more = differences[:_IN_A_CELL], len(differences) - _IN_A_CELL
    return f"another protocol ({'; '.join(shown)}{f'; {more} more' if more > 0 else ''}): {published.cite()}"


def _without_version(dataset: str) -> str:
    """A TFDS name without ":1.2.3"; npz:PATH and folder:PATH as they are."""
    name = dataset.partition(":")[0]
    return dataset if name in ("npz", "folder") else name


def _subject_differences(published: Published, results: Mapping[str, Any], score: str | None) -> list[str]:
    """Other things than those that were published on."""
    names = list(results.get("scores") or {})
    if score is None:
        score = published.score if published.score in names else next(iter(names), "none")
    dataset = _without_version(str(results.get("dataset")))
    found = []
    if score != published.score:
        found.append(f"other score: {score} instead of {published.score}")
    if dataset != published.dataset:
        found.append(f"{dataset} instead of {published.dataset}")
    if results.get("method") != published.method:
        found.append(f"{results.get('method')} instead of {published.method}")
    if results.get("status") != "finished":
        found.append("the run is not finished")
    return found


def _task_differences(protocol: Protocol, results: Mapping[str, Any]) -> list[str]:
    groups = [sorted(task["classes"]) for task in results["tasks"]]
    classes = [c for group in groups for c in group]
    number, wanted, size = len(groups), protocol.num_tasks, protocol.classes_per_task
    same_size = size is not None and all(len(group) == size for group in groups)
    found = []
    if number < wanted and same_size:
        found.append(f"reduced: {number} of {wanted} tasks")
    elif number != wanted:
        found.append(f"{number} tasks instead of {wanted}")
    if size is not None and not same_size:
        found.append(f"tasks of {_some([len(group) for group in groups])} classes instead of {size}")
    if protocol.label_order and classes != list(range(len(classes))):
        found.append(f"classes in the order {_some(classes)} instead of label order")
    return found


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")


def _setting(key: str, default: Any = None) -> Callable[[Mapping[str, Any]], Any]:
    """Reads a dotted key of a run's config; `default` if the run does not record it."""

    def read(results: Mapping[str, Any]) -> Any:
        value: Any = results.get("config")
        for part in key.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    return read


def _side(results: Mapping[str, Any]) -> int | None:
    """Side of the images; 0, the data's own, is in the name of a resized data set."""
    side = _setting("data.image_size")(results)
    return 32 if side == 0 and _without_version(str(results.get("dataset"))).endswith("/32x32") else side


def _stored(results: Mapping[str, Any]) -> int | None:
    """Stored samples per class; 0 if fresh ones are drawn."""
    if _setting("method.replay", "fresh")(results) == "fresh":
        return 0
    return _setting("method.stored_per_class")(results)


def _replay_timesteps(results: Mapping[str, Any]) -> str:
    kind, least = _setting("method.timesteps", "uniform")(results), _setting("method.t_min", 0)(results)
    return f"{kind} from {least} on" if least else str(kind)


def _length(results: Mapping[str, Any]) -> int | str | None:
    """Epochs a task, or in words the steps of a run that counts those."""
    epochs, steps = _setting("train.epochs", 0)(results), _setting("train.steps")(results)
    return epochs or (None if steps is None else f"{steps:,} steps a task")


def _sampler(results: Mapping[str, Any]) -> tuple[str, int] | None:
    kind, steps, eta = (_setting(f"sampler.{key}")(results) for key in ("kind", "steps", "eta"))
    if kind is None or steps is None:
        return None
    return (f"{kind} with eta {eta:g}" if eta else kind), steps


# Field of `Protocol` -> how to read it from a run, and its words: a subject, then ours instead of theirs. The order is
# that of importance. A default stands for what a run did before there was such a setting.
_FACTS: dict[str, tuple[Callable[[Mapping[str, Any]], Any], str, Callable[[Any], str]]] = {
    "class_conditional": (
        _setting("model.class_conditional"),
        "",
        lambda told: "class-conditional" if told else "unconditional",
    ),
    "image_size": (_side, "", lambda side: f"{side}x{side} images" if side else "images of their own size"),
    "stored_per_class": (
        _stored,
        "teacher samples ",
        lambda number: f"{number:,} stored per class" if number else "fresh at each step",
    ),
    "distil_on": (_setting("method.distil_on", "renoised"), "distilled on ", str),
    "stop_snr": (_setting("method.stop_snr", 0.0), "reverse process stopped at SNR ", "{:g}".format),
    "replay_timesteps": (_replay_timesteps, "timesteps of replay ", str),
    "compute_matched": (
        _setting("method.compute_matched", False),
        "",
        lambda matched: "more steps on later tasks" if matched else "as many on all",
    ),
    "epochs": (_length, "", lambda length: length if isinstance(length, str) else f"{length} epochs"),
    "penalty_strength": (_setting("method.rank1_ewc.strength"), "penalty strength ", "{:,g}".format),
    "penalty_form": (_setting("method.rank1_ewc.form"), "penalty form ", str),
    "penalty_rank": (_setting("method.rank1_ewc.rank"), "penalty rank ", str),
    "weighting": (_setting("method.weighting"), "losses weighted ", str),
    "replay_weight": (_setting("method.replay_weight"), "replay weight ", "{:g}".format),
    "batch_size": (_setting("train.batch_size"), "batch ", str),
    "optimizer": (_setting("train.optimizer"), "", str),
    "learning_rate": (_setting("train.learning_rate"), "learning rate ", "{:g}".format),
    "timesteps": (_setting("diffusion.timesteps"), "T = ", str),
    "prediction": (_setting("diffusion.prediction"), "", lambda kind: f"{kind}-prediction"),
    "sampler": (_sampler, "", lambda sampler: f"{sampler[0]} of {sampler[1]} steps"),
}
