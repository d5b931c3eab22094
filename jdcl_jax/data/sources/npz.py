"""Images and labels from one .npz file.

Arrays of the file (others are ignored):
  images       [N, H, W], [N, H, W, 1] or [N, H, W, 3]; uint8 with pixels 0..255, or floating
               point in [0, 1]
  labels       [N], whole numbers 0..C-1, every class present
  test_images, test_labels
               optional, both or none, of the same kind; without them a fixed share is test
  class_names  optional, [C], strings
  domains      optional, [N], whole numbers >= 0, such as sessions; read where tasks are made of domains
  test_domains as domains, of the test images
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from jdcl_jax.archives import ArchiveError, read_archive
from jdcl_jax.data.arrays import Dataset, Split, split_off_test
from jdcl_jax.data.resize import Fit
from jdcl_jax.errors import UserError

ARRAYS = ("images", "labels", "test_images", "test_labels", "class_names", "domains", "test_domains")


def read(name: str, path: Path, fit: Fit, test_fraction: float, domain: str = "") -> Dataset:
    """Reads the file at `path`; `UserError` if it is not as above. Floats become round(255 x).

    With `domain` "domains" the images have domains, else none.
    """
    if domain not in ("", "domains"):
        raise UserError(f"{name}: tasks.domain is {domain!r}: of an npz file write 'domains', its array of that name")
    arrays = _arrays(path)
    for needed in ("images", "labels"):
        if needed not in arrays:
            raise UserError(f"{path}: has no array {needed!r}: it must hold 'images' and 'labels'")
    if ("test_images" in arrays) != ("test_labels" in arrays):
        raise UserError(f"{path}: holds only one of 'test_images' and 'test_labels': give both or neither")
    given = _split(path, "", arrays, domain)
    native = given.images.shape[1:]
    if "test_images" in arrays:
        train, test = given, _split(path, "test_", arrays, domain)
        if test.images.shape[1:] != native:
            raise UserError(
                f"{path}: 'test_images' are {_text(test.images.shape[1:])} but 'images' are "
                f"{_text(native)} (height x width x channels): they must be alike"
            )
        origin = "with its own test images"
    else:
        train, test = split_off_test(name, given, test_fraction)
        origin = f"a fixed stratified {test_fraction:.0%} of them as test images"
    class_names = _class_names(path, arrays, int(given.labels.max()) + 1)
    provenance = f"{name}: {path.name}, {origin}{fit.describe(native[0], native[1])}"
    train, test = (replace(split, images=fit.images(split.images)) for split in (train, test))
    return Dataset(name, train, test, class_names, provenance)


def _split(path: Path, prefix: str, arrays: dict[str, np.ndarray], domain: str) -> Split:
    """The arrays whose names begin with `prefix`, checked."""
    images = _images(path, f"{prefix}images", arrays)
    labels = _labels(path, f"{prefix}labels", arrays, len(images))
    return Split(images, labels, _domains(path, f"{prefix}{domain}", arrays, len(images)) if domain else None)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: no such file: write npz:PATH with the path of an .npz file")
    try:
        return read_archive(path, ARRAYS)[0]
    except ArchiveError as error:
        raise UserError(f"{path}: cannot be read as an .npz file ({error}): save it again with numpy.savez") from error


def _images(path: Path, key: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    images = arrays[key]
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{path}: {key!r} has shape {arrays[key].shape}: write [N, H, W], [N, H, W, 1] or [N, H, W, 3] with N >= 1"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"{path}: {key!r} is {images.dtype}: write uint8 (0..255), or floating point in [0, 1]")
    if not np.isfinite(images).all():
        raise UserError(f"{path}: {key!r} holds NaN or infinity: write floating point in [0, 1], or uint8")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise UserError(
            f"{path}: {key!r} is {images.dtype} with values from {low:g} to {high:g}: "
            "write floating point in [0, 1], or uint8 (0..255)"
        )
    return np.rint(images.astype(np.float32) * 255).astype(np.uint8)


def _labels(path: Path, key: str, arrays: dict[str, np.ndarray], number: int) -> np.ndarray:
    labels = arrays[key]
    if labels.shape != (number,):
        raise UserError(f"{path}: {key!r} has shape {labels.shape}: write ({number},), one number per image")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{path}: {key!r} is {labels.dtype}: write whole numbers 0..C-1 as integers")
    # Checked here, as a cast to int32 could wrap a wild number round into the allowed range.
    if labels.min() < 0 or labels.max() >= 2**31 - 1:
        raise UserError(f"{path}: {key!r} runs from {labels.min()} to {labels.max()}: write numbers 0..C-1")
    if "class_names" not in arrays and key == "labels" and labels.max() >= number:
        raise UserError(
            f"{path}: {key!r} goes up to {labels.max()} with {number} images: write class numbers 0..C-1 without gaps"
        )
    return labels.astype(np.int32)


def _domains(path: Path, key: str, arrays: dict[str, np.ndarray], number: int) -> np.ndarray:
    if key not in arrays:
        raise UserError(f"{path}: has no array {key!r}: add it, one number per image, or leave tasks.domain empty")
    domains = arrays[key]
    if domains.shape != (number,) or not np.issubdtype(domains.dtype, np.integer):
        raise UserError(
            f"{path}: {key!r} is {domains.dtype} of shape {domains.shape}: write ({number},) integers, one per image"
        )
    if domains.min() < 0 or domains.max() >= 2**31:
        raise UserError(f"{path}: {key!r} runs from {domains.min()} to {domains.max()}: write numbers of 0 or more")
    return domains.astype(np.int32)


def _class_names(path: Path, arrays: dict[str, np.ndarray], classes: int) -> tuple[str, ...]:
    if "class_names" not in arrays:
        return tuple(str(c) for c in range(classes))
    names = arrays["class_names"]
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(f"{path}: 'class_names' is {names.dtype} of shape {names.shape}: write [C] strings")
    return tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)
