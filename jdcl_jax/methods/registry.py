"""Methods by name. Every module of this folder that defines `METHODS` takes part: a new method is one new file."""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import jdcl_jax.methods
from jdcl_jax.errors import UserError
from jdcl_jax.methods.method import Method, Setup


def known_methods() -> dict[str, tuple[type[Method], dict[str, Any]]]:
    """Name -> (class, default options)."""
    found: dict[str, tuple[type[Method], dict[str, Any]]] = {}
    for module in pkgutil.iter_modules(jdcl_jax.methods.__path__):
        if module.name != "registry":
            loaded = importlib.import_module(f"jdcl_jax.methods.{module.name}")
            found.update(getattr(loaded, "METHODS", {}))
    return found


def default_options(name: str) -> dict[str, Any]:
    """The options of a method and their defaults.

    Raises:
      UserError: no method has this name.
    """
    methods = known_methods()
    if name not in methods:
        close = difflib.get_close_matches(name, methods, 1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(f"unknown method '{name}'; {hint}known methods: {', '.join(sorted(methods))}")
    return dict(methods[name][1])


def make_method(name: str, setup: Setup, options: Mapping[str, Any]) -> Method:
    """Builds a method.

    Raises:
      UserError: an unknown name, or options that the method refuses.
    """
    default_options(name)
    return known_methods()[name][0](setup, options)
