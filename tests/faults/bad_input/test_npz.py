"""npz files of images and labels, and what else may be behind `npz:PATH`."""

import io
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from faults.bad_input import nasty
from faults.bad_input.endings import cases, ends_well, folder
from jdcl_jax import archives
from jdcl_jax.data.datasets import load
from jdcl_jax.errors import UserError

NUMERIC = ("u1", "i1", "u2", "i8", "u8", "f2", "f4", "f8", "g", "c8", "?", "m8[s]", "M8[D]", "U3", "S2", "V4", "O")


@st.composite
def arrays(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]]) -> np.ndarray:
    """An array of any type and shape, of small numbers or of the largest and smallest there are."""
    kind, shape = np.dtype(draw(st.sampled_from(NUMERIC))), draw(shapes)
    if kind.kind == "O":
        return np.full(shape, nasty.Trap(nasty.SPRUNG), object)
    numbers = draw(
        st.sampled_from((0, 1, 255, -1, 2, 100, 0.5, np.nan, np.inf, -np.inf, 2.0**31, 2.0**63, 1e300, "mixed"))
    )
    with np.errstate(all="ignore"):
        mixed = numbers == "mixed" or kind.kind in "USV"
        values = np.resize(np.arange(7), shape) if mixed else np.full(shape, numbers)
        if kind.kind in "mM":
            values = np.nan_to_num(values, posinf=9, neginf=0).astype(np.int64)
        try:
            return np.asarray(values).astype(kind)
        except (TypeError, ValueError, OverflowError):
            return np.zeros(shape, kind)


def good(number: int = 20, side: int = 4, channels: int = 1) -> dict[str, np.ndarray]:
    images = np.resize(np.arange(256, dtype=np.uint8), (number, side, side, channels))
    return {"images": images, "labels": np.arange(number) % 2}


IMAGE_SHAPES = st.one_of(
    st.just((20, 4, 4)),
    st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 5), st.integers(0, 4)),
    st.lists(st.integers(0, 5), max_size=5).map(tuple),
    st.sampled_from(((20, 1, 3000), (20, 3000, 1), (20, 0, 4), (0, 4, 4, 3), (1, 1, 1), ())),
)
ROW_SHAPES = st.one_of(st.just((20,)), st.lists(st.integers(0, 21), max_size=2).map(tuple))


@st.composite
def other_arrays(draw: st.DrawFn) -> dict[str, Any]:
    """Good arrays, some of which are taken away, or are others."""
    found: dict[str, Any] = good(channels=draw(st.sampled_from((1, 3))))
    if draw(st.booleans()):
        found |= {f"test_{name}": array for name, array in good(4).items()}
    for key in draw(st.lists(st.sampled_from((*found, "class_names", "domains", "test_domains", "x")), max_size=3)):
        if draw(st.integers(0, 5)) == 0:
            found.pop(key, None)
        elif key == "class_names":
            found[key] = np.array(draw(st.lists(nasty.texts, max_size=4)), "U20")
        elif key.endswith("images"):
            found[key] = draw(arrays(IMAGE_SHAPES))
        else:
            found[key] = draw(st.one_of(arrays(ROW_SHAPES), st.lists(st.integers(-3, 5), max_size=20).map(np.array)))
    return found


def loaded(path: Path, size: int = 0, fit: str = "resize", domain: str = "") -> Any:
    dataset = load(f"npz:{path}", image_size=size, fit=fit, domain=domain)
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert split.images.shape[0] == len(split.labels) > 0
        assert split.images.shape[-1] in (1, 3)
        assert 0 <= split.labels.min() <= split.labels.max() < len(dataset.class_names)
    return dataset


@cases(100, 400)
@hypothesis.given(
    found=other_arrays(),
    size=st.sampled_from((0, 0, 4, 8)),
    fit=st.sampled_from(("resize", "pad")),
    domain=st.sampled_from(("", "", "domains", "session")),
    packed=st.booleans(),
)
def test_an_npz_of_other_arrays_is_read_or_refused(found: Any, size: int, fit: str, domain: str, packed: bool) -> None:
    with folder() as place:
        path = place / "data.npz"
        (np.savez_compressed if packed else np.savez)(path, **found)
        ends_well("npz, other arrays", lambda: loaded(path, size, fit, domain), "data.npz", "data set")
    assert not Path(nasty.SPRUNG).exists()


def stored(**found: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **found)
    return stream.getvalue()


GOOD = stored(**good())


@cases(100, 400)
@hypothesis.given(data=st.one_of(nasty.damaged(GOOD), st.binary(max_size=60)))
def test_a_damaged_npz_is_read_or_refused(data: bytes) -> None:
    with folder() as place:
        path = place / "data.npz"
        path.write_bytes(data)
        ends_well("npz, damaged", lambda: loaded(path), "data.npz")
    assert not Path(nasty.SPRUNG).exists()


def header(text: str) -> bytes:
    """An array's file that has this header and no numbers."""
    line = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


HEADERS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000, 1000)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (4.5, 4, 4)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': 'x'}",
    "{'descr': '|u1', 'fortran_order': 7, 'shape': (True,)}",
    "{'descr': 'zz', 'fortran_order': False, 'shape': (20, 4, 4)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (20, 4, 4)}",
    "{'descr': [('a', '<f4'), ('a', '<f4')], 'fortran_order': False, 'shape': (20, 4, 4)}",
    "{'descr': '<f99', 'fortran_order': False, 'shape': (20, 4, 4)}",
    "{'descr': '|V99999999999', 'fortran_order': False, 'shape': (20, 4, 4)}",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (20,)}",
    "{'shape': (20, 4, 4)}",
    "__import__('os').system('touch " + nasty.SPRUNG + "')",
    "(" * 3000,
    "{}",
    "",
)


@cases(30, 60)
@hypothesis.given(
    key=st.sampled_from(("images", "labels", "class_names", "test_images")),
    text=st.sampled_from(HEADERS),
    name=st.sampled_from(("{}.npy", "../{}.npy", "/tmp/{}.npy", "{}")),
    method=st.sampled_from((0, 8, 12, 14)),
)
def test_headers_that_promise_too_much_are_refused(key: str, text: str, name: str, method: int) -> None:
    with folder() as place:
        path = place / "data.npz"
        with zipfile.ZipFile(io.BytesIO(GOOD)) as old, zipfile.ZipFile(path, "w", method) as new:
            for member in old.namelist():
                if member != f"{key}.npy":
                    new.writestr(member, old.read(member))
            new.writestr(name.format(key), header(text))
        ends_well("npz, headers", lambda: loaded(path), "data.npz")
        assert [one.name for one in place.iterdir()] == ["data.npz"]
    assert not Path(nasty.SPRUNG).exists()


@cases(40, 150)
@hypothesis.given(name=nasty.texts, directory=nasty.texts, kind=st.sampled_from(("npz:", "folder:", "", "npz", "NPZ:")))
def test_names_of_data_that_are_not_there_are_refused(name: str, directory: str, kind: str) -> None:
    with folder() as place:
        where = directory if directory.startswith(("~", "/")) else f"{place}/{directory}"
        ends_well("names of data", lambda: load(kind + name, directory=where, image_size=8))
        assert list(place.iterdir()) == []


def test_an_npz_of_more_than_the_memory_is_refused_by_its_declared_size(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(archives, "memory", lambda: 100_000)
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((20, 100, 100), np.uint8), labels=np.arange(20) % 2)
    with pytest.raises(UserError, match=r"bomb.npz: .*memory"):
        loaded(tmp_path / "bomb.npz")
    np.savez(tmp_path / "small.npz", **good(), other=np.zeros(200_000))
    loaded(tmp_path / "small.npz")
