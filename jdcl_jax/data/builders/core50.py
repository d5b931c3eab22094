"""CORe50 for TFDS: 50 objects in 10 categories, filmed in 11 sessions, 128x128 (arXiv 1705.03550).

The images are unpacked by hand, `core50_128x128.zip` into a folder SOURCE, which then holds
`SOURCE/core50_128x128/s1/o1/C_01_01_000.png`: session 1, object 1, frame 0. This prepares them as array_record in DIR.
The PNGs are copied as they are, for which TFDS 4.9.10 needs no TensorFlow and 4.9.7 still does
(`pip install 'jdcl_jax[tfds]'`); reading never does.

    python -c "from jdcl_jax.data.builders.core50 import prepare; prepare('SOURCE', 'DIR')"
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jdcl_jax.errors import UserError

FOLDER = "core50_128x128"
CATEGORIES = (
    "plug_adapter", "mobile_phone", "scissor", "light_bulb", "can", "glass", "ball", "marker", "cup", "remote_control",
)  # fmt: skip
OBJECTS = tuple(f"{category}{number}" for category in CATEGORIES for number in range(1, 6))
SESSIONS = tuple(range(1, 12))
TEST_SESSIONS = (3, 7, 10)
"""The usual ones of arXiv 1705.03550."""
TRAIN_SESSIONS = tuple(session for session in SESSIONS if session not in TEST_SESSIONS)


def examples(folder: Path, sessions: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and examples of some sessions, sorted by session, object and frame.

    Args:
      folder: Holds `s1`, ..., `s11`, each `o1`, ..., `o50`, each frames in PNG.
      sessions: Numbers from 1.

    Returns:
      ("s1/o1/C_01_01_000.png", {"image": its path, "label": object 0..49, "category": 0..9, "session": from 1}).

    Raises:
      UserError: A folder is missing or holds no frame.
    """
    for session in sessions:
        for number in range(1, len(OBJECTS) + 1):
            place = folder / f"s{session}" / f"o{number}"
            frames = sorted(place.glob("*.png"))
            if not frames:
                raise UserError(f"{place} holds no PNG: unpack the whole of {FOLDER}.zip into {folder.parent}")
            for frame in frames:
                yield (
                    f"s{session}/o{number}/{frame.name}",
                    {"image": frame, "label": number - 1, "category": (number - 1) // 5, "session": session},
                )


class Core50(tfds.core.GeneratorBasedBuilder):
    """TFDS's builder: splits train (8 sessions) and test (sessions 3, 7, 10)."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "128x128."}  # noqa: RUF012 (TFDS's own way)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Unpack {FOLDER}.zip of CORe50 there, so that it holds {FOLDER}/s1/o1/."

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="CORe50: 50 objects in 10 categories, filmed in 11 sessions.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(128, 128, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=OBJECTS),
                    "category": tfds.features.ClassLabel(names=CATEGORIES),
                    "session": tfds.features.Scalar(np.int32),
                }
            ),
            citation="arXiv 1705.03550",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = Path(dl_manager.manual_dir) / FOLDER
        return {
            "train": self._generate_examples(folder, TRAIN_SESSIONS),
            "test": self._generate_examples(folder, TEST_SESSIONS),
        }

    def _generate_examples(self, folder: Path, sessions: Sequence[int]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from examples(folder, sessions)


def prepare(source: str, data_dir: str) -> None:
    """Prepares `source`/core50_128x128 as the TFDS data set `core50` in `data_dir`, as array_record."""
    settings = tfds.download.DownloadConfig(manual_dir=source)
    Core50(data_dir=data_dir, file_format="array_record").download_and_prepare(download_config=settings)
