"""Why the numbers of several runs may not be compared."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jdcl_jax.reporting.runs import Run

# Parts of a config that may differ between two seeds of one method.
_FREE = ("seed", "workdir")
# Parts of a config that say how scores are made, whatever the method.
_SCORING = ("evaluation", "scores", "sampling")
_SHOWN = 6  # runs named in one warning, and keys


def warnings(runs: Sequence[Run]) -> list[str]:
    """A line for each reason for which these runs' numbers do not mean the same; [] if none.

    Looked at: status and data set; then, among the runs of one data set, where its pixels come
    from, tasks, commits and versions, raw or EMA weights, what "reduced" says, the scores, their directions,
    descriptions and formulas, their numbers of evaluated samples, and the config's scoring parts;
    then, among runs of one data set and method, the rest of the config and repeated seeds.
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


def _config_part(part: str, run: Run) -> Any:
    return (run.results.get("config") or {}).get(part)


def _tasks(run: Run) -> Any:
    keys = ("task", "classes", "names", "train", "test")
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
    **{f"settings of {part}": partial(_config_part, part) for part in _SCORING},
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
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    if differing:
        yield f"runs of {label} differ in more than the seed, yet are averaged: {_some(differing)}"
    seeds = [str(run.seed) for run in group]
    twice = list(dict.fromkeys(seed for seed in seeds if seeds.count(seed) > 1))
    if twice:
        yield f"runs of {label} share a seed and are not independent: seed {_some(twice)}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A config as dotted keys and JSON values, without the parts that are looked at elsewhere."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if not prefix and key in _FREE + _SCORING:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, sort_keys=True, default=str)
    return flat


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
