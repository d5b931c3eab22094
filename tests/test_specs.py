"""How the methods and seeds of a study are written."""

import itertools
import re

import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.specs import Spec, parse_seeds, parse_specs


def words(text: str) -> list[tuple[str, ...]]:
    return [spec.words for spec in parse_specs(text)]


def test_keys_belong_to_the_method_unless_they_begin_with_a_section_of_the_config() -> None:
    assert words("finetune, er(buffer_size=20,train.ema=0.9) ,gd(method.teacher_steps=1)") == [
        ("finetune",),
        ("er", "method.buffer_size=20", "train.ema=0.9"),
        ("gd", "method.teacher_steps=1"),
    ]
    assert words("gd(rank1_ewc.strength=1000)") == [("gd", "method.rank1_ewc.strength=1000")]


def test_commas_within_brackets_do_not_separate() -> None:
    assert words("joint(model.channels=(8, 16),train.ema=0.5),gd") == [
        ("joint", "model.channels=(8, 16)", "train.ema=0.5"),
        ("gd",),
    ]


def test_the_name_in_tables_is_the_spec_as_it_was_written() -> None:
    assert [spec.text for spec in parse_specs("gd, er(buffer_size = 20)")] == ["gd", "er(buffer_size = 20)"]


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("", "no methods"),
        ("gd,er(buffer_size=20", "open bracket"),
        ("gd(teacher_steps)", "'teacher_steps' in gd"),
        ("gd(=3)", "'=3'"),
        ("gd[teacher_steps=1]", "NAME(key=value,...)"),
        ("gd)teacher_steps=1(", "NAME(key=value,...)"),
        ("teacher_steps=1", "NAME(key=value,...)"),
        ("gd,er,gd", "gd twice"),
        ("gd(teacher_steps=1),gd( teacher_steps = 1 )", "twice"),
    ],
)
def test_what_is_no_method_is_refused(text: str, about: str) -> None:
    with pytest.raises(UserError, match=re.escape(about)):
        parse_specs(text)


def test_slugs_can_be_read() -> None:
    texts = "gd,rank1_ewc+gd(rank1_ewc.strength=1000,train.ema=0.995),gd(train.learning_rate=1e-4)"
    assert [spec.slug for spec in parse_specs(texts)] == [
        "gd",
        "rank1_ewc+gd-rank1_ewc.strength=1000-train.ema=0.995",
        "gd-train.learning_rate=1e-4",
    ]


def test_different_specs_never_share_a_folder_and_a_shell_needs_no_quotes() -> None:
    """All short values over characters that are lost or mean something in a slug."""
    values = ["".join(v) for n in (0, 1, 2, 3) for v in itertools.product("1-=b( ", repeat=n)]
    specs = [Spec("", ("a", f"method.b={value}")) for value in values]
    specs += [Spec("", ("a", f"method.b={one}", f"method.b={two}")) for one in values[:40] for two in values[:40]]
    specs += [Spec("", ("a", "method.b=" + "1" * n)) for n in range(90, 300, 7)]
    distinct = {spec.words for spec in specs}
    slugs = {spec.words: spec.slug for spec in specs}
    assert len(distinct) > 1800
    assert len(set(slugs.values())) == len(distinct)
    assert all(re.fullmatch(r"[A-Za-z0-9._=+-]{1,130}", slug) for slug in slugs.values())


def test_a_digest_cannot_be_imitated() -> None:
    (lost,) = parse_specs("a(b=x[])")
    digest = lost.slug[-12:]
    imitations = [f"a(b=x{between}{digest})" for between in ("-", "--", ".", "", "+")]
    assert lost.slug not in [spec.slug for spec in parse_specs(",".join(imitations))]
    assert lost.slug.startswith("a-b=x-")


def test_seeds() -> None:
    assert parse_seeds("0, 2,10") == [0, 2, 10]
    for text in ("", "0,", "-1", "1.5", "one", "0,0"):
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(text)
