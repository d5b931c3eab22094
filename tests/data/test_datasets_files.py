"""Data sets from npz files and from folders of images."""

import numpy as np
import pytest
from PIL import Image

from jdcl_jax.data.datasets import load
from jdcl_jax.errors import UserError

RANDOM = np.random.default_rng(0)


def arrays(number=20, classes=2, shape=(6, 6)):
    images = RANDOM.integers(0, 256, (number, *shape)).astype(np.uint8)
    return {"images": images, "labels": np.arange(number) % classes}


def saved(path, **contents):
    np.savez(path, **contents)
    return f"npz:{path}"


# npz


def test_an_npz_file_keeps_its_pixels_and_splits_off_every_fifth_image_of_a_class(tmp_path):
    given = arrays()
    loaded = load(saved(tmp_path / "a.npz", **given))
    # Of class 0 (rows 0, 2, ...) the 5th and 10th image are rows 8 and 18; of class 1 rows 9 and
    # 19.
    np.testing.assert_array_equal(loaded.test.images[..., 0], given["images"][[8, 9, 18, 19]])
    np.testing.assert_array_equal(loaded.test.labels, [0, 1, 0, 1])
    rest = np.delete(given["images"], [8, 9, 18, 19], axis=0)
    np.testing.assert_array_equal(loaded.train.images[..., 0], rest)
    assert loaded.class_names == ("0", "1")
    assert loaded.train.labels.dtype == np.int32


def test_an_npz_file_with_test_images_keeps_its_own_split(tmp_path):
    train, test = arrays(shape=(6, 6, 3)), arrays(4, shape=(6, 6, 3))
    named = np.array(["cat", "dog"])
    name = saved(
        tmp_path / "a.npz",
        **train,
        test_images=test["images"],
        test_labels=test["labels"],
        class_names=named,
    )
    loaded = load(name)
    np.testing.assert_array_equal(loaded.train.images, train["images"])
    np.testing.assert_array_equal(loaded.test.images, test["images"])
    assert loaded.class_names == ("cat", "dog")
    assert "its own test images" in loaded.provenance


def test_floating_point_images_in_0_to_1_become_pixels(tmp_path):
    given = arrays()
    for dtype in (np.float32, np.float64):
        name = saved(tmp_path / "f.npz", images=(given["images"] / 255).astype(dtype), labels=given["labels"])
        expected = load(saved(tmp_path / "u.npz", **given))
        np.testing.assert_array_equal(load(name).train.images, expected.train.images)


def test_floating_point_images_are_rounded_to_the_nearest_pixel(tmp_path):
    """0.01 is pixel 2.55, 0.998 is 254.49."""
    images = np.tile([[0.01, 0.998], [0.0, 1.0]], (10, 1, 1))
    loaded = load(saved(tmp_path / "a.npz", images=images, labels=np.arange(10) % 2))
    np.testing.assert_array_equal(loaded.test.images[0, :, :, 0], [[3, 254], [0, 255]])


def test_npz_images_are_brought_to_the_size_and_a_relative_path_starts_at_the_directory(tmp_path):
    saved(tmp_path / "a.npz", **arrays(shape=(6, 6, 1)))
    loaded = load("npz:a.npz", directory=str(tmp_path), image_size=8, fit="pad")
    assert loaded.train.images.shape == (16, 8, 8, 1)
    assert loaded.test.images.shape == (4, 8, 8, 1)


GOOD = arrays()
BAD_NPZ = {
    "no labels": ({"images": GOOD["images"]}, "no array 'labels'"),
    "two channels": (arrays(shape=(6, 6, 2)), r"'images' has shape \(20, 6, 6, 2\)"),
    "flat images": (arrays(shape=(36,)), r"shape \(20, 36\)"),
    "no images": (arrays(0), r"shape \(0, 6, 6\)"),
    "fewer labels": ({**GOOD, "labels": GOOD["labels"][:-1]}, r"'labels' has shape \(19,\)"),
    "column of labels": ({**GOOD, "labels": GOOD["labels"][:, None]}, r"shape \(20, 1\)"),
    "float labels": ({**GOOD, "labels": GOOD["labels"] / 1.0}, "'labels' is float64"),
    "label gap": ({**GOOD, "labels": GOOD["labels"] * 2}, "class 1 .* has no training image"),
    "wild label": ({**GOOD, "labels": GOOD["labels"] + 2**32}, "'labels' runs from 4294967296"),
    "label beyond": ({**GOOD, "labels": GOOD["labels"] + 500}, "goes up to 501 with 20 images"),
    "negative label": ({**GOOD, "labels": GOOD["labels"] - 1}, "runs from -1"),
    "NaN": ({**GOOD, "images": np.where(np.arange(6) == 3, np.nan, GOOD["images"] / 255)}, "NaN"),
    "0..255 floats": ({**GOOD, "images": GOOD["images"] / 1.0}, r"floating point in \[0, 1\]"),
    "signed": ({**GOOD, "images": GOOD["images"].astype(np.int64)}, "int64: write uint8"),
    "objects": ({**GOOD, "labels": GOOD["labels"].astype(object)}, "Python objects"),
    "one test array": ({**GOOD, "test_images": GOOD["images"]}, "only one of 'test_images'"),
    "other test size": (
        {**GOOD, "test_images": arrays(shape=(5, 6))["images"], "test_labels": GOOD["labels"]},
        "'test_images' are 5x6x1 but 'images' are 6x6x1",
    ),
    "class without test": (
        {**GOOD, "test_images": GOOD["images"], "test_labels": GOOD["labels"] * 0},
        "class 1 .* has no test image",
    ),
    "test label beyond": (
        {**GOOD, "test_images": GOOD["images"], "test_labels": GOOD["labels"] + 1},
        "test label is 2",
    ),
    "numbers as names": ({**GOOD, "class_names": np.arange(2)}, r"'class_names' is int64"),
    "too few names": ({**GOOD, "class_names": np.array(["a"])}, "training label is 1, outside"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_an_npz_file_that_is_not_as_described_gets_one_line(case, tmp_path):
    contents, message = BAD_NPZ[case]
    with pytest.raises(UserError, match=message) as caught:
        load(saved(tmp_path / "a.npz", **contents))
    assert "\n" not in str(caught.value)


def test_a_truncated_a_foreign_and_a_missing_npz_file_get_one_line(tmp_path):
    saved(tmp_path / "a.npz", **GOOD)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.npz").write_text("not an archive")
    np.save(tmp_path / "c.npy", GOOD["images"])
    for name, message in [
        ("a.npz", "cannot be read"),
        ("b.npz", "cannot be read"),
        ("c.npy", "single array"),
        ("d.npz", "no such file"),
    ]:
        with pytest.raises(UserError, match=message):
            load(f"npz:{tmp_path / name}")


def test_a_damaged_array_inside_an_npz_file_gets_one_line(tmp_path):
    saved(tmp_path / "a.npz", **GOOD)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[400:440] = bytes(255 - b for b in content[400:440])
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        load(f"npz:{tmp_path / 'a.npz'}")


# folders


def write_image(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path)


def gray(seed, height=6, width=6):
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def write_classes(root, classes=("cat", "dog"), number=5, extension="png"):
    for c, name in enumerate(classes):
        for i in range(number):
            write_image(root / name / f"{i}.{extension}", gray(100 * c + i))


def test_a_folder_per_class_keeps_its_pixels(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    loaded = load(f"folder:{tmp_path}")
    assert loaded.class_names == ("cat", "dog")
    assert loaded.train.images.shape == (8, 6, 6, 1)
    np.testing.assert_array_equal(loaded.train.images[:4, :, :, 0], [gray(i) for i in range(4)])
    np.testing.assert_array_equal(loaded.test.images[..., 0], [gray(4), gray(104)])
    np.testing.assert_array_equal(loaded.test.labels, [0, 1])


def test_train_and_test_folders_keep_their_split(tmp_path):
    write_classes(tmp_path / "train", number=3)
    write_classes(tmp_path / "test", number=1, extension="bmp")
    loaded = load("folder:.", directory=str(tmp_path))
    assert (len(loaded.train), len(loaded.test)) == (6, 2)
    np.testing.assert_array_equal(loaded.test.images[1, :, :, 0], gray(100))
    np.testing.assert_array_equal(loaded.train.labels, [0, 0, 0, 1, 1, 1])


def test_one_colour_image_among_gray_ones_makes_all_three_channels(tmp_path):
    write_classes(tmp_path)
    colour = np.stack([gray(1), gray(2), gray(3)], axis=-1)
    write_image(tmp_path / "dog" / "2.png", colour)
    loaded = load(f"folder:{tmp_path}")
    assert loaded.train.images.shape == (8, 6, 6, 3)
    np.testing.assert_array_equal(loaded.train.images[6], colour)
    np.testing.assert_array_equal(loaded.train.images[0], np.stack([gray(0)] * 3, axis=-1))


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "webp", "bmp"])
def test_other_kinds_of_image_files_are_read(extension, tmp_path):
    write_classes(tmp_path, extension=extension)
    assert len(load(f"folder:{tmp_path}").train) == 8


def test_images_of_several_sizes_need_a_size(tmp_path):
    write_classes(tmp_path)
    write_image(tmp_path / "dog" / "0.png", gray(0, 9, 12))
    with pytest.raises(UserError, match=r"dog/0\.png: is 9x12 .* give an image size"):
        load(f"folder:{tmp_path}")
    assert load(f"folder:{tmp_path}", image_size=6).train.images.shape == (8, 6, 6, 1)
    with pytest.raises(UserError, match=r"dog/0\.png: .* too big to pad"):
        load(f"folder:{tmp_path}", image_size=8, fit="pad")


def test_an_unreadable_image_is_named(tmp_path):
    write_classes(tmp_path)
    file = tmp_path / "cat" / "3.png"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"cat/3\.png: cannot be read as an image"):
        load(f"folder:{tmp_path}")
    file.write_text("no image at all")
    with pytest.raises(UserError, match=r"cat/3\.png: cannot be read as an image"):
        load(f"folder:{tmp_path}")


def test_an_image_of_16_bits_is_refused_rather_than_clipped(tmp_path):
    write_classes(tmp_path)
    write_image(tmp_path / "cat" / "1.png", gray(1).astype(np.uint16) * 256)
    with pytest.raises(UserError, match=r"cat/1\.png: has more than 8 bits"):
        load(f"folder:{tmp_path}")


def break_empty(root):
    write_classes(root)
    (root / "emu").mkdir()


def break_stray(root):
    write_classes(root)
    write_image(root / "stray.png", gray(0))


def break_half_a_split(root):
    write_classes(root / "train")


def break_missing_test_class(root):
    write_classes(root / "train")
    write_classes(root / "test", classes=("cat",))


def break_extra_test_class(root):
    write_classes(root / "train")
    write_classes(root / "test", classes=("cat", "dog", "emu"))


def break_too_few(root):
    write_classes(root, number=4)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "holds no class folder"),
        (break_empty, "emu: class folder without an image"),
        (break_stray, r"stray\.png: lies outside a class folder"),
        (break_half_a_split, "has train/ but no test/"),
        (break_missing_test_class, "class 'dog' has no folder in test/"),
        (break_extra_test_class, "class 'emu' has no folder in train/"),
        (break_too_few, "class 0 has 4 images, too few"),
    ],
)
def test_a_folder_that_is_not_as_described_gets_one_line(prepare, message, tmp_path):
    prepare(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_missing_folder_gets_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(f"folder:{tmp_path / 'absent'}")
