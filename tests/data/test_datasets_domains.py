"""Data sets whose images have domains, such as the session in which they were taken."""

import numpy as np
import pytest

from jdcl_jax.data.datasets import load
from jdcl_jax.errors import UserError

CLASSES = ["ant", "bee", "cow"]


def refused(message, *args, **options):
    with pytest.raises(UserError, match=message) as caught:
        load(*args, **options)
    assert "\n" not in str(caught.value)


# -- npz


def arrays(number=60, domains=(4, 9), seed=0):
    """Classes 0 and 1 by turns, each domain for half of the rows; the first pixel is the domain."""
    images = np.random.default_rng(seed).integers(0, 256, (number, 6, 6)).astype(np.uint8)
    of_rows = np.repeat(domains, number // len(domains))
    images[:, 0, 0] = of_rows
    return {"images": images, "labels": np.arange(number) % 2, "domains": of_rows}


def saved(path, **contents):
    np.savez(path, **contents)
    return f"npz:{path}"


def test_domains_of_an_npz_file_stay_with_their_images(tmp_path):
    loaded = load(saved(tmp_path / "a.npz", **arrays()), domain="domains")
    for split in (loaded.train, loaded.test):
        assert split.domains.tolist() == split.images[:, 0, 0, 0].tolist()
        assert split.domains.dtype == np.int32
    # 15 images of each class of each domain, of which every 5th is test.
    names, counts = np.unique([loaded.test.labels, loaded.test.domains], axis=1, return_counts=True)
    assert names.T.tolist() == [[0, 4], [0, 9], [1, 4], [1, 9]]
    assert counts.tolist() == [3, 3, 3, 3]
    assert "a fixed stratified 20%" in loaded.provenance


def test_domains_that_nobody_asked_for_are_not_there(tmp_path):
    loaded = load(saved(tmp_path / "a.npz", **arrays()))
    assert loaded.train.domains is None
    assert loaded.test.domains is None


def test_test_domains_of_an_npz_file_are_its_test_images_own(tmp_path):
    test = arrays(8, (9, 4), seed=1)
    contents = {**arrays(), **{f"test_{key}": value for key, value in test.items()}}
    loaded = load(saved(tmp_path / "a.npz", **contents), domain="domains", image_size=8, fit="pad")
    np.testing.assert_array_equal(loaded.test.images[:, 1:7, 1:7, 0], test["images"])
    np.testing.assert_array_equal(loaded.test.domains, test["domains"])
    assert len(loaded.train) == 60
    assert "left out" not in loaded.provenance


def test_test_images_of_other_domains_are_left_out_and_it_is_said(tmp_path):
    test = arrays(8, (4, 5), seed=1)
    contents = {**arrays(), **{f"test_{key}": value for key, value in test.items()}}
    loaded = load(saved(tmp_path / "a.npz", **contents), domain="domains")
    assert (len(loaded.train), len(loaded.test)) == (48, 12)
    assert set(loaded.test.domains.tolist()) == {4, 9}
    assert "its own test images (of the domains 4, 5) left out" in loaded.provenance


GOOD = arrays()
TEST = {"test_images": GOOD["images"], "test_labels": GOOD["labels"]}
BAD = {
    "no domains": ({**GOOD, "domains": None}, "has no array 'domains': add it"),
    "no test domains": ({**GOOD, **TEST}, "has no array 'test_domains'"),
    "fewer": ({**GOOD, "domains": GOOD["domains"][1:]}, r"'domains' is int64 of shape \(59,\): write \(60,\)"),
    "floats": ({**GOOD, "domains": GOOD["domains"] / 1.0}, "'domains' is float64"),
    "negative": ({**GOOD, "domains": GOOD["domains"] - 5}, "'domains' runs from -1 to 4: write numbers of 0 or more"),
    "wild": ({**GOOD, "domains": GOOD["domains"] + 2**32}, "'domains' runs from 4294967300"),
    "wild test": ({**GOOD, **TEST, "test_domains": GOOD["domains"] - 9}, "'test_domains' runs from -5"),
}


@pytest.mark.parametrize("case", BAD)
def test_domains_of_an_npz_file_that_cannot_be_get_one_line(case, tmp_path):
    contents, message = BAD[case]
    name = saved(tmp_path / "a.npz", **{key: value for key, value in contents.items() if value is not None})
    refused(message, name, domain="domains")


def test_where_there_are_no_domains_to_be_had_it_is_said(tmp_path):
    refused(
        "data set 'digits' has no domains and tasks.domain is 'session': leave it empty", "digits", domain="session"
    )
    refused("has no domains", f"folder:{tmp_path}", domain="session")
    name = saved(tmp_path / "a.npz", **GOOD)
    refused("tasks.domain is 'session': of an npz file write 'domains'", name, domain="session")


# -- TFDS


def images(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, 6, 6, 1)).astype(np.uint8), np.arange(number) % 3


@pytest.fixture
def prepared(prepare_tfds):
    """30 training images of sessions 2 and 6 and 6 test images of given sessions, with labels by turns."""
    import tensorflow_datasets as tfds

    def prepare(train=(2, 6), test=(2, 6), place=(0, 1)):
        whole = {
            "session": (tfds.features.Scalar(np.int32), {"train": np.repeat(train, 15), "test": np.repeat(test, 3)}),
            "place": (
                tfds.features.ClassLabel(names=["in", "out"]),
                {"train": np.repeat(place, 15), "test": np.repeat(place, 3)},
            ),
        }
        splits = {"train": images(30), "test": images(6, seed=1)}
        return prepare_tfds("tiny", splits, shape=(6, 6, 1), classes=CLASSES, whole=whole)[0]

    return prepare


@pytest.mark.parametrize(("domain", "expected"), [("session", (2, 6)), ("place", (0, 1))])
def test_a_feature_of_a_tfds_data_set_is_the_domain(prepared, domain, expected):
    loaded = load("tiny", directory=prepared(), domain=domain)
    assert loaded.train.domains.tolist() == np.repeat(expected, 15).tolist()
    assert loaded.test.domains.tolist() == np.repeat(expected, 3).tolist()
    assert loaded.train.domains.dtype == np.int32
    np.testing.assert_array_equal(loaded.train.images, images(30)[0])


def test_a_tfds_data_set_has_no_domains_unless_it_is_asked_for_them(prepared):
    assert load("tiny", directory=prepared()).train.domains is None


def test_test_sessions_of_a_tfds_data_set_that_are_not_trained_are_left_out(prepared):
    loaded = load("tiny", directory=prepared(test=(3, 7)), domain="session")
    np.testing.assert_array_equal(np.sort(loaded.test.domains), [2, 2, 2, 6, 6, 6])
    np.testing.assert_array_equal(np.sort(loaded.test.labels), [0, 0, 1, 1, 2, 2])
    assert loaded.provenance.endswith("its own test images (of the domains 3, 7) left out")


def test_a_feature_that_is_none_or_no_whole_number_gets_one_line_with_those_that_are(prepared):
    root = prepared()
    for domain in ("sesion", "label", "image"):
        refused(
            f"tiny: tasks.domain is '{domain}', .* write one of (session, place|place, session)",
            "tiny",
            directory=root,
            domain=domain,
        )


def test_a_data_set_without_such_a_feature_says_so(prepare_tfds):
    both = images(9)
    root, _ = prepare_tfds("tiny", {"train": both, "test": both}, shape=(6, 6, 1), classes=CLASSES)
    refused("write tasks.domain empty, it has none", "tiny", directory=root, domain="session")


def test_a_negative_domain_is_refused(prepared):
    refused("'session' of train runs from -1 to 6", "tiny", directory=prepared(train=(-1, 6)), domain="session")
