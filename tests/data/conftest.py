"""A TFDS data set prepared by hand: small, real array_record files, written without TensorFlow."""

import io
import json

import numpy as np
import pytest
from PIL import Image


def _encoded(pixels, kind):
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def prepare_tfds(tmp_path):
    """Writes `splits` (name -> (images, labels)) as the TFDS data set `name` 1.0.0; returns its root and its folder.

    `whole` has further features of one whole number: name -> (feature, split -> numbers).
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    def prepare(name, splits, *, shape, classes, kind="PNG", keys=("image", "label"), shards=1, whole=None):
        folder = tmp_path / "prepared" / name / "1.0.0"
        folder.mkdir(parents=True)
        image_key, label_key = keys
        tfds.features.FeaturesDict(
            {
                image_key: tfds.features.Image(shape=shape, dtype=np.uint8),
                label_key: tfds.features.ClassLabel(names=classes),
                **{key: feature for key, (feature, _) in (whole or {}).items()},
            }
        ).save_config(str(folder))
        described = []
        for split, (images, labels) in splits.items():
            parts = np.array_split(np.arange(len(labels)), shards)
            for number, rows in enumerate(parts):
                file = f"{name}-{split}.array_record-{number:05d}-of-{shards:05d}"
                writer = ArrayRecordWriter(str(folder / file), "group_size:1")
                for row in rows:
                    example = tf_example_pb2.Example()
                    feature = example.features.feature
                    feature[image_key].bytes_list.value.append(_encoded(images[row], kind))
                    feature[label_key].int64_list.value.append(int(labels[row]))
                    for key, (_, numbers) in (whole or {}).items():
                        feature[key].int64_list.value.append(int(numbers[split][row]))
                    writer.write(example.SerializeToString())
                writer.close()
            described.append(
                {
                    "name": split,
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "shardLengths": [str(len(rows)) for rows in parts],
                    "numBytes": "1",
                }
            )
        info = {
            "name": name,
            "version": "1.0.0",
            "fileFormat": "array_record",
            "splits": described,
        }
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return str(tmp_path / "prepared"), folder

    return prepare
