"""Every step of a run as shapes: what does not fit together shows without anything compiled."""

from typing import Any

import jax
import numpy as np

from jdcl_jax.assembly import Parts, RunArrays, assemble, chain_steps, phase_optimizer, phase_step
from jdcl_jax.methods.method import DENOISER
from jdcl_jax.training.state import Context, Pool, begin_phase, begin_task


def traced(config: Any) -> None:
    """Builds all parts of a config and traces one step of every phase of its first two tasks."""
    parts = assemble(config)
    shapes = RunArrays(parts).shapes()
    memory = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes["memory"])
    for task in range(min(parts.num_tasks, 2)):
        phases = list(parts.method.phases(task))
        for place in range(len(phases)):
            context = jax.tree.map(jax.numpy.asarray, parts.method.context(memory, task))
            jax.eval_shape(lambda own, c=context, n=place, p=phases: _step(parts, p, n, own, c), shapes["networks"])


def _step(parts: Parts, phases: list[Any], place: int, networks: dict[str, Any], method: dict[str, Any]) -> Any:
    phase, steps = phases[place], chain_steps(phases, place)
    train = parts.sequence.train
    pool = Pool(jax.numpy.asarray(train.images[:1]), jax.numpy.asarray(train.labels[:1]))
    context = Context(key=jax.random.key(0), pool=pool, method=method)
    own = begin_task(networks[phase.network]) if phase.network == DENOISER else networks[phase.network]
    own = begin_phase(own, phase_optimizer(parts, steps, phase.network), reset_optimizer=True)
    ids = {name: jax.ShapeDtypeStruct((stream.batch_size,), np.int32) for name, stream in phase.streams.items()}
    after, _ = jax.eval_shape(lambda i: phase_step(parts, phase, steps)(own, context, i, {}), ids)
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, own)
    return own
