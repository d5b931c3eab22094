"""What is saved comes back bit for bit; what is damaged is noticed, named and passed over."""

import copy
import errno
import logging
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.errors import UserError
from jdcl_jax.training.checkpoint import Checkpoints, checksum


def state(seed: int) -> dict:
    """A tree such as a run's, with every type of leaf and an empty memory."""
    generator = np.random.default_rng(seed)
    return {
        "networks": {
            "denoiser": {
                "params": {"kernel": generator.normal(size=(3, 3, 4, 8)).astype(np.float32)},
                "half": jnp.asarray(generator.normal(size=(64,)), jnp.bfloat16),
                "step": np.int32(seed),
                "ema": None,
            }
        },
        "memory": {"rows": generator.integers(0, 9, 20).astype(np.int32), "pixels": np.arange(9, dtype=np.uint8)},
        "nothing": {},
    }


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def same_bits(a, b) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def by_position(record):
    return record["position"]


def newest(folder: Path, target=None):
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore_newest(shapes(target or state(0)), by_position)
    checkpoints.close()
    return found


@pytest.fixture
def written(tmp_path) -> Path:
    """Task 1 at position 10, then the middle of task 2 at 20 and 30."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save_task(1, state(10), {"position": 10, "history": [1]})
    checkpoints.save(20, state(20), {"position": 20, "history": [1, 2]})
    checkpoints.save(30, state(30), {"position": 30, "history": [1, 2, 3]})
    checkpoints.close()
    return tmp_path / "checkpoints"


# -- round trips


def test_every_bit_comes_back(written) -> None:
    restored, record = newest(written)
    assert same_bits(restored, state(30))
    assert record["history"] == [1, 2, 3]
    assert not same_bits(restored, state(20))


def test_a_memory_without_arrays_comes_back(tmp_path) -> None:
    tree = {"networks": {"w": np.ones(3, np.float32)}, "memory": {}}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree, {"position": 1})
    checkpoints.close()
    restored, _ = newest(tmp_path, tree)
    assert restored["memory"] == {}
    assert same_bits(restored, tree)


def test_there_is_nothing_in_a_new_folder(tmp_path) -> None:
    assert newest(tmp_path / "new") is None


def test_the_order_says_which_is_newest_not_the_kind(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(20, state(20), {"position": 20})
    checkpoints.save_task(1, state(25), {"position": 25})
    checkpoints.close()
    assert newest(tmp_path)[1]["position"] == 25


def test_the_last_two_and_every_task_are_kept(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in range(1, 6):
        checkpoints.save(10 * number, state(number), {"position": number})
        checkpoints.save_task(number, state(number), {"position": number})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "latest").iterdir()) == ["40", "50"]
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == ["1", "2", "3", "4", "5"]


def test_a_task_can_be_read_by_its_number(written) -> None:
    checkpoints = Checkpoints(written, read_only=True)
    assert checkpoints.tasks() == [1]
    restored, record = checkpoints.restore_task(1, shapes(state(0)))
    assert same_bits(restored, state(10))
    assert record["position"] == 10
    with pytest.raises(UserError, match=r"no checkpoint of task 2; finished tasks: 1$"):
        checkpoints.restore_task(2, shapes(state(0)))


def test_what_happens_after_a_save_does_not_reach_the_disk(tmp_path) -> None:
    """The state's buffers are given away to the next step, and the record goes on growing."""
    checkpoints = Checkpoints(tmp_path)
    tree = jax.tree.map(jnp.asarray, state(1))
    wanted = jax.tree.map(np.array, tree)
    step = jax.jit(lambda t: jax.tree.map(lambda x: x + x.astype(x.dtype), t), donate_argnums=0)
    record = {"position": 1, "history": [{"steps": 5}]}
    checkpoints.save(1, tree, record)
    for number in range(50):
        tree = step(tree)
        record["history"].append({"steps": number})
        record["history"][0]["steps"] += 1
    jax.block_until_ready(tree)
    checkpoints.close()
    restored, found = newest(tmp_path)
    assert same_bits(restored, wanted)
    assert found["history"] == [{"steps": 5}]


def test_the_record_is_copied_before_it_is_handed_over(tmp_path, monkeypatch) -> None:
    """The same without a race: what orbax gets shares nothing with what the loop keeps on changing."""
    checkpoints, handed = Checkpoints(tmp_path), []
    monkeypatch.setattr(checkpoints._latest, "save", lambda step, args, force: handed.append(args))
    record = {"position": 1, "history": [{"steps": 5}]}
    kept = copy.deepcopy(record)
    checkpoints.save(1, state(1), record)
    record["history"][0]["steps"] = 6
    assert handed[0]["record"].item.items() >= kept.items()


# -- damage


def data_file(checkpoint: Path) -> Path:
    """The file that holds the arrays: the largest."""
    files = [path for path in (checkpoint / "state").rglob("*") if path.is_file() and path.parent.name == "d"]
    return max(files, key=lambda path: path.stat().st_size)


def cut_short(checkpoint: Path) -> None:
    file = data_file(checkpoint)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_a_byte(checkpoint: Path) -> None:
    file = data_file(checkpoint)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def empty_the_data(checkpoint: Path) -> None:
    data_file(checkpoint).write_bytes(b"")


def lose_the_data(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "state")


def lose_the_record(checkpoint: Path) -> None:
    (checkpoint / "record" / "metadata").unlink()


def lose_the_records_folder(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "record")


def cut_the_record(checkpoint: Path) -> None:
    file = checkpoint / "record" / "metadata"
    file.write_text(file.read_text()[:-5])


def alter_the_checksum(checkpoint: Path) -> None:
    file = checkpoint / "record" / "metadata"
    file.write_text(file.read_text().replace('"checksum": ', '"checksum": 1'))


DAMAGES = [
    cut_short, flip_a_byte, empty_the_data, lose_the_data, lose_the_record, lose_the_records_folder, cut_the_record,
    alter_the_checksum,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_is_used(damage, written, caplog) -> None:
    damage(written / "latest" / "30")
    with caplog.at_level(logging.WARNING, logger="jdcl_jax"):
        restored, record = newest(written)
    assert record["position"] == 20
    assert same_bits(restored, state(20))
    (line,) = [entry.getMessage() for entry in caplog.records if entry.name.startswith("jdcl_jax")]
    assert line.startswith(f"checkpoint {written / 'latest' / '30'} is damaged (")
    assert "\n" not in line
    assert (written / "damaged" / "latest-30").is_dir()
    assert not (written / "latest" / "30").exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), ValueError("PERMISSION_DENIED: reading key x")]
)
def test_one_that_cannot_be_read_now_is_left_where_it_is(error, written, monkeypatch) -> None:
    """It may be sound, and the run must not begin again without it."""

    def failing(*args, **kwargs):
        raise error

    before = sorted(path for path in written.rglob("*") if path.is_file())
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_restore", failing)
        with pytest.raises(UserError, match=r"can't be read .* mend that and start the same command again"):
            newest(written)
    assert sorted(path for path in written.rglob("*") if path.is_file()) == before
    assert newest(written) is not None


def test_after_two_damaged_ones_the_task_before_is_used_and_the_run_can_save_again(written) -> None:
    flip_a_byte(written / "latest" / "30")
    cut_short(written / "latest" / "20")
    checkpoints = Checkpoints(written)
    restored, record = checkpoints.restore_newest(shapes(state(0)), by_position)
    assert record["position"] == 10
    assert same_bits(restored, state(10))
    checkpoints.save(20, state(21), {"position": 20})
    checkpoints.close()
    assert same_bits(newest(written)[0], state(21))


def test_where_all_are_damaged_there_is_none(written) -> None:
    for checkpoint in ("latest/30", "latest/20", "tasks/1"):
        flip_a_byte(written / checkpoint)
    assert newest(written) is None
    assert sorted(p.name for p in (written / "damaged").iterdir()) == ["latest-20", "latest-30", "tasks-1"]
    assert newest(written) is None


def test_a_checkpoint_whose_writing_was_cut_off_is_none(written) -> None:
    """Orbax writes beside the place and renames at the end."""
    (written / "latest" / "40.orbax-checkpoint-tmp").mkdir()
    assert newest(written)[1]["position"] == 30


def test_a_reader_leaves_a_damaged_checkpoint_where_it_is(written) -> None:
    flip_a_byte(written / "latest" / "30")
    checkpoints = Checkpoints(written, read_only=True)
    assert checkpoints.restore_newest(shapes(state(0)), by_position)[1]["position"] == 20
    assert (written / "latest" / "30").is_dir()
    assert not (written / "damaged").exists()


def test_a_damaged_task_is_refused_by_name(written) -> None:
    flip_a_byte(written / "tasks" / "1")
    with pytest.raises(UserError, match=r"checkpoint of task 1 .* is damaged"):
        Checkpoints(written, read_only=True).restore_task(1, shapes(state(0)))


def test_a_tree_of_another_network_is_refused(written) -> None:
    other = state(0)
    other["networks"]["denoiser"]["params"]["kernel"] = np.zeros((3, 3, 4, 16), np.float32)
    with pytest.raises(UserError, match="task 1"):
        Checkpoints(written, read_only=True).restore_task(1, shapes(other))


# -- the checksum


def test_the_checksum_sees_every_part_of_a_tree() -> None:
    whole = checksum(state(1))
    assert checksum(state(1)) == whole
    altered = [state(1) for _ in range(6)]
    altered[0]["networks"]["denoiser"]["params"]["kernel"][1, 2, 3, 4] += 1e-6
    del altered[1]["memory"]["rows"]
    altered[2]["memory"]["renamed"] = altered[2]["memory"].pop("rows")
    altered[3]["memory"]["rows"] = altered[3]["memory"]["rows"].astype(np.int64)
    altered[4]["memory"]["rows"] = altered[4]["memory"]["rows"].reshape(4, 5)
    altered[5]["networks"]["denoiser"]["ema"] = np.zeros(3)
    assert len({whole, *map(checksum, altered)}) == 7


def test_the_checksum_is_the_same_on_host_and_device() -> None:
    assert checksum(jax.tree.map(jnp.asarray, state(1))) == checksum(jax.tree.map(np.asarray, state(1)))
