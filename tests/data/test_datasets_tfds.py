"""TFDS data sets read without TensorFlow: small ones written here, and real ones where they are at
hand.
"""

import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jdcl_jax.data.datasets import load
from jdcl_jax.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[2]
REAL = pathlib.Path(os.environ.get("JDCL_TFDS_DIR", REPOSITORY.parent / "shared" / "tfds"))
CLASSES = ["ant", "bee", "cow"]


def split(number, shape=(6, 6, 1), seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (number, *shape)).astype(np.uint8)
    return images, np.arange(number) % len(CLASSES)


def refused(message, *args, **options):
    with pytest.raises(UserError, match=message) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_prepared_data_set_is_read_as_it_was_written(prepare_tfds, shards):
    train, test = split(300), split(6, seed=1)
    root, _ = prepare_tfds("tiny", {"train": train, "test": test}, shape=(6, 6, 1), classes=CLASSES, shards=shards)
    for name in ("tiny", "tiny:1.0.0"):
        loaded = load(name, directory=root)
        np.testing.assert_array_equal(loaded.train.images, train[0])
        np.testing.assert_array_equal(loaded.train.labels, train[1])
        np.testing.assert_array_equal(loaded.test.images, test[0])
        assert loaded.class_names == tuple(CLASSES)
        assert loaded.train.labels.dtype == np.int32
        assert "JPEG" not in loaded.provenance


def test_validation_serves_as_test_where_there_is_no_other_and_is_said_to(prepare_tfds):
    held_out = split(3, seed=1)
    root, _ = prepare_tfds("tiny", {"train": split(9), "validation": held_out}, shape=(6, 6, 1), classes=CLASSES)
    loaded = load("tiny", directory=root)
    np.testing.assert_array_equal(loaded.test.images, held_out[0])
    assert "validation split as test" in loaded.provenance


def test_validation_serves_as_test_where_test_has_no_labels(prepare_tfds):
    hidden, held_out = split(3, seed=2), split(3, seed=1)
    root, _ = prepare_tfds(
        "tiny",
        {"train": split(9), "test": (hidden[0], [-1, -1, -1]), "validation": held_out},
        shape=(6, 6, 1),
        classes=CLASSES,
    )
    np.testing.assert_array_equal(load("tiny", directory=root).test.images, held_out[0])


def test_a_data_set_without_test_images_is_refused(prepare_tfds):
    root, _ = prepare_tfds("tiny", {"train": split(9)}, shape=(6, 6, 1), classes=CLASSES)
    refused("it needs train, and test or validation", "tiny", directory=root)


def test_images_of_several_sizes_are_resized_while_reading(prepare_tfds):
    images = [np.full((8 + i, 12, 3), 20 * i, np.uint8) for i in range(6)]
    both = (images, np.arange(6) % 3)
    root, _ = prepare_tfds("tiny", {"train": both, "test": both}, shape=(None, None, 3), classes=CLASSES)
    refused("several sizes: give an image size", "tiny", directory=root)
    loaded = load("tiny", directory=root, image_size=8)
    expected = np.stack([np.full((8, 8, 3), 20 * i) for i in range(6)])
    np.testing.assert_array_equal(loaded.train.images, expected)
    assert "centre crop" in loaded.provenance


def test_a_copy_stored_as_jpeg_is_said_to_be_lossy(prepare_tfds):
    both = split(6, (8, 8, 3))
    root, _ = prepare_tfds("tiny", {"train": both, "test": both}, shape=(8, 8, 3), classes=CLASSES, kind="JPEG")
    assert "stored as JPEG (lossy)" in load("tiny", directory=root).provenance


def test_an_image_of_another_size_than_promised_is_told(prepare_tfds):
    both = split(6, (8, 8, 1))
    root, _ = prepare_tfds("tiny", {"train": both, "test": both}, shape=(6, 6, 1), classes=CLASSES)
    refused("an image is 8x8, not 6x6", "tiny", directory=root)


def test_other_feature_names_are_listed(prepare_tfds):
    both = split(6)
    root, _ = prepare_tfds(
        "tiny",
        {"train": both, "test": both},
        shape=(6, 6, 1),
        classes=CLASSES,
        keys=("photo", "kind"),
    )
    refused(r"has (photo \(Image\), kind|kind \(ClassLabel\), photo)", "tiny", directory=root)


@pytest.fixture
def tiny(prepare_tfds):
    both = split(300)
    return prepare_tfds("tiny", {"train": both, "test": both}, shape=(6, 6, 1), classes=CLASSES)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_a_truncated_shard_gets_one_line_that_names_it(tiny, part, keep):
    root, folder = tiny
    shard = folder / f"tiny-{part}.array_record-00000-of-00001"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(len(whole) * keep)])
    message = refused("0 readable records of 300, .* truncated", "tiny", directory=root)
    assert str(shard) in message


def test_a_missing_shard_gets_one_line_that_names_it(tiny):
    root, folder = tiny
    (folder / "tiny-train.array_record-00000-of-00001").unlink()
    refused("tiny-train.array_record-00000-of-00001 is missing", "tiny", directory=root)


def test_damaged_bytes_inside_a_shard_get_one_line(tiny):
    root, folder = tiny
    shard = folder / "tiny-train.array_record-00000-of-00001"
    content = bytearray(shard.read_bytes())
    middle = content.index(b"PNG", 2000)
    content[middle : middle + 20] = bytes(20)
    shard.write_bytes(content)
    refused(r"train records \d+\.\.\d+ in .* cannot be read", "tiny", directory=root)


def test_a_shard_with_fewer_records_than_promised_is_told(tiny):
    root, folder = tiny
    file = folder / "dataset_info.json"
    info = json.loads(file.read_text())
    info["splits"][0]["shardLengths"] = ["301"]
    file.write_text(json.dumps(info))
    refused("300 readable records of 301", "tiny", directory=root)


def test_another_file_format_says_how_to_prepare_this_one(tiny):
    root, folder = tiny
    file = folder / "dataset_info.json"
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    message = refused("as tfrecord, not array_record", "tiny", directory=root)
    assert "file_format='array_record'" in message


def test_a_broken_description_gets_one_line(tiny):
    root, folder = tiny
    (folder / "dataset_info.json").write_text("{")
    refused("cannot be opened", "tiny", directory=root)


def test_another_version_than_the_prepared_one_names_what_is_there(tiny):
    root, _ = tiny
    refused("holds 1.0.0", "tiny:2.0.0", directory=root)


def test_a_data_set_that_is_not_prepared_says_where_was_searched_and_how_to_prepare_it(tmp_path):
    message = refused("not prepared", "mnist", directory=str(tmp_path))
    assert str(tmp_path) in message
    assert "pip install 'jdcl_jax[tfds]'" in message
    assert f"tfds.builder('mnist', data_dir='{tmp_path}', file_format='array_record')" in message
    assert list(tmp_path.iterdir()) == []
    refused("no such folder", "mnist", directory=str(tmp_path / "absent"))


def test_reading_imports_no_tensorflow(tiny):
    root, _ = tiny
    code = (
        "import sys; from jdcl_jax.data.datasets import load; load('digits'); "
        f"print(len(load('tiny', directory={root!r}).train)); "
        "assert 'tensorflow_datasets' in sys.modules; "
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "300\n", "")


def first_records(name, number):
    """Decodes the first records straight from the file: an oracle that uses neither TFDS's reader
    nor ours.
    """
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets.proto import tf_example_pb2

    (file,) = REAL.glob(f"{name}/*/{name}-train.array_record-*")
    for record in ArrayRecordReader(str(file)).read(list(range(number))):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        with Image.open(io.BytesIO(feature["image"].bytes_list.value[0])) as picture:
            yield np.asarray(picture), feature["label"].int64_list.value[0]


@pytest.mark.skipif(
    not (REAL / "fashion_mnist").is_dir(),
    reason="no prepared fashion_mnist: set JDCL_TFDS_DIR to the folder that holds it",
)
@pytest.mark.long
def test_the_real_fashion_mnist_is_whole():
    loaded = load("fashion_mnist", directory=str(REAL), image_size=32, fit="pad")
    assert loaded.train.images.shape == (60000, 32, 32, 1)
    assert loaded.test.images.shape == (10000, 32, 32, 1)
    assert np.bincount(loaded.train.labels).tolist() == [6000] * 10
    assert np.bincount(loaded.test.labels).tolist() == [1000] * 10
    assert loaded.class_names[0] == "T-shirt/top"
    pixels, labels = zip(*first_records("fashion_mnist", 50), strict=True)
    assert loaded.train.labels[:50].tolist() == list(labels)
    inside = np.ascontiguousarray(loaded.train.images[:50, 2:30, 2:30, 0])
    expected = hashlib.sha256(np.stack(pixels).tobytes()).hexdigest()
    assert hashlib.sha256(inside.tobytes()).hexdigest() == expected
    # Known of this data set: the mean training pixel is 0.2860 of 255 (28x28, before padding).
    mean = loaded.train.images[:, 2:30, 2:30].mean(dtype=np.float64) / 255
    assert mean == pytest.approx(0.2860, abs=1e-4)


@pytest.mark.skipif(
    not (REAL / "cifar10").is_dir(),
    reason="no prepared cifar10: set JDCL_TFDS_DIR to the folder that holds it",
)
@pytest.mark.long
def test_the_real_cifar10_is_whole():
    loaded = load("cifar10", directory=str(REAL))
    assert loaded.train.images.shape == (50000, 32, 32, 3)
    assert np.bincount(loaded.train.labels).tolist() == [5000] * 10
    assert np.bincount(loaded.test.labels).tolist() == [1000] * 10
    for row, (pixels, label) in enumerate(first_records("cifar10", 20)):
        np.testing.assert_array_equal(loaded.train.images[row], pixels)
        assert loaded.train.labels[row] == label
