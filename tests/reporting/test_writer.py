import json
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jdcl_jax.errors import UserError
from jdcl_jax.reporting.writer import Writer, write_json


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir: Path) -> list[Event]:
    """The events of all TensorBoard files, oldest file first: length, its crc, data, its crc."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(workdir: Path) -> list[tuple[int, str, float]]:
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(workdir)
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    ]


def test_a_line_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    writer = Writer(tmp_path, 0)
    writer.write_scalars(7, {"task": 1, "phase": "train", "loss": jnp.float32(0.5)})
    assert lines(tmp_path) == [{"step": 7, "task": 1, "phase": "train", "loss": 0.5}]
    writer.close()


def test_numbers_also_go_to_tensorboard_and_texts_do_not(tmp_path):
    with Writer(tmp_path, 0) as writer:
        writer.write_scalars(7, {"phase": "train", "loss": np.float32(0.5), "bad": np.nan})
    assert scalars(tmp_path) == [(7, "loss", 0.5)]


def test_non_finite_numbers_stay_valid_json(tmp_path):
    with Writer(tmp_path, 0) as writer:
        writer.write_scalars(1, {"a": float("nan"), "b": np.float64("inf"), "c": jnp.bfloat16(1.5)})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "a": None,
        "b": None,
        "c": 1.5,
    }


def test_an_array_is_not_a_scalar(tmp_path):
    with Writer(tmp_path, 0) as writer, pytest.raises(TypeError, match="'loss'"):
        writer.write_scalars(1, {"loss": np.zeros(3)})
    assert lines(tmp_path) == []


def test_resuming_keeps_exactly_the_lines_that_were_there_at_the_checkpoint(tmp_path):
    """By their number: an evaluation after the checkpoint has the same step as the last line before it."""
    kept = ['{"step": 0, "a": 1}\n', '{"step": 19}\n', '{"step": 20, "loss": null}\n']
    dropped = ['{"step": 20, "phase": "evaluate"}\n', "not json\n", '{"step": 300}\n', '{"step": 1}']
    (tmp_path / "metrics.jsonl").write_text("".join(kept + dropped))
    with Writer(tmp_path, 20, len(kept)) as writer:
        assert (tmp_path / "metrics.jsonl").read_text() == "".join(kept)
        writer.write_scalars(21, {"loss": 2})
        assert writer.lines == 4
    assert lines(tmp_path)[-2:] == [{"step": 20, "loss": None}, {"step": 21, "loss": 2}]
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_half_a_line_is_never_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    Writer(tmp_path, 2, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_resuming_hides_later_tensorboard_events(tmp_path):
    with Writer(tmp_path, 0) as writer:
        writer.write_scalars(30, {"loss": 1.0})
    with Writer(tmp_path, 20) as writer:
        writer.write_scalars(25, {"loss": 2.0})
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [21]  # TensorBoard drops events from this step on
    assert {(30, "loss", 1.0), (25, "loss", 2.0)} <= set(scalars(tmp_path))


def test_a_new_run_hides_nothing(tmp_path):
    with Writer(tmp_path / "new", 0) as writer:
        writer.write_scalars(1, {"loss": 1.0})
    assert not any(event.HasField("session_log") for event in events(tmp_path / "new"))


def test_images_reach_tensorboard_as_one_grid(tmp_path):
    with Writer(tmp_path, 0) as writer:
        writer.write_images(5, {"samples": np.zeros((4, 8, 8, 1), np.uint8)})
    (image,) = [
        (event.step, value.tag, value.image.width, value.image.height)
        for event in events(tmp_path)
        for value in event.summary.value
        if value.HasField("image")
    ]
    assert image == (5, "samples", 2 * (48 + 2) + 2, 2 * (48 + 2) + 2)


def test_a_workdir_that_cannot_be_made_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        Writer(tmp_path / "file", 0)


def test_write_json_understands_arrays_and_leaves_no_nan(tmp_path):
    tree = {
        "matrix": np.array([[1.0, np.nan], [2.0, 3.5]]),
        "counts": jnp.array([1, 2]),
        "scalar": np.int64(3),
        "flag": np.bool_(True),
        "pair": (1, float("-inf")),
        "path": tmp_path,
        1: None,
    }
    write_json(tmp_path / "deep" / "tree.json", tree)
    text = (tmp_path / "deep" / "tree.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "matrix": [[1.0, None], [2.0, 3.5]],
        "counts": [1, 2],
        "scalar": 3,
        "flag": True,
        "pair": [1, None],
        "path": str(tmp_path),
        "1": None,
    }


def test_write_json_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "tree.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError, match="object"):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["tree.json"]


def test_write_json_names_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        write_json(tmp_path, {})
    assert list(tmp_path.parent.glob(".*.tmp")) == []
