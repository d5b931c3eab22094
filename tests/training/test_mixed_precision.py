"""Training in bfloat16 stays near training in float32: the same losses to a few percent, the same way of parameters."""

import jax
import numpy as np
import pytest

from jdcl_jax.assembly import RunArrays, assemble, phase_step
from jdcl_jax.keys import named_key
from jdcl_jax.methods.method import DENOISER
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool
from jdcl_jax.training.step import scan_steps

STEPS = 40
LOSS, WAY = 0.03, 0.10  # how far the losses and the way that the parameters went may differ, relative


@pytest.fixture(scope="module")
def trained(tiny_config):
    """Dtype -> losses [40], parameters before and after 40 steps of plain training."""

    def train(dtype: str):
        config = tiny_config("finetune", f"train.steps={STEPS}", "train.batch_size=32", f"model.dtype={dtype}")
        parts = assemble(config)
        state = jax.device_get(RunArrays(parts).initial()["networks"][DENOISER])
        (phase,) = parts.method.phases(0)
        train, parallel = parts.sequence.train, Parallel("pmap", jax.local_devices()[:1])
        pool = Pool(train.images, train.labels)
        context = Context(named_key(0, "task", 0, phase.name), pool, parts.method.context({}, 0))
        before = state.params
        shared, split = parallel.replicate((state, context)), parallel.split({"current": np.arange(32, dtype=np.int32)})
        call, _ = parallel.compile_step(scan_steps(phase_step(parts, phase, STEPS), STEPS), *shared, split, {})
        after, metrics = call(*shared, split, {})
        return np.asarray(metrics["loss"]), before, jax.device_get(after.params)

    return {dtype: train(dtype) for dtype in ("float32", "bfloat16")}


def test_losses_stay_within_three_percent(trained) -> None:
    exact, half = trained["float32"][0], trained["bfloat16"][0]
    assert exact[-5:].mean() < 0.7 * exact[:5].mean()  # it learns
    assert np.max(np.abs(half - exact) / exact) < LOSS


def test_parameters_stay_float32_and_go_the_same_way(trained) -> None:
    (_, start, exact), (_, again, half) = trained["float32"], trained["bfloat16"]
    jax.tree.map(np.testing.assert_array_equal, start, again)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype(np.float32)}

    def length(a, b) -> float:
        return float(np.sqrt(sum(np.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))))  # noqa: B905

    assert 0 < length(half, exact) < WAY * length(exact, start)
