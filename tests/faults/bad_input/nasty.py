"""Values that nobody should write, and files that nobody should have."""

import pickle
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

TAG = "<script>alert(1)</script>"

TAGS = (
    TAG,
    '"><img src=x onerror=alert(1)>',
    "</style></title>" + TAG,
    "{{ 7*7 }}",
    "$\\frac$ & 日本",
    "\u202e\x1b[31m",
)
"""Names of classes that are more than text where a page does not take care."""

TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "a\nb",
    "a\r\nerror: b",
    "\x1b[31mred\x1b[0m",
    "\u202egpj.exe",
    "\u2028",
    "é日本語🦜",
    "$x$",
    r"$\frac$",
    TAG,
    "'\"",
    "../../x",
    "/etc/passwd",
    "~",
    "~nobody_of_that_name/x",
    ".",
    "..",
    "-",
    "--",
    "nan",
    "inf",
    "None",
    "True",
    "{}",
    "[]",
    "%s%d{0}{x}",
    "a" * 300,
    "b/" * 3000,
    "\ud800",
    "0x10",
    "1e999",
    "con",
    "x,y",
    "x=y",
    "a:b",
    "npz:",
    "folder:",
    "npz:\0",
    "folder:..",
    "npz:../../x.npz",
    "digits/..",
    "tfds",
    "http://localhost/x",
    "file:///etc/passwd",
    "\ufeff",
)

HUGE = (2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**400), 10**4000)
NUMBERS = (0, 1, 2, 3, 5, 7, 8, 16, 64, 100, -1, -2, *HUGE)
FLOATS = (
    0.0,
    -0.0,
    1.0,
    0.5,
    -1.0,
    1e-300,
    1e-45,
    1e-12,
    1e-3,
    2.0,
    1e30,
    1e38,
    3.5e38,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)

texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20))
names = texts.filter(lambda text: "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text))
"""What a command line can hold."""

numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-20, 400))
floats = st.one_of(st.sampled_from(FLOATS), st.floats())


def tuples(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(elements, max_size=5).map(tuple)


values = st.one_of(
    texts,
    numbers,
    floats,
    st.booleans(),
    st.none(),
    tuples(st.one_of(numbers, floats, texts, st.none())),
    st.just(()),
    st.dictionaries(texts, numbers, max_size=2),
)
"""Of any type that JSON has."""


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """A file that is empty, cut short, has bits flipped, bytes put in, or is something else."""
    how = draw(st.sampled_from(("empty", "cut", "flip", "flip", "flip", "insert", "overwrite", "double", "other")))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if how == "empty":
        return b""
    if how == "cut":
        return data[:at]
    if how == "flip":
        changed = bytearray(data)
        for place in draw(st.lists(st.integers(0, max(0, len(data) - 1)), min_size=1, max_size=8)):
            changed[place] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if how == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
    if how == "overwrite":
        new = draw(st.binary(min_size=1, max_size=40))
        return data[:at] + new + data[at + len(new) :]
    if how == "double":
        return data + data
    return draw(st.sampled_from((b"\0" * 100, b"{", b"[" * 100_000, b"\xff\xfe", b"PK\x03\x04", b"\x93NUMPY", trap())))


class Trap:
    """What unpickling it does is to write a file."""

    def __init__(self, place: str):
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.place),)


SPRUNG = "/tmp/jdcl_bad_input_sprung"


def trap() -> bytes:
    """A pickle that leaves `SPRUNG` behind when it is loaded."""
    return pickle.dumps(Trap(SPRUNG))
