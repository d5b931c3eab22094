"""Image-classification data sets that TFDS prepared as array_record, read without TensorFlow.

Nothing is ever downloaded.
"""

import contextlib
import difflib
import io
import logging
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from jdcl_jax.data import builders
from jdcl_jax.data.arrays import Dataset, Split
from jdcl_jax.data.resize import Fit
from jdcl_jax.errors import UserError
from jdcl_jax.paths import named_path

# name, name/config, name:version, name/config:version. No namespaces ("huggingface:..."), which
# TFDS would download.
NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w.\-+=]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?")
RECORDS_PER_READ = 256


@dataclass(frozen=True)
class _Source:
    """An opened data set: TFDS's builder, and what errors about it are to say."""

    name: str
    root: Path
    builder: Any
    height: int  # 0: images of several sizes
    width: int
    channels: int
    undecoded: dict[str, Any]  # TFDS's word for: leave the images encoded
    domain: str  # the feature that says each image's domain; "": none


class _Record(NamedTuple):
    pixels: np.ndarray  # uint8 [H, W, C]
    jpeg: bool
    label: int
    domain: int  # 0 where there is none


def read(name: str, directory: str, fit: Fit, other_names: Sequence[str] = (), domain: str = "") -> Dataset:
    """Reads the train and the test split; where there is no labelled test, validation is test.

    Args:
      name: A TFDS name, see `NAME`; the data set must have the features `image` and `label`.
      directory: Folder that holds prepared data sets; "" is TFDS's own.
      fit: The size to bring images to while reading; data sets with images of several sizes need
        one.
      other_names: Names that are no TFDS data set, to be suggested to somebody who misspelt one.
      domain: The feature that says each image's domain, a class label or a whole number >= 0; "":
        images have none.

    Raises:
      UserError: The name is unknown, the data set is not prepared there as array_record, records
        are missing or broken, or it is no image classification.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"data set {name!r} needs tensorflow-datasets: pip install jdcl_jax") from error
    root = named_path(directory or tfds.core.constants.DATA_DIR, "data.dir")
    with _absl_warnings_off():
        source = _open(tfds, name, root, other_names, domain)
        if not source.height and not fit.size:
            raise UserError(f"{name}: its images have several sizes: give an image size, to bring them to one")
        test_split, opened = _open_test(source)
        train, jpeg = _read_split(source, "train", _open_split(source, "train"), fit)
        test, _ = _read_split(source, test_split, opened, fit)
    lossy = ", stored as JPEG (lossy)" if jpeg else ""
    substitute = "" if test_split == "test" else f", its {test_split} split as test images"
    provenance = (
        f"{name}: TFDS {source.builder.info.full_name}, array_record{lossy}{substitute}"
        f"{fit.describe(source.height, source.width)}"
    )
    class_names = tuple(source.builder.info.features["label"].names)
    return Dataset(name, train, test, class_names, provenance)


@contextlib.contextmanager
def _absl_warnings_off() -> Iterator[None]:
    """Silences TFDS's hints (no OpenCV, no dataset_info.json): our errors say what matters."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _open(tfds: Any, name: str, root: Path, other_names: Sequence[str], domain: str) -> _Source:
    try:
        if not NAME.fullmatch(name):
            raise tfds.core.DatasetNotFoundError(name)
        builder = tfds.builder(name, data_dir=str(root))
        splits = builder.info.splits
    except tfds.core.DatasetNotFoundError as error:
        if there := _there(name, root):
            raise UserError(f"data set {name!r} cannot be opened: {there}") from error
        if _has_builder_here(name):
            raise UserError(f"data set {name!r} is not prepared in {root}: {_prepare(name, root)}") from error
        raise UserError(_unknown(tfds, name, root, other_names)) from error
    # TFDS raises AssertionError, ParseError, ValueError and more: a version it does not know, a
    # broken json file.
    except Exception as error:
        raise UserError(
            f"data set {name!r} cannot be opened in {root} ({_line(error)}): "
            f"{_there(name, root) or _prepare(name, root)}"
        ) from error
    if not splits:
        where = root if root.is_dir() else f"{root} (no such folder)"
        raise UserError(f"data set {name!r} is not prepared in {where}: {_prepare(name, root)}")
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(
            f"data set {name!r} is prepared in {root} as {file_format}, not array_record: "
            f"delete {builder.data_path}, or name another directory, and {_prepare(name, root)}"
        )
    shape = _image_shape(tfds, name, builder.info.features)
    _check_domain(tfds, name, builder.info.features, domain)
    return _Source(name, root, builder, *shape, {"image": tfds.decode.SkipDecoding()}, domain)


def _there(name: str, root: Path) -> str:
    """Which versions or configs of `name` are in `root`, where another one was asked for."""
    base = _base(name)
    folder = root / base
    found = sorted(entry.name for entry in folder.iterdir()) if base and folder.is_dir() else []
    return f"{folder} holds {', '.join(found)}; name one, or prepare it again" if found else ""


def _base(name: str) -> str:
    """The name without config and version."""
    return re.split("[:/]", name)[0]


def _has_builder_here(name: str) -> bool:
    """Whether the builder is this project's own and not in TFDS's catalogue; looked up without an import of it."""
    return _base(name) in {module.name for module in pkgutil.iter_modules(builders.__path__)}


def _prepare(name: str, root: Path) -> str:
    """What to type to prepare `name` in `root`."""
    if _has_builder_here(name):
        module = f"{builders.__name__}.{_base(name)}"
        return (
            f'unpack it in a folder SOURCE and type `python -c "from {module} import prepare; '
            f"prepare('SOURCE', '{root}')\"`"
        )
    return (
        "prepare it with `pip install 'jdcl_jax[tfds]'` and "
        '`python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{root}', file_format='array_record')"
        '.download_and_prepare()"`'
    )


def _unknown(tfds: Any, name: str, root: Path, other_names: Sequence[str]) -> str:
    here = [entry.name for entry in root.iterdir()] if root.is_dir() else []
    known = [*other_names, *here, *tfds.list_builders(with_community_datasets=False)]
    close = difflib.get_close_matches(name.lower().partition(":")[0], known, n=1)
    hint = f"write {', '.join(other_names)} or the name of a TFDS data set"
    if close:
        hint = f"did you mean {close[0]!r}?"
    return f"data set {name!r} is unknown (also in {root}): {hint}"


def _image_shape(tfds: Any, name: str, features: Any) -> tuple[int, int, int]:
    """Height, width (0, 0: several sizes) and channels; `UserError` if not image classification."""
    found: dict[str, Any] = dict(features or {})
    image: Any = found.get("image")
    label: Any = found.get("label")
    image_and_label = (tfds.features.Image, tfds.features.ClassLabel)
    if not all(map(isinstance, (image, label), image_and_label)):
        listed = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in found.items())
        raise UserError(
            f"{name}: is no image classification: it needs the features image (Image) and "
            f"label (ClassLabel) but has {listed or 'none'}"
        )
    height, width, channels = image.shape
    if np.dtype(image.np_dtype) != np.uint8 or channels not in (1, 3):
        raise UserError(
            f"{name}: its images are {np.dtype(image.np_dtype)} of {channels} channels: "
            "only uint8 of 1 or 3 channels is read"
        )
    if not label.num_classes:
        raise UserError(f"{name}: its feature 'label' has no number of classes")
    return (height, width, channels) if height and width else (0, 0, channels)


def _check_domain(tfds: Any, name: str, features: Any, domain: str) -> None:
    if not domain:
        return
    whole = {
        key: isinstance(feature, tfds.features.ClassLabel)
        or (feature.shape == () and np.issubdtype(feature.np_dtype, np.integer))
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Tensor) and key != "label"
    }
    if not whole.get(domain):
        found = ", ".join(key for key, is_whole in whole.items() if is_whole)
        raise UserError(
            f"{name}: tasks.domain is {domain!r}, which is no feature of one whole number: "
            f"write {f'one of {found}' if found else 'tasks.domain empty, it has none'}"
        )


def _open_test(source: _Source) -> tuple[str, Any]:
    """The split that serves as test, and its records."""
    splits = source.builder.info.splits
    for split in ("test", "validation"):
        if "train" in splits and split in splits:
            opened = _open_split(source, split)
            # ImageNet's test images are published without labels, which TFDS writes as -1.
            if _records(source, split, opened, [0])[0].label >= 0:
                return split, opened
    raise UserError(
        f"{source.name}: has the splits {', '.join(sorted(splits))}: it needs train, and test or validation with labels"
    )


def _open_split(source: _Source, split: str) -> Any:
    """The split's records, once each shard holds the number that dataset_info.json promises."""
    from array_record.python.array_record_module import ArrayRecordReader

    info = source.builder.info.splits[split]
    promised = list(info.shard_lengths or [])
    if not sum(promised):
        raise UserError(f"{source.name}: dataset_info.json promises no {split} records: {_again(source)}")
    for path, number in zip(map(Path, info.filepaths), promised, strict=True):
        if not path.is_file():
            raise UserError(f"{source.name}: {path} is missing: {_again(source)}")
        reader = ArrayRecordReader(str(path))
        readable = reader.num_records()
        # Closing a reader that met a broken file raises again what the count below tells.
        with contextlib.suppress(RuntimeError):
            reader.close()
        if readable != number:
            raise UserError(
                f"{source.name}: {path} has {readable} readable records of {number}, "
                f"so it is truncated or damaged: {_again(source)}"
            )
    return source.builder.as_data_source(split=split, decoders=source.undecoded)


def _again(source: _Source) -> str:
    return f"delete {source.builder.data_path} and {_prepare(source.name, source.root)}"


def _records(source: _Source, split: str, opened: Any, rows: list[int]) -> list[_Record]:
    try:
        return [
            _Record(*_decoded(record["image"], source), record["label"], record[source.domain] if source.domain else 0)
            for record in opened.__getitems__(rows)
        ]
    # The reader raises RuntimeError, IndexError and others for damaged bytes, pillow its own for a
    # damaged image.
    except Exception as error:
        raise UserError(
            f"{source.name}: {split} records {rows[0]}..{rows[-1]} in "
            f"{source.builder.data_path} cannot be read ({_line(error)}): {_again(source)}"
        ) from error


def _decoded(encoded: bytes, source: _Source) -> tuple[np.ndarray, bool]:
    """Pixels as uint8 [H, W, C], and whether they were stored as JPEG.

    Always pillow's decoder: TFDS would take OpenCV's where that is installed, and JPEG pixels would
    depend on it.
    """
    with Image.open(io.BytesIO(encoded)) as picture:
        pixels = np.asarray(picture.convert("L" if source.channels == 1 else "RGB"))
        jpeg = picture.format == "JPEG"
    height, width = pixels.shape[:2]
    if source.height and (height, width) != (source.height, source.width):
        raise ValueError(f"an image is {height}x{width}, not {source.height}x{source.width}")
    return pixels.reshape(height, width, source.channels), jpeg


def _read_split(source: _Source, split: str, opened: Any, fit: Fit) -> tuple[Split, bool]:
    """The split, and whether any of its images is a JPEG."""
    number = len(opened)
    images = np.empty((number, *fit.shape(source.height, source.width), source.channels), np.uint8)
    labels, domains = np.empty(number, np.int32), np.empty(number, np.int64)
    any_jpeg = False
    title = f"{source.name} {split}"
    with tqdm(total=number, desc=title, delay=1, leave=False, disable=None) as progress:
        for start in range(0, number, RECORDS_PER_READ):
            rows = list(range(start, min(start + RECORDS_PER_READ, number)))
            for row, record in zip(rows, _records(source, split, opened, rows), strict=True):
                images[row] = fit.image(record.pixels)
                labels[row], domains[row] = record.label, record.domain
                any_jpeg = any_jpeg or record.jpeg
            progress.update(len(rows))
    if domains.min() < 0 or domains.max() >= 2**31:
        raise UserError(
            f"{source.name}: {source.domain!r} of {split} runs from {domains.min()} to {domains.max()}: "
            "name a feature with numbers of 0 or more in tasks.domain"
        )
    return Split(images, labels, domains.astype(np.int32) if source.domain else None), any_jpeg


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    # TFDS puts the arguments of its builder before what went wrong.
    return re.sub(r"^Failed to construct .*?}\": ", "", lines[0])[:200] if lines else repr(error)
