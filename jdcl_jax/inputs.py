"""What must fit before a run begins or goes on: batches and devices, hosts among themselves, data and checkpoint."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdcl_jax.assembly import Parts
from jdcl_jax.config import flatten
from jdcl_jax.errors import UserError
from jdcl_jax.methods.method import Phase
from jdcl_jax.reporting.runs import MACHINE_KEYS
from jdcl_jax.results import versions
from jdcl_jax.training import hosts
from jdcl_jax.training.checkpoint import checksum


def data_checksum(parts: Parts) -> int:
    """CRC-32 of all images, labels and names of classes, and of label embeddings that are given."""
    conditioner = parts.network.conditioner
    given = None if conditioner is None else conditioner.labels_given
    tree = {
        name: {"images": split.images, "labels": split.labels, "domains": split.domains}
        for name, split in (("train", parts.dataset.train), ("test", parts.dataset.test))
    }
    names = np.frombuffer(json.dumps(parts.dataset.class_names).encode(), np.uint8)
    return checksum({**tree, "names": names, "embeddings": None if given is None else np.asarray(given.array())})


def check_hosts_agree(parts: Parts, data: int) -> None:
    """Every process must have been started alike, or each would train its share of another run.

    Raises:
      UserError: in all processes, if config, data or versions are not the same.
    """
    config = {key: value for key, value in flatten(parts.config).items() if key not in MACHINE_KEYS}
    words = json.dumps([config, versions(), data], default=str, sort_keys=True)
    hosts.check_same(
        zlib.crc32(words.encode()),
        "the processes were not started alike: write the same config on every host, with the same data and versions",
    )


def check_resumed(record: Mapping[str, Any], data: int, workdir: Path) -> None:
    """Raises `UserError` if a checkpoint's record is of an earlier version or of other data than `data_checksum`."""
    if "data" not in record:
        raise UserError(
            f"{workdir} was begun with an earlier version of jdcl_jax, which alone can finish it; "
            "write another --workdir"
        )
    if record["data"] != data:
        raise UserError(
            f"{workdir} was begun with other images, labels or label embeddings; bring them back to data.dir, "
            "data.name or context.embeddings, or write another --workdir"
        )


def check_batches(phases: Sequence[Phase], devices: int, batch_size: int) -> None:
    """Raises `UserError`, which names the option, where a batch of a phase can't be shared by so many devices."""
    for phase in phases:
        for name, stream in phase.streams.items():
            unit = devices * stream.multiple
            if stream.batch_size % unit:
                option = stream.option or ("train.batch_size" if stream.batch_size == batch_size else "")
                what = f"{option}=" if option else f"in phase {phase.name} the batch of stream {name}, "
                how = "write" if option else "write options that make it"
                otherwise = ", or start with JAX_NUM_CPU_DEVICES=1" if jax.default_backend() == "cpu" else ""
                raise UserError(
                    f"{what}{stream.batch_size} can't be shared by {devices} devices; "
                    f"{how} a multiple of {unit}{otherwise}"
                )
