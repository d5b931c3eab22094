"""Why the numbers of several runs may not be compared."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jdcl_jax.reporting.runs import MACHINE_KEYS, Run

# Keys of a config that may differ between two seeds of one method.
_FREE = ("seed", *MACHINE_KEYS)
# Sections of a config that say how scores are made, whatever the method.
_SCORING = ("evaluation", "sampler", "diffusion")
_SHOWN = 6  # runs named in one warning, and keys


def warnings(runs: Sequence[Run]) -> list[str]:
    """A line for each reason for which these runs' numbers do not mean the same; [] if none.

    Looked at: status and data set; then, among the runs of one data set, where its pixels come
    from, tasks, commits and versions, raw or EMA weights, what "reduced" says, the scores, their directions,
    descriptions and formulas, their numbers of evaluated samples, and the config's scoring sections;
    then, among runs of one data set and method, the rest of the config, repeated seeds, and scores
    that some of the seeds have no number of.
    """
    found = [
        f"{run.name} is {run.results['status']}, not finished: left out of all means"
        for run in runs
        if not run.finished
    ]
    found += _differ("data sets", runs, lambda run: run.dataset)
    for dataset in dict.fromkeys(run.dataset for run in runs):
        same = [run for run in runs if run.dataset == dataset]
        for what, fact in _FACTS.items():
            found += _differ(what, same, fact)
        found += _scores(same)
    for (dataset, method), group in groups(runs).items():
        found += _within(f"{method} on {dataset}", group)
    return found


def _scores(runs: Sequence[Run]) -> list[str]:
    """What keeps scores from being compared; scores with the same trouble share a line."""
    troubles: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.scores):
        having = [run for run in runs if name in run.scores]
        lacking = [run.name for run in runs if name not in run.scores]
        if lacking:
            troubles.setdefault(("no score", f"in {_some(lacking)}"), []).append(name)
        for what, fact in _SCORE_FACTS.items():
            whose = [run for run in having if run.finished or what != "formulas"]
            sides = _sides(whose, partial(fact, name))
            if sides:
                troubles.setdefault((f"different {what} of", sides), []).append(name)
    return [
        f"{what} {', '.join(names)}{' ' if what == 'no score' else ': '}{sides}"
        for (what, sides), names in troubles.items()
    ]


def groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs by (data set, method), in the order given."""
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.dataset, run.method), []).append(run)
    return grouped


def hardware(runs: Sequence[Run]) -> list[str]:
    """A line if the runs ran on different devices: scores can be compared, seconds not."""
    return [
        f"{line}; compare images and model FLOPs, not seconds"
        for line in _differ("hardware", runs, lambda run: run.results.get("hardware"))
    ]


def _section(name: str, run: Run) -> dict[str, str]:
    config = _flat(run.results.get("config") or {})
    return {key: value for key, value in config.items() if key.startswith(f"{name}.")}


def _tasks(run: Run) -> Any:
    keys = ("task", "classes", "names", "domains", "train", "test")
    return [[task.get(key) for key in keys] for task in run.results["tasks"]]


def _samples(name: str, run: Run) -> Any:
    score = run.scores[name]
    return [score.num_generated, score.num_real]


def _definition(name: str, run: Run) -> Any:
    score = run.scores[name]
    return [score.lower_is_better, score.description]


def _formulas(name: str, run: Run) -> Any:
    return {key: summary.formula for key, summary in run.scores[name].summary.items()}


# What has to be the same in all runs of a data set.
_FACTS: Mapping[str, Callable[[Run], Any]] = {
    "origins of the pixels": lambda run: run.results.get("provenance"),
    "tasks (classes, order or numbers of examples)": _tasks,
    "data or classifiers behind the scores": lambda run: run.results.get("instrument"),
    "commits": lambda run: run.results.get("commits") or [run.results.get("commit")],
    "versions": lambda run: run.results.get("versions"),
    "weights scored": lambda run: run.results.get("weights"),
    "reductions": lambda run: run.results.get("reduced") or "none",
    **{f"settings of {part}": partial(_section, part) for part in _SCORING},
}
_SCORE_FACTS: Mapping[str, Callable[[str, Run], Any]] = {
    "numbers of evaluated samples": _samples,
    "definitions": _definition,
    "formulas": _formulas,
}


def _differ(what: str, runs: Sequence[Run], fact: Callable[[Run], Any]) -> list[str]:
    """[] if `fact` is the same in all runs, else one line that says who has what."""
    sides = _sides(runs, fact)
    return [f"different {what}: {sides}"] if sides else []


def _sides(runs: Sequence[Run], fact: Callable[[Run], Any]) -> str:
    """The runs by their `fact`, and the fact where it is short; "" if it is the same in all."""
    holders: dict[str, list[str]] = {}
    for run in runs:
        value = json.dumps(fact(run), sort_keys=True, default=str, ensure_ascii=False)
        holders.setdefault(value, []).append(run.name)
    if len(holders) <= 1:
        return ""
    return " / ".join(
        _some(names) + (f" ({value.strip(chr(34))})" if len(value) <= 60 else "") for value, names in holders.items()
    )


def _within(label: str, group: Sequence[Run]) -> Iterator[str]:
    """What sets runs of one data set and method apart besides the seed."""
    configs = [_flat(run.results.get("config") or {}) for run in group]
    keys = dict.fromkeys(key for config in configs for key in config if key.split(".")[0] not in _SCORING)
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    if differing:
        yield f"runs of {label} differ in more than the seed, yet are averaged: {_some(differing)}"
    seeds = [str(run.seed) for run in group]
    twice = list(dict.fromkeys(seed for seed in seeds if seeds.count(seed) > 1))
    if twice:
        yield f"runs of {label} share a seed and are not independent: seed {_some(twice)}"
    yield from _lost(label, [run for run in group if run.finished])


def _lost(label: str, finished: Sequence[Run]) -> Iterator[str]:
    """Seeds that fall out of means which the others are in, a line for each set of seeds."""
    lost: dict[tuple[str, ...], dict[str, None]] = {}
    for score in dict.fromkeys(name for run in finished for name in run.scores):
        having = [run for run in finished if score in run.scores]
        for summary in dict.fromkeys(key for run in having for key in run.scores[score].summary):
            without = tuple(run.name for run in having if not _known(run, score, summary))
            if 0 < len(without) < len(having):
                lost.setdefault(without, {})[score] = None
    for names, scores in lost.items():
        yield f"{label}: no number of {', '.join(scores)} in {_some(names)}, so some means are over fewer seeds"


def _known(run: Run, score: str, summary: str) -> bool:
    found = run.scores[score].summary.get(summary)
    return found is not None and math.isfinite(found.value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A config as dotted keys and JSON values, without those that may differ."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in _FREE:
            flat[f"{prefix}{key}"] = json.dumps(value, sort_keys=True, default=str)
    return flat


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
