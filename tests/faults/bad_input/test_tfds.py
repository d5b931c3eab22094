"""TFDS folders: what prepared them was cut short, or somebody edited them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from faults.bad_input import nasty
from faults.bad_input.endings import cases, ends_well, fingerprint, folder
from jdcl_jax.data.datasets import load


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that holds the data set `tiny` 1.0.0, three classes, six training and three test images."""
    from data.conftest import prepare_tfds

    prepare = prepare_tfds.__wrapped__ if hasattr(prepare_tfds, "__wrapped__") else prepare_tfds.__pytest_wrapped__.obj
    write = prepare(tmp_path_factory.mktemp("tfds"))
    images = np.resize(np.arange(256, dtype=np.uint8), (9, 6, 6, 1))
    splits = {"train": (images[:6], np.arange(6) % 3), "test": (images[6:], np.arange(3))}
    root, _ = write("tiny", splits, shape=(6, 6, 1), classes=["ant", "bee", "cow"])
    return Path(root)


def changed(draw: Callable[..., Any], tree: Any) -> Any:
    """The tree with one value somewhere in it replaced or taken away."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(tree)))
        if draw(st.integers(0, 5)) == 0:
            return {name: value for name, value in tree.items() if name != key}
        return {**tree, key: changed(draw, tree[key])}
    if isinstance(tree, list) and tree and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(tree) - 1))
        return [*tree[:at], changed(draw, tree[at]), *tree[at + 1 :]]
    return draw(st.one_of(nasty.values, st.integers(-5, 20).map(str)))


def spoil(draw: Callable[..., Any], file: Path) -> None:
    how = draw(st.sampled_from(("bytes", "bytes", "json", "json", "missing", "folder", "link")))
    if how == "json" and file.suffix == ".json":
        file.write_text(json.dumps(changed(draw, json.loads(file.read_text()))))
    elif how in ("bytes", "json"):
        file.write_bytes(draw(nasty.damaged(file.read_bytes())))
    else:
        file.unlink()
        if how == "folder":
            file.mkdir()
        if how == "link":
            file.symlink_to(file)


@cases(50, 300)
@hypothesis.given(data=st.data())
def test_a_damaged_tfds_folder_is_read_or_refused(data: st.DataObject, prepared: Path) -> None:
    with folder() as place:
        root = place / "prepared"
        shutil.copytree(prepared, root)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=2, unique=True), label="files"):
            spoil(data.draw, file)
        before = fingerprint(place)
        domain = data.draw(st.sampled_from(("", "", "label", "session", "\0")), label="domain")
        ends_well("TFDS folders", lambda: load("tiny", directory=str(root), domain=domain), "tiny")
        assert fingerprint(place) == before
