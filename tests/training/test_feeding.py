"""Data fed by the host, call by call, trains bit for bit like data that lies on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import small_runs
from jdcl_jax.assembly import RunArrays, assemble
from jdcl_jax.data.views import Views
from jdcl_jax.experiment import Experiment, run
from jdcl_jax.keys import named_key
from jdcl_jax.methods.buffer import buffer_rows
from jdcl_jax.training.checkpoint import Checkpoints
from jdcl_jax.training.feeding import make_feed
from jdcl_jax.training.gradients import descend
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool, Range, create_state
from jdcl_jax.training.step import scan_steps, train_step
from jdcl_jax.training.streams import Stream, range_rows

pytestmark = pytest.mark.end_to_end

MIRROR = Views(flip=True, crop_scale=1.0, operations=0, cutout=0.0).weak
STREAMS = {
    "current": Stream(8, rows=range_rows("current"), view=MIRROR),
    "buffer": Stream(4, rows=buffer_rows("buffer"), view=MIRROR),
}
METHOD = {
    "current": Range(np.int32(16), np.int32(20)),  # 20 rows, batches of 8: an epoch ends within a batch
    "buffer": {"rows": np.array([3, 1, 4, 15, 9], np.int32), "count": np.int32(5), "offered": np.int32(16)},
}


def loss(params, batch, context):
    """Depends on the position of every pixel, so that a flip or another row shows."""
    del context
    total = sum(jnp.mean((e.image.reshape(len(e.label), -1) @ params["w"] - e.label) ** 2) for e in batch.values())
    return total, {}


def trained(regression, mode: str, steps_per_call: int, *, fed: bool):
    parallel, optimizer = Parallel(mode, jax.local_devices()[:2]), optax.sgd(0.01)

    def step(*args, axis_name=None):
        gradient = descend(loss)
        return train_step(*args, gradient=gradient, streams=STREAMS, optimizer=optimizer, ema=0.0, axis_name=axis_name)

    pool = None if fed else Pool(regression.images, regression.labels)
    context = parallel.replicate(Context(named_key(7), pool, METHOD))
    state = parallel.replicate(create_state({"w": jnp.arange(4.0)}, optimizer, ema=False))
    ids = parallel.split({name: np.arange(s.batch_size, dtype=np.int32) for name, s in STREAMS.items()})
    feed = make_feed(STREAMS, regression.images, regression.labels, steps_per_call) if fed else lambda c, first: {}
    call, _ = parallel.compile_step(
        scan_steps(step, steps_per_call), state, context, ids, parallel.split(feed(context, 0))
    )
    losses = []
    for first in range(0, 12, steps_per_call):
        state, metrics = call(state, context, ids, parallel.split(feed(context, first)))
        losses.append(np.asarray(metrics["loss"]))
    return np.asarray(state.params["w"]), np.concatenate(losses)


@pytest.mark.parametrize(("mode", "steps_per_call"), [("pmap", 3), ("jit", 1)])
def test_fed_and_resident_data_train_bit_for_bit_alike(regression, mode, steps_per_call) -> None:
    fed, resident = (trained(regression, mode, steps_per_call, fed=way) for way in (True, False))
    np.testing.assert_array_equal(fed[0], resident[0])
    np.testing.assert_array_equal(fed[1], resident[1])
    assert not np.allclose(fed[0], np.arange(4.0))


def test_a_call_is_fed_the_rows_of_its_steps_examples_first(regression) -> None:
    feed = make_feed({"current": Stream(8, rows=lambda c, key, positions: positions % 40)}, regression.images,
                     regression.labels, 3)  # fmt: skip
    images, labels = feed(Context(named_key(0), None, {}), 2)["current"]
    assert images.shape == (8, 3, 2, 2, 1)
    assert images.dtype == np.uint8
    for step in range(3):
        rows = np.arange((2 + step) * 8, (3 + step) * 8) % 40
        np.testing.assert_array_equal(images[:, step], regression.images[rows])
        np.testing.assert_array_equal(labels[:, step], regression.labels[rows])


def test_streams_that_draw_for_themselves_are_fed_nothing(regression) -> None:
    streams = {"replay": Stream(8, draw=lambda context, keys: None)}
    assert make_feed(streams, regression.images, regression.labels, 2)(Context(named_key(0), None, {}), 0) == {}


@pytest.mark.long
def test_a_whole_run_is_bit_for_bit_alike(tiny_config, tmp_path, monkeypatch) -> None:
    small_runs.quick(monkeypatch.setattr)
    pools = []
    original = Experiment._context

    def spying(self, phase):
        context = original(self, phase)
        pools.append(context.pool is not None)
        return context

    monkeypatch.setattr(Experiment, "_context", spying)
    ends = []
    for name, words in (("fed", ["data.device_memory_mib=0"]), ("resident", [])):
        config = tiny_config("finetune", *words)
        results = run(config, tmp_path / name)
        shapes = RunArrays(assemble(config)).shapes()
        checkpoints = Checkpoints(tmp_path / name / "checkpoints", read_only=True)
        ends.append((checkpoints.restore_task(3, shapes)[0], results["scores"]))
    assert pools == [False] * 3 + [True] * 3
    (fed, fed_scores), (resident, resident_scores) = ends
    for a, b in zip(jax.tree.leaves(fed), jax.tree.leaves(resident), strict=True):
        np.testing.assert_array_equal(a, b)
    assert fed_scores == resident_scores
