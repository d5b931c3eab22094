"""The scores' classifier on disk: trained once for a data set and settings, then read [ours].

The file is safetensors, no pickle. Its name is a hash of the pixels and labels of all splits, of
every setting and of the format, whatever the order of the classes; so other data or another setting
can never meet the wrong file, and a file never has to be invalidated. What is read is bit for bit
what was trained.
"""

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jdcl_jax.evaluation.classifier import (
    ClassifierSettings,
    LabelledImages,
    TrainedClassifier,
    rows_by_class,
    train_classifier,
)
from jdcl_jax.evaluation.features import ClassifierFeatures
from jdcl_jax.paths import named_path

# Raise this when the network, its training or the file changes: older files are then not found.
FORMAT = 1

_log = logging.getLogger(__name__)


def load_or_train_classifier(
    cache_dir: str | os.PathLike[str],
    train: LabelledImages,
    validation: LabelledImages,
    test: LabelledImages,
    settings: ClassifierSettings,
) -> TrainedClassifier:
    """The classifier from the cache, or else trained by `train_classifier` and put there.

    A damaged file is trained anew and replaced, with a one-line warning; a cache that cannot be
    written costs a one-line warning and the time to train again next time.

    Raises:
        UserError: as `train_classifier`, and a cache that can be no path.
    """
    name = _name((train, validation, test), settings)
    path = named_path(cache_dir, "evaluation.cache_dir") / f"classifier-{name[:32]}.safetensors"
    if os.path.lexists(path):
        try:
            return _read(path, settings)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            _log.warning("training the classifier again: %s is damaged (%s)", path, reason)
    trained = train_classifier(train, validation, test, settings)
    try:
        _write(path, trained)
    except OSError as error:
        _log.warning("the classifier cannot be cached in %s: %s", cache_dir, error.strerror)
    return trained


def _name(splits: tuple[LabelledImages, ...], settings: ClassifierSettings) -> str:
    digest = hashlib.sha256(f"format {FORMAT}\n".encode())
    digest.update(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    for split in splits:
        rows = rows_by_class(split)
        for array in (split.images[rows], np.asarray(split.labels, np.int64)[rows]):
            digest.update(f"\n{array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _write(path: Path, trained: TrainedClassifier) -> None:
    arrays = _flat(trained.extractor.params)
    accuracies = [trained.validation_accuracy, trained.test_accuracy]
    about = {"accuracies": accuracies, "sha256": _checksum(arrays, accuracies)}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    # One entry of metadata: safetensors writes several in an order that changes.
    unfinished.write_bytes(save(arrays, {"about": json.dumps(about)}))
    unfinished.replace(path)


def _read(path: Path, settings: ClassifierSettings) -> TrainedClassifier:
    with safe_open(path, "numpy") as file:
        about = json.loads((file.metadata() or {})["about"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if about["sha256"] != _checksum(arrays, about["accuracies"]):
        raise ValueError("its checksum is wrong")
    validation_accuracy, test_accuracy = about["accuracies"]
    params = traverse_util.unflatten_dict(arrays, sep="/")
    return TrainedClassifier(ClassifierFeatures(settings.model(), params), validation_accuracy, test_accuracy)


def _flat(params: Any) -> dict[str, np.ndarray]:
    flat = traverse_util.flatten_dict(jax.device_get(params), sep="/")
    return {name: np.ascontiguousarray(array) for name, array in flat.items()}


def _checksum(arrays: dict[str, np.ndarray], accuracies: list[float | None]) -> str:
    """A damaged tensor still parses, so the file carries a hash of all that it says."""
    digest = hashlib.sha256(json.dumps(accuracies).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()
