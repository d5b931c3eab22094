"""Methods and penalties by name. Every module of this folder that defines `METHODS` or `PENALTIES` takes part.

A name is a method, a penalty, or several joined by "+": any number of penalties and at most one method, which is
`finetune` if there is none: "gd", "ewc", "rank1_ewc+gd".
"""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import jdcl_jax.methods
from jdcl_jax.errors import UserError
from jdcl_jax.methods.composition import Penalised
from jdcl_jax.methods.method import Method, Setup
from jdcl_jax.methods.penalty import Penalty

PLAIN = "finetune"

ALONE = {
    "joint": "it trains on all data and forgets nothing that a penalty could keep",
    "agem": "it projects the whole gradient, which a penalty would bend again",
    "continued": "it has one task",
    "jdcl": "its stages start from weights of their own, not from those that a penalty stays near",
    **dict.fromkeys(
        ("gppdm", "ddgr", "guide"), "its generator goes on from averaged weights, and penalties stay near raw ones"
    ),
}
"""Methods that take no penalty, and why."""


def _found(attribute: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(jdcl_jax.methods.__path__):
        if module.name != "registry":
            loaded = importlib.import_module(f"jdcl_jax.methods.{module.name}")
            found.update(getattr(loaded, attribute, {}))
    return found


def known_methods() -> dict[str, tuple[type[Method], dict[str, Any]]]:
    """Name -> (class, default options)."""
    return _found("METHODS")


def known_penalties() -> dict[str, tuple[type[Penalty], dict[str, Any]]]:
    """Name -> (class, default options)."""
    return _found("PENALTIES")


def is_method_name(text: str) -> bool:
    """Whether every part of a name is known."""
    known = {*known_methods(), *known_penalties()}
    return all(part in known for part in text.split("+"))


def canonical_name(name: str) -> str:
    """Penalties in the order of the alphabet, then the method, unless it is `finetune`: "gd+ewc" -> "ewc+gd".

    Raises:
      UserError: an unknown part, a part named twice, two methods, or a method that takes no penalty.
    """
    base, penalties = _split(name)
    return "+".join([*penalties, base] if base != PLAIN or not penalties else penalties)


def _split(name: str) -> tuple[str, list[str]]:
    """The method and the sorted penalties."""
    parts = name.split("+")
    for part in parts:
        if part not in known_methods() and part not in known_penalties():
            raise _unknown(part)
    if len(set(parts)) < len(parts):
        raise UserError(f"'{name}' names a part twice; name each once")
    bases = [part for part in parts if part in known_methods()]
    penalties = sorted(part for part in parts if part in known_penalties())
    if len(bases) > 1:
        raise UserError(
            f"'{name}' joins two methods, {' and '.join(bases)}; write one method with penalties: "
            f"{', '.join(sorted(known_penalties()))}"
        )
    base = bases[0] if bases else PLAIN
    if penalties and base in ALONE:
        raise UserError(f"'{name}': {base} takes no penalty ({ALONE[base]}); write '{base}' or '{penalties[0]}'")
    return base, penalties


def _unknown(part: str) -> UserError:
    known = [*known_methods(), *known_penalties()]
    close = difflib.get_close_matches(part, known, 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UserError(
        f"unknown method '{part}'; {hint}methods: {', '.join(sorted(known_methods()))}; "
        f"penalties, joined by +: {', '.join(sorted(known_penalties()))}"
    )


def default_options(name: str) -> dict[str, Any]:
    """The options of a method and their defaults; those of a penalty below its name.

    Raises:
      UserError: there is no such method.
    """
    base, penalties = _split(name)
    return {**known_methods()[base][1], **{p: dict(known_penalties()[p][1]) for p in penalties}}


def method_settings(name: str) -> Mapping[str, Any]:
    """Keys of the config beside the method's own, as it has them unless the command line says otherwise.

    Raises:
      UserError: there is no such method.
    """
    return known_methods()[_split(name)[0]][0].settings


def make_method(name: str, setup: Setup, options: Mapping[str, Any]) -> Method:
    """Builds a method, with its penalties.

    Raises:
      UserError: an unknown name, or options that the method refuses.
    """
    base_name, names = _split(name)
    own = {key: value for key, value in options.items() if key not in names}
    base = known_methods()[base_name][0](setup, own)
    if not names:
        return base
    penalties = tuple(known_penalties()[p][0](p, setup, options[p]) for p in names)
    return Penalised(setup, options, base=base, penalties=penalties)
