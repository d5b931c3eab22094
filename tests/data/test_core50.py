"""CORe50: its folder as examples, prepared as array_record and read back."""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jdcl_jax.data.datasets import load
from jdcl_jax.data.groups import domain_groups
from jdcl_jax.data.tasks import domain_sequence
from jdcl_jax.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[2]
TRAIN, TEST = (1, 2, 4, 5, 6, 8, 9, 11), (3, 7, 10)
FRAMES = 5


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A whole CORe50 of five frames a film, each of one colour: (20 session, object, frame)."""
    root = tmp_path_factory.mktemp("source")
    for session in range(1, 12):
        for number in range(1, 51):
            folder = root / "core50_128x128" / f"s{session}" / f"o{number}"
            folder.mkdir(parents=True)
            for frame in range(FRAMES):
                stream = io.BytesIO()
                Image.new("RGB", (128, 128), (20 * session, number, frame)).save(stream, "PNG")
                (folder / f"C_{session:02d}_{number:02d}_{frame:03d}.png").write_bytes(stream.getvalue())
            (folder / "notes.txt").write_text("no frame")
    return root


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    from jdcl_jax.data.builders.core50 import prepare

    root = tmp_path_factory.mktemp("prepared")
    try:
        prepare(str(source), str(root))
    except ImportError as error:
        pytest.skip(f"this version of tensorflow-datasets prepares with TensorFlow alone: {error}")
    return str(root)


def test_examples_are_named_and_labelled_by_their_folders(source):
    from jdcl_jax.data.builders.core50 import examples

    found = dict(examples(source / "core50_128x128", [3, 11]))
    assert len(found) == 2 * 50 * FRAMES
    for key, label, category, session in (
        ("s3/o1/C_03_01_000.png", 0, 0, 3),
        ("s3/o5/C_03_05_004.png", 4, 0, 3),
        ("s11/o6/C_11_06_000.png", 5, 1, 11),
        ("s11/o50/C_11_50_002.png", 49, 9, 11),
    ):
        example = found[key]
        assert (example["label"], example["category"], example["session"]) == (label, category, session)
        assert example["image"] == source / "core50_128x128" / key
    assert next(iter(found)) == "s3/o1/C_03_01_000.png"


def test_a_missing_film_is_named(source, tmp_path):
    from jdcl_jax.data.builders.core50 import examples

    (tmp_path / "core50_128x128" / "s1").mkdir(parents=True)
    (tmp_path / "core50_128x128" / "s1" / "o1").symlink_to(source / "core50_128x128" / "s1" / "o1")
    found = examples(tmp_path / "core50_128x128", TRAIN)
    for _ in range(FRAMES):
        next(found)
    with pytest.raises(UserError, match=rf"s1/o2 holds no PNG: unpack the whole of core50_128x128.zip into {tmp_path}"):
        next(found)


def test_objects_and_categories_have_their_names(prepared):
    names = load("core50", directory=prepared, image_size=8).class_names
    assert len(names) == 50
    assert (names[0], names[4], names[5], names[49]) == (
        "plug_adapter1",
        "plug_adapter5",
        "mobile_phone1",
        "remote_control5",
    )


def test_the_usual_test_sessions_are_the_test_split(prepared):
    loaded = load("core50", directory=prepared, image_size=8)
    for split, sessions in ((loaded.train, TRAIN), (loaded.test, TEST)):
        pixels = split.images[:, 0, 0]
        assert sorted(pixels[:, 0].tolist()) == sorted(20 * s for s in sessions for _ in range(50 * FRAMES))
        assert (pixels[:, 1] - 1).tolist() == split.labels.tolist()


def test_eight_tasks_of_one_session_each_with_a_fifth_of_every_film_as_test(prepared):
    loaded = load("core50", directory=prepared, image_size=8, domain="session")
    sequence = domain_sequence(loaded, domain_groups(TRAIN, groups="1x8"), validation=0)
    assert sequence.groups == (tuple(range(50)),) * 8
    assert sequence.domains == tuple((s,) for s in TRAIN)
    assert sequence.train.counts.tolist() == [50 * (FRAMES - 1)] * 8
    assert sequence.test.counts.tolist() == [50] * 8
    for part in (sequence.train, sequence.test):
        for k, session in enumerate(TRAIN):
            assert set(part.task(k).images[:, 0, 0, 0].tolist()) == {20 * session}
    assert "of the domains 3, 7, 10) left out" in loaded.provenance


def test_categories_may_be_the_domains_too(prepared):
    loaded = load("core50", directory=prepared, image_size=8, domain="category")
    np.testing.assert_array_equal(loaded.train.domains, loaded.train.labels // 5)
    assert "left out" not in loaded.provenance


def test_reading_needs_no_builder_and_no_tensorflow(prepared):
    code = (
        "import sys; from jdcl_jax.data.datasets import load; "
        f"print(len(load('core50', directory={prepared!r}, image_size=8, domain='session').train)); "
        "assert not {'tensorflow', 'jdcl_jax.data.builders.core50'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, f"{8 * 50 * (FRAMES - 1)}\n"), ended.stderr


def test_where_it_is_not_prepared_the_error_says_how(tmp_path):
    with pytest.raises(UserError) as caught:
        load("core50", directory=str(tmp_path), image_size=8, domain="session")
    command = f"from jdcl_jax.data.builders.core50 import prepare; prepare('SOURCE', '{tmp_path}')"
    assert f"data set 'core50' is not prepared in {tmp_path}" in str(caught.value)
    assert command in str(caught.value)
    assert command.replace(str(tmp_path), "DIR") in (REPOSITORY / "configs" / "core50.py").read_text()
