"""Which classes, or which domains, come in which task; tasks count from 1 in every message."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Items:
    """What is divided among the tasks: its numbers, and words for it in messages."""

    numbers: tuple[int, ...]
    one: str
    many: str
    sizes: str  # an example of sizes
    explicit: str  # an example of explicit groups

    def __len__(self) -> int:
        return len(self.numbers)

    def __str__(self) -> str:
        """The numbers: "0..9", or "1, 2, 4"."""
        if self.numbers == tuple(range(len(self.numbers))):
            return f"0..{len(self) - 1}"
        return ", ".join(map(str, self.numbers))


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
    items = _Items(tuple(range(num_classes)), "class", "classes", "50+10x5", "2,6|1,8|4,5|0,9|3,7")
    return _divided(items, num_tasks, groups, order, seed, first_tasks)


def domain_groups(
    domains: Sequence[int],
    *,
    num_tasks: int = 0,
    groups: str = "",
    order: str = "natural",
    seed: int = 0,
    first_tasks: int = 0,
) -> Groups:
    """Divides domains, such as sessions, into tasks, as `task_groups` divides classes.

    Args:
      domains: The data set's own numbers, ascending; they may have gaps: sessions 1, 2, 4, 5.
      num_tasks: As in `task_groups`, and so are the others, of domains in place of classes.
      groups: "1x4" is four tasks of one domain each; "1,2|4|5" names the domains themselves.
      order: "natural" (ascending), "shuffled", "shuffled:7", or the domains themselves, "4,1,5,2".
      seed: Seed of "shuffled".
      first_tasks: Keep only so many tasks; 0 keeps all.

    Raises:
      UserError: As `task_groups`, and one of the orders that are of classes.
    """
    items = _Items(tuple(domains), "domain", "domains", f"1x{len(domains)}", "|".join(map(str, domains[:3])))
    if order in GD_ORDERS:
        raise UserError(
            f"tasks: order {order!r} is one of classes and tasks.domain divides domains: write natural, shuffled, "
            f"shuffled:SEED or every domain's number, such as '{','.join(map(str, reversed(items.numbers)))}'"
        )
    return _divided(items, num_tasks, groups, order, seed, first_tasks)


def _divided(items: _Items, num_tasks: int, groups: str, order: str, seed: int, first_tasks: int) -> Groups:
    groups = groups.replace(" ", "")
    if bool(groups) == bool(num_tasks):
        raise UserError(
            f"tasks: num_tasks is {num_tasks} and groups is {groups!r}: give exactly one of them (the other as 0 or '')"
        )
    if "|" in groups or "," in groups:
        if order != "natural":
            raise UserError(
                f"tasks: groups {groups!r} and order {order!r} both say which {items.many} come when: "
                "set order to 'natural', or give groups as sizes, such as '2x5'"
            )
        result = _explicit_groups(groups, items)
    else:
        sizes = _sizes(groups, items) if groups else _equal_sizes(num_tasks, items)
        ordered = _order(order, items, sizes, seed)
        ends = np.cumsum(sizes)
        result = tuple(ordered[end - size : end] for size, end in zip(sizes, ends.tolist(), strict=True))
    if not 0 <= first_tasks <= len(result):
        raise UserError(
            f"tasks: first_tasks is {first_tasks} of {len(result)} tasks: write 1..{len(result)}, or 0 for all"
        )
    return result[: first_tasks or None]


def _equal_sizes(num_tasks: int, items: _Items) -> list[int]:
    number = len(items)
    if not 1 <= num_tasks <= number:
        raise UserError(f"tasks: num_tasks is {num_tasks} with {number} {items.many}: write 1..{number}")
    if number % num_tasks:
        possible = [str(n) for n in range(1, number + 1) if number % n == 0]
        raise UserError(
            f"tasks: {number} {items.many} do not divide into {num_tasks} equal tasks: "
            f"num_tasks can be {', '.join(possible)}; or give groups, such as '{items.sizes}'"
        )
    return [number // num_tasks] * num_tasks


def _sizes(groups: str, items: _Items) -> list[int]:
    """Sizes of the tasks of "50+10x5"."""
    if not SIZES.fullmatch(groups):
        raise UserError(
            f"tasks: cannot read groups {groups!r}: write sizes, such as '{items.sizes}' or '2x5', "
            f"or {items.many}, such as '{items.explicit}'"
        )
    parts = [term.partition("x") for term in groups.split("+")]
    terms = [(int(size), int(times or 1)) for size, _, times in parts]
    total = sum(size * times for size, times in terms)
    if min(min(term) for term in terms) < 1 or total != len(items):
        raise UserError(
            f"tasks: groups {groups!r} takes {total} {items.many} but the data set has {len(items)}: "
            "write sizes of 1 or more that sum to it"
        )
    return [size for size, times in terms for _ in range(times)]


def _explicit_groups(groups: str, items: _Items) -> Groups:
    parts = groups.split("|")
    for task, part in enumerate(parts, start=1):
        if not NUMBERS.fullmatch(part):
            raise UserError(
                f"tasks: cannot read task {task} of groups {groups!r}, {part!r}: "
                f"write {items.one} numbers with commas, tasks apart by '|', such as '2,6|1,8'"
            )
    result = tuple(tuple(int(c) for c in part.split(",")) for part in parts)
    task_of: dict[int, int] = {}
    for task, numbers in enumerate(result, start=1):
        for c in numbers:
            if c not in items.numbers:
                raise UserError(
                    f"tasks: {items.one} {c} in task {task} does not exist: the data set has the {items.many} {items}"
                )
            if c in task_of:
                raise UserError(
                    f"tasks: {items.one} {c} is in task {task_of[c]} and again in task {task}: "
                    f"every {items.one} belongs to exactly one task"
                )
            task_of[c] = task
    _refuse_missing(task_of, items, f"groups {groups!r}")
    return result


def _refuse_missing(present: dict[int, int], items: _Items, where: str) -> None:
    missing = [str(c) for c in items.numbers if c not in present]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise UserError(
            f"tasks: {items.one} {', '.join(missing[:10])}{more} is in no task of {where}: name every "
            f"{items.one}, and set first_tasks to leave the last tasks out"
        )


def _order(order: str, items: _Items, sizes: list[int], seed: int) -> tuple[int, ...]:
    name, colon, number = order.replace(" ", "").partition(":")
    if name == "shuffled" and (not colon or number.isdecimal()):
        random = random_stream(int(number) if colon else seed, ORDER_STREAM)
        return tuple(random.permutation(items.numbers).tolist())
    if order == "natural":
        return items.numbers
    if order in GD_ORDERS:
        if sizes != [2] * 5:
            raise UserError(
                f"tasks: order {order!r} is for 10 classes in five tasks of two, here are "
                f"{len(items)} classes in {len(sizes)} tasks: set num_tasks to 5, or another order"
            )
        return GD_ORDERS[order]
    if NUMBERS.fullmatch(name) and not colon:
        return _explicit_order(order, [int(c) for c in name.split(",")], items)
    known = ["natural", "shuffled", *(GD_ORDERS if items.one == "class" else ())]
    close = difflib.get_close_matches(order, known, n=1)
    example = "3,1,2,0" if items.one == "class" else ",".join(map(str, reversed(items.numbers)))
    hint = f"write {', '.join(known)}, shuffled:SEED or every {items.one} number, such as '{example}'"
    if close:
        hint = f"did you mean {close[0]!r}?"
    raise UserError(f"tasks: order {order!r} is unknown: {hint}")


def _explicit_order(order: str, numbers: list[int], items: _Items) -> tuple[int, ...]:
    twice = sorted({c for c in numbers if numbers.count(c) > 1})
    outside = sorted({c for c in numbers if c not in items.numbers})
    if twice or outside:
        what = f"{twice[0]} twice" if twice else f"{outside[0]}, which does not exist"
        raise UserError(f"tasks: order {order!r} names {items.one} {what}: write each of {items} exactly once")
    _refuse_missing(dict.fromkeys(numbers, 1), items, f"order {order!r}")
    return tuple(numbers)


def random_stream(seed: int, *names: int) -> np.random.Generator:
    """The random numbers of this seed for this purpose; `UserError` if the seed is negative."""
    if seed < 0:
        raise UserError(f"seed is {seed}: write 0 or more")
    return np.random.default_rng([seed, *names])
