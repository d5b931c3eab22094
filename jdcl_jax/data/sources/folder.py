"""Images from a folder with one folder per class.

Either PATH/CLASS/image.png (a fixed share of each class becomes test), or PATH/train/CLASS/... and
PATH/test/CLASS/...

Classes are numbered by their folders' names in sorted order ("10" comes before "2"), images are
ordered by file name.
Files: jpg, jpeg, png, webp, bmp, in any letter case; other files and names that begin with a dot
are ignored. All images gray: one channel; one with colour: three channels for all. Transparency is
dropped.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from jdcl_jax.data.arrays import Dataset, Split, split_off_test
from jdcl_jax.data.resize import Fit
from jdcl_jax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
GRAY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")

Files = dict[str, list[Path]]  # class name -> paths of its images


def read(name: str, path: Path, fit: Fit, test_fraction: float) -> Dataset:
    """Reads the folder at `path`; `UserError` if it is not as above or an image cannot be read.

    Images of different sizes need a `fit` with a size.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: write folder:PATH with the path of a folder")
    inside = _folders(path)
    if "train" in inside and "test" in inside:
        parts = [_class_files(path / part) for part in ("train", "test")]
        _check_same_classes(path, *parts)
    elif "train" in inside or "test" in inside:
        there, missing = ("train", "test") if "train" in inside else ("test", "train")
        raise UserError(f"{path}: has {there}/ but no {missing}/: give both, or class folders and neither")
    else:
        parts = [_class_files(path)]
    class_names = tuple(parts[0])
    # All parts are read as one list, so that they agree on gray or colour and on the size.
    files = [file for part in parts for paths in part.values() for file in paths]
    labels = np.concatenate([np.full(len(paths), c) for part in parts for c, paths in enumerate(part.values())])
    everything = Split(_read_images(files, fit), labels.astype(np.int32))
    if len(parts) == 2:
        border = sum(len(paths) for paths in parts[0].values())
        train = Split(everything.images[:border], everything.labels[:border])
        test = Split(everything.images[border:], everything.labels[border:])
        origin = "train/ and test/"
    else:
        train, test = split_off_test(name, everything, test_fraction)
        origin = f"a fixed stratified {test_fraction:.0%} of the images as test"
    return Dataset(name, train, test, class_names, f"{name}: image files, {origin}{fit.describe()}")


def _folders(path: Path) -> list[str]:
    return sorted(e.name for e in _entries(path) if _is(e.is_dir) and not e.name.startswith((".", "__")))


def _image_names(path: Path) -> list[str]:
    images = [e for e in _entries(path) if e.name.lower().endswith(EXTENSIONS) and not e.name.startswith(".")]
    return sorted(e.name for e in images if _is(e.is_file))


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): give yourself the right to, or name another"
        ) from error


def _is(kind: Callable[[], bool]) -> bool:
    """What `DirEntry.is_dir` or `is_file` says; a link that leads to itself is neither."""
    try:
        return kind()
    except OSError:
        return False


def _class_files(path: Path) -> Files:
    stray = _image_names(path)
    if stray:
        raise UserError(f"{path / stray[0]}: lies outside a class folder: move it into PATH/CLASS/")
    files = {}
    for class_name in _folders(path):
        folder = path / class_name
        files[class_name] = [folder / file for file in _image_names(folder)]
        if not files[class_name]:
            kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
            raise UserError(f"{folder}: class folder without an image ({kinds}): add images to it, or delete it")
    if not files:
        raise UserError(f"{path}: holds no class folder: write one folder per class, PATH/CLASS/image.png")
    return files


def _check_same_classes(path: Path, train: Files, test: Files) -> None:
    for classes, others, missing in ((train, test, "test"), (test, train, "train")):
        odd = sorted(set(classes) - set(others))
        if odd:
            raise UserError(f"{path}: class {odd[0]!r} has no folder in {missing}/: every class needs one there")


def _read_images(files: list[Path], fit: Fit) -> np.ndarray:
    first, _ = _read_image(files[0])
    native = first.shape[:2]
    images = np.empty((len(files), *fit.shape(*native), 3), np.uint8)
    all_gray = True
    for row, file in enumerate(tqdm(files, desc="images", unit="image", delay=1, leave=False, disable=None)):
        pixels, gray = _read_image(file)
        if not fit.size and pixels.shape[:2] != native:
            raise UserError(
                f"{file}: is {pixels.shape[0]}x{pixels.shape[1]} (height x width) but "
                f"{files[0]} is {native[0]}x{native[1]}: give an image size, to bring them to one"
            )
        all_gray = all_gray and gray
        try:
            images[row] = fit.image(pixels)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
    return images[..., :1].copy() if all_gray else images


def _read_image(file: Path) -> tuple[np.ndarray, bool]:
    """Pixels as uint8 [H, W, 3], and whether the file was gray."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as picture:
            mode = picture.mode
            pixels = np.asarray(picture.convert("RGB"))
    # Its warnings are of transparency, which is dropped, and of damaged extras. Pillow's decoders
    # raise many types for a broken file (OSError, SyntaxError, ValueError, struct.error, ...).
    except Exception as error:
        raise UserError(f"{file}: cannot be read as an image ({error}): replace or delete it") from error
    if mode in DEEP_MODES:
        raise UserError(f"{file}: has more than 8 bits per channel (mode {mode}): convert it to 8 bits")
    return pixels, mode in GRAY_MODES
