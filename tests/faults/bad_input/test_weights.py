"""Weights files: Inception's, label embeddings, and the cached classifier behind the scores."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from faults.bad_input import nasty
from faults.bad_input.endings import cases, ends_well, fingerprint, folder
from faults.bad_input.test_npz import HEADERS, arrays, header, stored
from jdcl_jax.data.arrays import Split
from jdcl_jax.data.embeddings import read_label_embeddings
from jdcl_jax.evaluation import classifier_cache
from jdcl_jax.evaluation.classifier import ClassifierSettings
from jdcl_jax.evaluation.inception_features import InceptionFeatures

SHAPES = st.one_of(st.just((3,)), st.lists(st.integers(0, 4), max_size=4).map(tuple))
TENSORS = {"Conv2d_1a_3x3.bn.bias": np.zeros(32, np.float32), "fc.bias": np.zeros(1008, np.float32)}


def safe(found: dict[str, np.ndarray]) -> bytes:
    plain = {name: value for name, value in found.items() if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8}
    return safetensors.numpy.save(plain)


def lying(text: str) -> bytes:
    """A safetensors file whose head is this text."""
    return len(text.encode()).to_bytes(8, "little") + text.encode() + b"\0" * 16


HEADS = (
    "{}",
    "[]",
    "null",
    "[" * 2000,
    '{"x": 1}',
    '{"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    '{"x": {"dtype": "F32", "shape": [4000000000, 4000000000], "data_offsets": [0, 16]}}',
    '{"x": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}',
    '{"x": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}',
    '{"x": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}',
    '{"../x": {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}}',
)


@st.composite
def weights(draw: st.DrawFn) -> tuple[str, bytes]:
    """The ending of a file's name, and its bytes."""
    ending = draw(st.sampled_from((".npz", ".npz", ".safetensors", ".safetensors", ".pth", ".pkl", "", ".NPZ", ".bin")))
    found = dict(TENSORS)
    for _ in range(draw(st.integers(0, 2))):
        found[draw(st.one_of(st.sampled_from(sorted(TENSORS)), nasty.names.filter(bool)))] = draw(arrays(SHAPES))
    try:
        data = safe(found) if "safe" in ending else stored(**found)
    except (ValueError, TypeError, OSError):  # a name that no such file can have
        data = stored(**TENSORS)
    how = draw(st.sampled_from(("good", "good", "damaged", "damaged", "lying", "pickle")))
    if how == "damaged":
        return ending, draw(nasty.damaged(data))
    if how == "lying":
        return ending, lying(draw(st.sampled_from(HEADS)))
    return ending, nasty.trap() if how == "pickle" else data


@cases(60, 300)
@hypothesis.given(given=weights())
def test_weights_that_are_not_inception_are_refused(given: tuple[str, bytes]) -> None:
    ending, data = given
    with folder() as place:
        path = place / f"weights{ending}"
        path.write_bytes(data)
        ends_well("Inception weights", lambda: InceptionFeatures(path), f"weights{ending}")
    assert not Path(nasty.SPRUNG).exists()


@cases(20, 60)
@hypothesis.given(name=nasty.texts, ending=st.sampled_from(("", ".npz", ".safetensors")))
def test_weights_that_are_no_file_are_refused(name: str, ending: str) -> None:
    with folder() as place:
        where = name if name.startswith(("~", "/")) else f"{place}/{name}"
        ends_well("paths of weights", lambda: InceptionFeatures(where + ending), "Inception", "weights")


CLASSES = ("cat", "dog", "<b>")


@cases(60, 250)
@hypothesis.given(data=st.data())
def test_label_embeddings_are_read_or_refused(data: st.DataObject) -> None:
    found: dict[str, Any] = {name: np.arange(3.0) + i for i, name in enumerate(CLASSES)}
    for name in data.draw(st.lists(st.sampled_from((*CLASSES, "x")), max_size=2), label="names"):
        found[name] = data.draw(arrays(SHAPES), label=name)
    content = stored(**found)
    if data.draw(st.integers(0, 2), label="damaged") == 0:
        content = data.draw(st.one_of(nasty.damaged(content), st.sampled_from(HEADERS).map(header)), label="bytes")
    with folder() as place:
        path = place / "labels.npz"
        path.write_bytes(content)
        given = str(path) if data.draw(st.integers(0, 9), label="path") else str(place) + data.draw(nasty.texts)
        read = ends_well("label embeddings", lambda: read_label_embeddings(given, CLASSES), "context.embeddings")
        if isinstance(read, np.ndarray):
            assert read.shape[0] == len(CLASSES)
            assert np.isfinite(read).all()
    assert not Path(nasty.SPRUNG).exists()


IMAGES = Split(np.resize(np.arange(256, dtype=np.uint8), (8, 4, 4, 1)), np.arange(8, dtype=np.int32) % 2)
SETTINGS = ClassifierSettings(num_classes=2, channels=(4,), features=4, steps=1, batch_size=4)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, bytes, Any]]:
    """The name and the bytes of a cached classifier, and what it is."""
    place = tmp_path_factory.mktemp("cache")
    trained = classifier_cache.load_or_train_classifier(place, IMAGES, IMAGES, IMAGES, SETTINGS)
    (file,) = place.iterdir()
    with pytest.MonkeyPatch.context() as patch:  # what is damaged is trained again, which gives the same
        patch.setattr(classifier_cache, "train_classifier", lambda *_: trained)
        yield file.name, file.read_bytes(), trained


def other_about(data: bytes, draw: Any) -> bytes:
    """The file with another record in its head; its arrays as they were."""
    found = safetensors.numpy.load(data)
    about = draw(st.one_of(nasty.values.map(json.dumps), nasty.texts, st.just("[" * 100_000)))
    return safetensors.numpy.save(found, {"about": about.encode("utf-8", "replace").decode()})


@cases(50, 200)
@hypothesis.given(data=st.data())
def test_a_damaged_cache_is_replaced(data: st.DataObject, cached: tuple[str, bytes, Any]) -> None:
    name, good, trained = cached
    how = data.draw(st.sampled_from(("bytes", "bytes", "about", "folder", "loop", "none")), label="how")
    with folder() as place:
        file = place / "cache" / name
        file.parent.mkdir()
        if how in ("bytes", "about"):
            changed = data.draw(nasty.damaged(good)) if how == "bytes" else other_about(good, data.draw)
            file.write_bytes(changed)
        elif how == "folder":
            file.mkdir()
        elif how == "loop":
            file.symlink_to(file)
        found = ends_well(
            "classifier cache",
            lambda: classifier_cache.load_or_train_classifier(file.parent, IMAGES, IMAGES, IMAGES, SETTINGS),
        )
        np.testing.assert_array_equal(found.extractor(IMAGES.images), trained.extractor(IMAGES.images))
        if how != "folder":
            assert fingerprint(place).keys() == {"cache", f"cache/{name}"}
            assert file.read_bytes() == good


@cases(20, 60)
@hypothesis.given(name=nasty.texts)
def test_a_cache_that_cannot_be_written_costs_a_warning(name: str, cached: tuple[str, bytes, Any]) -> None:
    with folder() as place:
        where = f"{place}/{name}" if name not in ("", ".", "..") and "../" not in name else str(place)
        ends_well(
            "paths of the cache",
            lambda: classifier_cache.load_or_train_classifier(where, IMAGES, IMAGES, IMAGES, SETTINGS),
        )


def test_weights_of_an_encrypted_archive_are_refused(tmp_path: Path) -> None:
    data = bytearray(stored(**TENSORS))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (at := data.find(mark, start)) >= 0:
            data[at + offset] |= 1
            start = at + 4
    path = tmp_path / "weights.npz"
    path.write_bytes(io.BytesIO(bytes(data)).getvalue())
    ends_well("Inception weights", lambda: InceptionFeatures(path), "weights.npz")
