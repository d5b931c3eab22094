"""Why a number of a run's own record (results.json) may not stand beside a published one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jdcl_jax.reporting.protocol import Protocol, Published
from jdcl_jax.reporting.published import PUBLISHED, find, without_version

PUBLISHED_SUMMARIES = ("average", "rise")  # those of which papers give numbers


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
    return found + _setting_differences(published.protocol, results)


def published_cell(results: Mapping[str, Any], score: str, summary: str) -> str:
    """What a table may say of publications beside a run's `summary` ("average" or "rise") of `score`.

    A Frechet distance is set beside a published FID, accuracy beside accuracy; other scores have none. Of several
    published values that of the nearest protocol counts. Where the protocol differs, the text says in what and not the
    value, which would be read as comparable.

    Returns:
      "none for digits"; "none published"; "another protocol: DIFFERENCE; DIFFERENCE; ..."; or "19.1 [2nd, 2509.23593],
      same protocol where stated", with "; not its length" where even that is not.
    """
    dataset = without_version(str(results["dataset"]))
    if dataset not in {entry.dataset for entry in PUBLISHED}:
        return f"none for {dataset}"
    found = find(dataset, str(results["method"]), summary, published_score(score))
    if not found:
        return "none published"
    compared = [(protocol_differences(published, results, score), published) for published in found]
    differences, published = min(compared, key=lambda one: len(one[0]))
    if not differences:
        length = "" if published.protocol.epochs or "train.steps" in published.protocol.settings else "; not its length"
        return f"{published.cite()}, same protocol where stated{length}"
    return f"another protocol: {'; '.join(differences)}"


def published_score(score: str) -> str:
    """The score that publications report in the place of one of ours: a Frechet distance is set beside a FID."""
    return "fid" if score.startswith("fd_") else score


def _subject_differences(published: Published, results: Mapping[str, Any], score: str | None) -> list[str]:
    """Other things than those that were published on."""
    names = list(results.get("scores") or {})
    if score is None:
        score = published.score if published.score in names else next(iter(names), "none")
    dataset = without_version(str(results.get("dataset")))
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


def _setting_differences(protocol: Protocol, results: Mapping[str, Any]) -> list[str]:
    found = []
    for key, theirs in protocol.settings.items():
        ours = _setting(key)(results)
        ours = tuple(ours) if isinstance(ours, list) else ours
        if ours is None:
            found.append(f"{key} not recorded")
        elif ours != theirs:
            found.append(f"{key}={_short(ours)} instead of {_short(theirs)}")
    return found


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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


_OWN_SIDE = {"cifar10": 32, "cifar100": 32, "imagenet_resized/32x32": 32}


def _side(results: Mapping[str, Any]) -> int | None:
    """Side of the images; 0 is the data's own."""
    side = _setting("data.image_size")(results)
    return _OWN_SIDE.get(without_version(str(results.get("dataset"))), 0) if side == 0 else side


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
