"""The product's own train step and sampler at a size, built as a run builds them."""

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _flops import count_flops, plain_forms
from _sizes import CLIP_NORM, EMA, LEARNING_RATE, NUM_IMAGES, TIMESTEPS, WEIGHT_DECAY, Size

from jdcl_jax import protocols
from jdcl_jax.assembly import Parts, RunArrays, assemble, phase_step
from jdcl_jax.config import default_config, set_method
from jdcl_jax.keys import named_key
from jdcl_jax.measuring.generation import Generator, balanced_labels
from jdcl_jax.methods.method import DENOISER, SOLVER, Learned, Phase
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool, TrainState
from jdcl_jax.training.step import scan_steps

Job = Callable[[], None]
"""Does a piece of work and waits for the device."""


def compute_dtype() -> str:
    """What networks compute in: bfloat16 where the hardware has it."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def parallel_beside(peer: str | None) -> Parallel:
    """All devices; one accelerator beside a peer, which uses one."""
    return Parallel(devices=jax.local_devices()[:1] if peer and jax.default_backend() != "cpu" else None)


def make_parts(
    size: Size, batch: int, *, method: str = "finetune", sampler_steps: int = 10, dtype: str = "float32"
) -> Parts:
    """A run that trains the denoiser of a size on random pixels of one task."""
    side, colours = size.image
    config = default_config()
    set_method(config, method)
    with config.unlocked():
        protocols.denoiser_of_gd(config)
        config.data.update(image_size=side, flip=False, validation=0.0)
        config.tasks.num_tasks = 1
        config.model.update(
            channels=size.channels,
            layers_per_block=size.layers_per_block,
            attention_resolutions=size.attention,
            dtype=dtype,
        )
        config.diffusion.timesteps = TIMESTEPS
        config.sampler.steps = sampler_steps
        config.train.update(
            batch_size=batch,
            optimizer="adamw",
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            clip_norm=CLIP_NORM,
            ema=EMA,
        )
    return on_random_pixels(config, (side, side, colours), classes=2)


def on_random_pixels(config: Any, image_shape: tuple[int, int, int], classes: int, count: int = NUM_IMAGES) -> Parts:
    """The run of a config on so many random images, equally many of each class, which are its test images too."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *image_shape), np.uint8)
    labels = np.arange(count, dtype=np.int32) % classes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.npz"
        np.savez(path, images=images, labels=labels, test_images=images, test_labels=labels)
        with config.unlocked():
            config.data.name = f"npz:{path}"
        return assemble(config)


def step_arguments(parts: Parts, phase: Phase, task: int) -> tuple[TrainState, Context, dict[str, np.ndarray]]:
    """State, context and example numbers of a phase's step in a task, after earlier ones that changed nothing."""
    arrays = RunArrays(parts).initial()
    networks, memory = arrays["networks"], arrays["memory"]
    for before in range(task):
        memory = parts.method.end_task(memory, _learned(networks), before)
    train = parts.sequence.train
    context = Context(
        key=named_key(0, "benchmark"),
        pool=Pool(train.images, train.labels),
        method=parts.method.context(memory, task),
    )
    ids = {name: np.arange(s.batch_size, dtype=np.int32) for name, s in phase.streams.items()}
    return networks[phase.network], context, ids


def _learned(networks: dict[str, TrainState]) -> Learned:
    state, solver = networks[DENOISER], networks.get(SOLVER)
    return Learned(state.params, state.averaged, state.tracked, None if solver is None else solver.params)


def train_job(
    parts: Parts, parallel: Parallel, steps_per_call: int, phase: Phase | None = None, task: int = 0
) -> tuple[Callable[..., None], Any]:
    """A function that runs one call of `steps_per_call` steps, or so many calls, and waits, and its compiled program.

    `phase` of the task (from 0); its first if None.
    """
    phase = phase or parts.method.phases(task)[0]
    state, context, ids = step_arguments(parts, phase, task)
    # A copy: the state is donated, and the context may hold the same arrays.
    state, context = parallel.replicate(jax.tree.map(jnp.copy, state)), parallel.replicate(context)
    split = parallel.split(ids)
    call, _ = parallel.compile_step(
        scan_steps(phase_step(parts, phase, phase.steps), steps_per_call), state, context, split, {}
    )
    holder = [state]

    def run(calls: int = 1) -> None:
        for _ in range(calls):
            holder[0], metrics = call(holder[0], context, split, {})
            if jax.default_backend() == "cpu":  # programs that wait for each other may not pile up there
                jax.block_until_ready(metrics)
        loss = np.asarray(metrics["loss"])
        if not np.isfinite(loss).all():
            raise SystemExit(f"the loss became {loss}: these timings would mean nothing")

    return run, call


def sampling_job(parts: Parts, parallel: Parallel, batch: int) -> Job:
    """A function that draws one batch of images and waits."""
    params = RunArrays(parts).initial()["networks"][DENOISER].params
    generator = Generator(parts.setup, parallel, batch)
    classes = parts.setup.num_classes
    labels = balanced_labels(range(classes), batch) if classes else None

    def run() -> None:
        generator(params, named_key(0, "benchmark"), batch, labels)

    run()  # compiles
    return run


def forget_programs() -> None:
    """Frees the programs that nothing refers to but JAX's caches.

    On a CPU one of them takes hundreds of memory mappings, and Linux allows a process 65,530 of these: a process that
    goes through all methods would run out.
    """
    gc.collect()
    jax.clear_caches()
    gc.collect()


def parameters(parts: Parts) -> int:
    """Of the denoiser."""
    shapes = RunArrays(parts).shapes()["networks"][DENOISER].params
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def step_flops(parts: Parts, phase: Phase, task: int) -> float:
    """Operations of one step of a phase."""
    state, context, ids = step_arguments(parts, phase, task)
    step = phase_step(parts, phase, phase.steps)
    with plain_forms():
        return count_flops(lambda *args: step(*args, {}), state, context, ids)


def forward_flops(parts: Parts, batch: int) -> float:
    """Operations of one forward pass of a batch."""
    setup = parts.setup
    params = RunArrays(parts).shapes()["networks"][DENOISER].params
    x, t = jnp.zeros((batch, *setup.image_shape)), jnp.zeros(batch, jnp.int32)
    labels = t if setup.num_classes else None
    with plain_forms():
        return count_flops(lambda p: setup.apply(p, x, t, labels, None), params)
