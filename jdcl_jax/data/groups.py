"""Which classes come in which task; tasks count from 1 in every message."""

import difflib
import re

import numpy as np

from jdcl_jax.errors import UserError

# The class orders of the three seeds of generative distillation [code]: five tasks of two classes.
GD_ORDERS = {
    "gd-42": (2, 6, 1, 8, 4, 5, 0, 9, 3, 7),
    "gd-69": (0, 2, 3, 5, 4, 1, 6, 9, 8, 7),
    "gd-1714": (7, 3, 8, 0, 1, 4, 6, 2, 9, 5),
}
SIZES = re.compile(r"\d+(x\d+)?(\+\d+(x\d+)?)*", re.ASCII)
NUMBERS = re.compile(r"\d+(,\d+)*", re.ASCII)
# What a random stream is for, so that one seed never serves two purposes.
ORDER_STREAM, VALIDATION_STREAM, LABEL_STREAM = 1, 2, 3

Groups = tuple[tuple[int, ...], ...]


def task_groups(
    num_classes: int,
    *,
    num_tasks: int = 0,
    groups: str = "",
    order: str = "natural",
    seed: int = 0,
    first_tasks: int = 0,
) -> Groups:
    """Divides classes 0..num_classes-1 into tasks.

    Args:
      num_classes: C, the number of classes of the data set.
      num_tasks: Number of tasks of equal size; 0 where `groups` says it.
      groups: Either sizes, SIZE or SIZExTIMES joined by "+", which `order` fills with classes:
        "50+10x5" is a task of 50 classes, then five of 10; "2x5" is five tasks of 2. Or the classes
        themselves: "2,6|1,8|4,5|0,9|3,7".
      order: Order of the classes: "natural" (0, 1, 2, ...); "shuffled" (by `seed`); "shuffled:7"
        (by seed 7); "gd-42", "gd-69" or "gd-1714" (five tasks of two [code]); or the classes
        themselves, "3,1,2,0".
      seed: Seed of "shuffled".
      first_tasks: Keep only so many tasks from the start of the sequence; the classes of the others
        take no part in the run. 0 keeps all.

    Returns:
      One tuple of classes for each task; no class is in two, and, unless `first_tasks` cuts the
      sequence, every class is in one.

    Raises:
      UserError: Malformed or contradictory arguments, a class in two tasks or in none, more tasks
        than classes.
    """
    groups = groups.replace(" ", "")
    if bool(groups) == bool(num_tasks):
        raise UserError(
            f"tasks: num_tasks is {num_tasks} and groups is {groups!r}: give exactly one of them (the other as 0 or '')"
        )
    if "|" in groups or "," in groups:
        if order != "natural":
            raise UserError(
                f"tasks: groups {groups!r} and order {order!r} both say which classes come when: "
                "set order to 'natural', or give groups as sizes, such as '2x5'"
            )
        result = _explicit_groups(groups, num_classes)
    else:
        sizes = _sizes(groups, num_classes) if groups else _equal_sizes(num_tasks, num_classes)
        classes = _class_order(order, num_classes, sizes, seed)
        ends = np.cumsum(sizes)
        result = tuple(classes[end - size : end] for size, end in zip(sizes, ends.tolist(), strict=True))
    if not 0 <= first_tasks <= len(result):
        raise UserError(
            f"tasks: first_tasks is {first_tasks} of {len(result)} tasks: write 1..{len(result)}, or 0 for all"
        )
    return result[: first_tasks or None]


def _equal_sizes(num_tasks: int, num_classes: int) -> list[int]:
    if not 1 <= num_tasks <= num_classes:
        raise UserError(f"tasks: num_tasks is {num_tasks} with {num_classes} classes: write 1..{num_classes}")
    if num_classes % num_tasks:
        possible = [str(n) for n in range(1, num_classes + 1) if num_classes % n == 0]
        raise UserError(
            f"tasks: {num_classes} classes do not divide into {num_tasks} equal tasks: "
            f"num_tasks can be {', '.join(possible)}; or give groups, such as '50+10x5'"
        )
    return [num_classes // num_tasks] * num_tasks


def _sizes(groups: str, num_classes: int) -> list[int]:
    """Sizes of the tasks of "50+10x5"."""
    if not SIZES.fullmatch(groups):
        raise UserError(
            f"tasks: cannot read groups {groups!r}: write sizes, such as '50+10x5' or '2x5', "
            "or classes, such as '2,6|1,8|4,5|0,9|3,7'"
        )
    parts = [term.partition("x") for term in groups.split("+")]
    terms = [(int(size), int(times or 1)) for size, _, times in parts]
    total = sum(size * times for size, times in terms)
    if min(min(term) for term in terms) < 1 or total != num_classes:
        raise UserError(
            f"tasks: groups {groups!r} takes {total} classes but the data set has {num_classes}: "
            "write sizes of 1 or more that sum to it"
        )
    return [size for size, times in terms for _ in range(times)]


def _explicit_groups(groups: str, num_classes: int) -> Groups:
    parts = groups.split("|")
    for task, part in enumerate(parts, start=1):
        if not NUMBERS.fullmatch(part):
            raise UserError(
                f"tasks: cannot read task {task} of groups {groups!r}, {part!r}: "
                "write class numbers with commas, tasks apart by '|', such as '2,6|1,8'"
            )
    result = tuple(tuple(int(c) for c in part.split(",")) for part in parts)
    task_of: dict[int, int] = {}
    for task, classes in enumerate(result, start=1):
        for c in classes:
            if c >= num_classes:
                raise UserError(
                    f"tasks: class {c} in task {task} does not exist: the data set has the classes 0..{num_classes - 1}"
                )
            if c in task_of:
                raise UserError(
                    f"tasks: class {c} is in task {task_of[c]} and again in task {task}: "
                    "every class belongs to exactly one task"
                )
            task_of[c] = task
    _refuse_missing(task_of, num_classes, f"groups {groups!r}")
    return result


def _refuse_missing(present: dict[int, int], num_classes: int, where: str) -> None:
    missing = [str(c) for c in range(num_classes) if c not in present]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise UserError(
            f"tasks: class {', '.join(missing[:10])}{more} is in no task of {where}: name every "
            "class, and set first_tasks to leave the last tasks out"
        )


def _class_order(order: str, num_classes: int, sizes: list[int], seed: int) -> tuple[int, ...]:
    name, colon, number = order.replace(" ", "").partition(":")
    if name == "shuffled" and (not colon or number.isdecimal()):
        random = random_stream(int(number) if colon else seed, ORDER_STREAM)
        return tuple(random.permutation(num_classes).tolist())
    if order == "natural":
        return tuple(range(num_classes))
    if order in GD_ORDERS:
        if sizes != [2] * 5:
            raise UserError(
                f"tasks: order {order!r} is for 10 classes in five tasks of two, here are "
                f"{num_classes} classes in {len(sizes)} tasks: set num_tasks to 5, or another order"
            )
        return GD_ORDERS[order]
    if NUMBERS.fullmatch(name) and not colon:
        return _explicit_order(order, [int(c) for c in name.split(",")], num_classes)
    known = ["natural", "shuffled", *GD_ORDERS]
    close = difflib.get_close_matches(order, known, n=1)
    hint = f"write {', '.join(known)}, shuffled:SEED or every class number, such as '3,1,2,0'"
    if close:
        hint = f"did you mean {close[0]!r}?"
    raise UserError(f"tasks: order {order!r} is unknown: {hint}")


def _explicit_order(order: str, classes: list[int], num_classes: int) -> tuple[int, ...]:
    twice = sorted({c for c in classes if classes.count(c) > 1})
    outside = sorted({c for c in classes if c >= num_classes})
    if twice or outside:
        what = f"{twice[0]} twice" if twice else f"{outside[0]}, which does not exist"
        raise UserError(f"tasks: order {order!r} names class {what}: write each of 0..{num_classes - 1} exactly once")
    _refuse_missing(dict.fromkeys(classes, 1), num_classes, f"order {order!r}")
    return tuple(classes)


def random_stream(seed: int, *names: int) -> np.random.Generator:
    """The random numbers of this seed for this purpose; `UserError` if the seed is negative."""
    if seed < 0:
        raise UserError(f"seed is {seed}: write 0 or more")
    return np.random.default_rng([seed, *names])
