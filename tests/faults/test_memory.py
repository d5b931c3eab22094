"""Memory: its peak in every phase, which does not grow with the tasks; and what is said where there is too little."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from faults import runs
from faults.lives import live
from faults.victim import Fault
from jdcl_jax.errors import UserError
from jdcl_jax.experiment import run
from jdcl_jax.training.memory import PeakMemory, enough_memory
from jdcl_jax.training.parallel import Parallel

TASKS = 20
SLACK = 8 * 2**20  # bytes by which two peaks of the same work differ
HONEST = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Tells glibc to give arrays back at once: else its own holes, which grow by and by, are taken for ours."""
FIRST = 4  # tasks after which every program is compiled and every array of the method is there


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    """Twenty classes of 64 x 64 images, 40 of each."""
    generator, file = np.random.default_rng(0), tmp_path_factory.mktemp("stream") / "stream.npz"
    labels = np.repeat(np.arange(TASKS), 40)
    images = np.clip(generator.normal(12 * labels[:, None, None], 20, (len(labels), 64, 64)), 0, 255).astype(np.uint8)
    np.savez(file, images=images, labels=labels)
    return file


def growth(method: str, stream: Path, folder: Path, tasks: int = TASKS, **variables: str) -> dict[str, int]:
    """Phase -> bytes by which the smallest peak of the later half of its tasks is above that of the earlier half.

    The smallest, for what is kept raises every peak, and whether two devices hold their temporary arrays at the same
    moment, 40 MiB more in the evaluation, is chance.
    """
    words = [runs.words(method, str(folder / "cache")), f"tasks.first={tasks}", f"tasks.num_tasks={TASKS}"]
    words += ["method.buffer_size=40"] * (method == "er")
    words += [f"data.name=npz:{stream}", "data.image_size=64", "data.validation=0.0", "train.steps=4"]
    words += ["evaluation.num_samples=40", "evaluation.scores=('kld','ard')"]
    life = live(",".join(words), folder / "run", **HONEST, **variables)
    assert life.code == 0, life.log
    rows = json.loads((folder / "run" / "results.json").read_text())["cost"]
    assert all(row["peak_device_bytes"] is None for row in rows)  # a CPU's allocator does not tell
    found = {}
    for phase in {row["phase"] for row in rows if row["task"] == tasks}:
        peaks = [row["peak_resident_bytes"] for row in rows if row["phase"] == phase and row["task"] > FIRST]
        assert min(peaks) > 50 * 2**20
        half = len(peaks) // 2
        found[phase] = min(peaks[-half:]) - min(peaks[:half])
    return found


@pytest.mark.long
@pytest.mark.parametrize("method", ["gd", "er"])
def test_peaks_do_not_grow_with_the_tasks(method, stream, tmp_path) -> None:
    """Both methods' memory has its full size from the start: a teacher, a buffer's rows."""
    found = growth(method, stream, tmp_path)
    assert max(found.values()) < SLACK, found


@pytest.mark.long
def test_one_state_kept_at_every_checkpoint_would_be_seen(stream, tmp_path) -> None:
    found = growth("gd", stream, tmp_path, tasks=12, LEAK="1")
    assert min(found.values()) > SLACK, found


def test_a_peak_is_seen_and_forgotten_again() -> None:
    memory = PeakMemory()
    memory.start()
    if not memory.by_phase:
        pytest.skip("this system does not let a process forget its peak")
    before = memory.read()["peak_resident_bytes"]
    block = np.ones(64 * 2**20, np.uint8)
    during = memory.read()["peak_resident_bytes"]
    del block
    assert before is not None
    assert during is not None
    assert during - before > 50 * 2**20
    memory.start()
    assert memory.read()["peak_resident_bytes"] < during - 40 * 2**20


# -- too little


@pytest.mark.parametrize(
    "error", [MemoryError("no"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")]
)
def test_too_little_memory_is_the_users_error_and_names_phase_and_keys(error) -> None:
    words = r"out of memory in task 2, phase draw .*write less; the checkpoint before"
    with pytest.raises(UserError, match=words), enough_memory("task 2, phase draw", "less"):
        raise error


def test_a_numpy_array_that_does_not_fit_is_no_other_error() -> None:
    with pytest.raises(UserError, match="Unable to allocate"), enough_memory("task 1, phase train", "less"):
        np.empty(2**60, np.uint8)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="INTERNAL"), enough_memory("", ""):
        raise RuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(
    ("words", "phase", "keys"),
    [
        ("train.batch_size=33554432", "train", ["smaller train.batch_size (now 33554432)", "model.channels"]),
        pytest.param(
            "evaluation.batch_size=8388608",
            "evaluate",
            ["smaller evaluation.batch_size", "evaluation.num_samples"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_batch_that_does_not_fit_names_its_phase_and_what_to_write(words, phase, keys, tmp_path) -> None:
    everything = f"{runs.words('gd', str(tmp_path / 'cache'))},tasks.first=1,{words}"
    life = live(everything, tmp_path / "run", Fault(), MOST_MEMORY=str(6 * 2**30))
    assert life.code == 2, life.log
    last = life.log.rstrip().splitlines()[-1]
    assert last.startswith(f"error: out of memory in task 1, phase {phase}")
    assert all(key in last for key in keys)
    assert "Traceback" not in life.log


def test_what_does_not_fit_at_the_start_is_said_with_the_key_that_helps(tiny_config, tmp_path, monkeypatch) -> None:
    def too_large(parallel: Parallel, tree: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")

    monkeypatch.setattr(Parallel, "replicate", too_large)
    with pytest.raises(UserError, match=r"out of memory in the start of the run .*data\.device_memory_mib=0"):
        run(tiny_config("finetune"), tmp_path / "run")
