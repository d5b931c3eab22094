"""Configs: from the command line's words, from a config.json, and key by key."""

import json
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from faults.bad_input import nasty
from faults.bad_input.endings import DIGITS, cases, check_ending, ends_well, fingerprint, folder
from faults.bad_input.tracing import traced
from jdcl_jax.config import flatten, from_json
from jdcl_jax.methods.registry import known_methods, known_penalties
from jdcl_jax.validation import validate

pytestmark = pytest.mark.usefixtures("small")

METHODS = sorted({*known_methods(), *(f"{p}" for p in known_penalties()), "l2+si+er", "ewc+gd", "rank1_ewc+gd"})


class Bases(dict[str, Any]):
    """Valid configs by name; of few words where an example is printed."""

    def __repr__(self) -> str:
        return "bases"


@pytest.fixture(scope="module")
def bases(config_file: Callable[[str], Any]) -> Bases:
    """A valid config of every method, and of some with a denoiser alone."""
    digits = config_file("digits")
    named = [method for method in METHODS if not {"ewc", "rank1_ewc", "mas", "gpm"} & set(method.split("+"))]
    alone = [
        f"{method},generation" for method in METHODS if method not in ("jdcl", "gppdm", "ddgr", "guide", "continued")
    ]
    return Bases({words: digits.get_config(words) for words in [*named, *alone]})


KINDS = {int: nasty.numbers, float: nasty.floats, str: nasty.texts, bool: st.booleans()}


def like(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same type as a key's own, which no type check refuses."""
    if isinstance(value, tuple):
        kind = type(value[0]) if value else int
        return nasty.tuples(st.one_of(KINDS[kind], st.sampled_from(value or (0,))))
    return st.one_of(KINDS[type(value)], st.just(value))


def assembled(file: Any) -> None:
    config = from_json(file)
    validate(config)
    traced(config)


@cases(15, 600)
@hypothesis.given(data=st.data())
def test_a_config_json_with_other_values_is_traced_or_refused(data: st.DataObject, bases: Bases) -> None:
    name = data.draw(st.sampled_from(sorted(bases)), label="base")
    tree = json.loads(bases[name].to_json_best_effort())
    keys = sorted(flatten(tree))
    typed = flatten(bases[name].to_dict())
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique=True), label="keys"):
        old = typed[key]
        change = data.draw(st.one_of(like(old), like(old), like(old), nasty.values), label=key)
        *path, last = key.split(".")
        section = tree
        for part in path:
            section = section[part]
        section[last] = change
    with folder() as place:
        file = place / "config.json"
        file.write_text(json.dumps(tree))
        ends_well("config.json, other values", lambda: assembled(file))
        assert fingerprint(place).keys() == {"config.json"}


@cases(25, 250)
@hypothesis.given(data=st.data())
def test_a_config_json_that_is_damaged_is_read_or_refused(data: st.DataObject, bases: Bases) -> None:
    name = data.draw(st.sampled_from(sorted(bases)), label="base")
    text = bases[name].to_json_best_effort().encode()
    with folder() as place:
        file = place / "config.json"
        file.write_bytes(data.draw(nasty.damaged(text), label="bytes"))
        ends_well("config.json, damaged", lambda: validate(from_json(file)), "config.json", *flatten(bases[name]), ".")


WORDS = st.one_of(
    st.sampled_from(METHODS),
    st.sampled_from(
        ("generation", "small", "gd+gr", "gd+", "+", "ewc+ewc", "jdcl+ewc", "=", "=1", "train.steps=", "(", "]")
    ),
    nasty.texts,
)


def pairs(keys: list[str]) -> st.SearchStrategy[str]:
    values = st.one_of(nasty.values.map(str), st.just("0x" + "f" * 5000), st.just("(" * 500), st.just("9" * 5000))
    return st.tuples(st.sampled_from([*keys, "method.name", "train", "x.y", "train.steps.x"]), values).map("=".join)


@cases(60, 300)
@hypothesis.given(data=st.data())
def test_words_behind_the_colon_are_read_or_refused(data: st.DataObject, bases: Bases, config_file: Any) -> None:
    keys = sorted(flatten(bases["jdcl"]))
    words = data.draw(st.lists(st.one_of(WORDS, pairs(keys)), max_size=4), label="words")
    get_config = config_file("digits").get_config
    ends_well("words of --config", lambda: validate(get_config(",".join(words))))


@cases(6, 150)
@hypothesis.given(data=st.data())
def test_flags_of_main_are_refused_in_one_line_and_leave_nothing(
    data: st.DataObject, bases: Bases, command_lines: Any
) -> None:
    """The data are absent, so whatever the flags say, nothing can run."""
    keys = sorted(flatten(bases["jdcl"]))
    flags = data.draw(st.lists(pairs(keys).map("--config.{}".format), max_size=2), label="flags")
    words = ",".join(data.draw(st.lists(st.one_of(WORDS, pairs(keys)), max_size=2), label="words"))
    arguments = [word.replace("\0", "0") for word in (f"--config={DIGITS}:{words}", *flags)]
    hypothesis.assume(sum(map(len, arguments)) < 100_000)
    with folder() as place:
        ending = command_lines(place, "main", *arguments, "--config.data.name=npz:absent.npz", "--workdir=run")
        assert not check_ending("flags of main", ending)
        assert fingerprint(place) == {}
