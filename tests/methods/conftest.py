"""Denoisers that are a line of arithmetic, so that losses, gradients and Fisher informations are known."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.diffusion.schedule import make_schedule
from jdcl_jax.keys import named_key, subkeys
from jdcl_jax.methods.method import ClassTerm, Learned, Method, Phase, Setup
from jdcl_jax.methods.registry import default_options, make_method
from jdcl_jax.training.checkpoint import to_host
from jdcl_jax.training.feeding import make_feed
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool, TrainState, begin_phase, begin_task, create_state
from jdcl_jax.training.step import observe_step, scan_steps, train_step
from jdcl_jax.training.streams import draw_batch

ROWS, PIXELS = 4, 16


def scaled(params, x_t, t, labels, keys):
    """params["w"] * x_t, shifted by the label where there is one."""
    del t, keys
    shift = 0.0 if labels is None else 0.01 * labels.astype(jnp.float32)[:, None, None, None]
    return params["w"] * x_t + shift


@pytest.fixture
def setup() -> Setup:
    labels = np.repeat(np.array([3, 1, 0, 2, 5, 4], np.int32), [10, 10, 12, 8, 5, 15])
    return Setup(
        apply=scaled,
        schedule=make_schedule("linear", 1000, zero_snr=True),
        sampler=Sampler("ddim", steps=5),
        image_shape=(4, 4, 1),
        num_classes=0,
        guidance=0.0,
        label_dropout=0.0,
        groups=((3, 1), (0, 2), (5, 4)),
        task_sizes=(20, 20, 20),
        labels=labels,
        steps=(30, 30, 30),
        batch_size=8,
        ema=False,
        seed=0,
    )


def scaled_logits(params, images, keys):
    """Logits of six classes, [B, 6]: w times the image's mean times 0, 1, ..., 5."""
    del keys
    return params["w"].mean() * images.mean((1, 2, 3))[:, None] * jnp.arange(6.0)


def affine_output(params, x_t, t, labels, keys):
    """Gives w x_t + b, one b for each row of pixels, + e of the label where there is one."""
    del t, keys
    output = params["w"] * x_t + params["b"][:, None, None]
    return output if labels is None else output + params["e"][labels][:, None, None, None]


@dataclasses.dataclass
class Affine:
    """An affine denoiser on 60 random images in three tasks: its gradients are polynomials of the noise.

    `observe` and `learn` go through phases as the loop does.
    """

    setup: Setup
    images: np.ndarray
    parallel: Parallel = dataclasses.field(default_factory=lambda: Parallel("jit", jax.devices()[:1]))
    fed: bool = False
    per_call: int = 3

    @property
    def params(self) -> dict[str, jax.Array]:
        params = {"w": jnp.float32(0.6), "b": jnp.array([0.3, -0.2, 0.1, -0.4])}
        return {**params, "e": jnp.linspace(-1.0, 1.0, 7)} if self.setup.num_classes else params

    def method(self, name: str, **options: Any) -> Method:
        """`options` of a penalty by its name: `ewc={"strength": 1.0}`."""
        merged = default_options(name)
        for key, value in options.items():
            merged[key] = {**merged[key], **value} if isinstance(value, dict) else value
        return make_method(name, self.setup, merged)

    def context(self, method: Method, memory: dict, task: int, phase: int) -> Context:
        key = named_key(self.setup.seed, "task", task, "phase", phase)
        return Context(key, Pool(self.images, self.setup.labels), method.context(memory, task))

    # -- through phases, as the loop goes

    def run_phase(
        self, phase: Phase, context: Context, state: TrainState, optimizer: Any, compiled: Any = None
    ) -> tuple[TrainState, dict]:
        """All steps of a phase from step 0; metrics [steps]. `compiled` keeps what was compiled, as the loop does."""
        compiled = {} if compiled is None else compiled
        if phase.observe is not None:
            step = functools.partial(observe_step, observe=phase.observe, streams=phase.streams)
        else:
            step = functools.partial(
                train_step,
                gradient=phase.descent,
                streams=phase.streams,
                optimizer=optimizer,
                ema=0.0,
                penalty=phase.penalty,
                track=phase.track,
            )
        per_call = np.gcd(phase.steps, self.per_call).item()
        ids = {name: np.arange(stream.batch_size, dtype=np.int32) for name, stream in phase.streams.items()}
        ids, feed = self.parallel.split(ids), make_feed(phase.streams, self.images, self.setup.labels, per_call)
        on_device = self.parallel.replicate(dataclasses.replace(context, pool=None if self.fed else context.pool))
        state, seen = self.parallel.replicate(to_host(state)), []
        for first in range(0, phase.steps, per_call):
            fed = self.parallel.split(feed(context, first)) if self.fed else {}
            if (phase.name, per_call) not in compiled:
                call, _ = self.parallel.compile_step(scan_steps(step, per_call), state, on_device, ids, fed)
                compiled[phase.name, per_call] = call
            state, metrics = compiled[phase.name, per_call](state, on_device, ids, fed)
            seen.append(jax.device_get(metrics))
        return state, {name: np.concatenate([m[name] for m in seen]) for name in seen[0]}

    def observe(self, method: Method, task: int, params: Any = None, tracked: Any = None, memory: Any = None) -> dict:
        """What the estimation after a task leaves in `tracked`."""
        params = self.params if params is None else params
        memory = method.init_memory(params) if memory is None else memory
        state = create_state(params, optax.sgd(0.0), ema=False, tracked=tracked or method.init_tracked(params))
        for number, phase in enumerate(method.phases(task)):
            if phase.observe is not None:
                state = begin_phase(state, optax.sgd(0.0), reset_optimizer=True)
                state, _ = self.run_phase(phase, self.context(method, memory, task, number), state, None)
        return jax.device_get(state.tracked)

    def learn(self, method: Method, optimizer: Any, tasks: int = 3) -> list[tuple[dict, dict, list[dict]]]:
        """(parameters, memory, metrics of each phase) after each task."""
        memory = method.init_memory(self.params)
        state = create_state(self.params, optimizer, ema=False, tracked=method.init_tracked(self.params))
        history, compiled = [], {}
        for task in range(tasks):
            state, seen = begin_task(state), []
            for number, phase in enumerate(method.phases(task)):
                state = begin_phase(state, optimizer, reset_optimizer=True)
                context = self.context(method, memory, task, number)
                state, metrics = self.run_phase(phase, context, state, optimizer, compiled)
                seen.append({"phase": phase.name, **metrics})
            params, tracked = jax.device_get((state.params, state.tracked))
            memory = method.end_task(memory, Learned(params, params, tracked), task)
            history.append((params, jax.device_get(memory), seen))
        return history

    # -- by hand, float64

    def inputs(self, method: Method, task: int, number: int) -> dict[str, np.ndarray]:
        """x_t and eps [n, 16], label [n] of all examples of an observing phase, noised with our own arithmetic."""
        phase = method.phases(task)[number]
        context = self.context(method, method.init_memory(self.params), task, number)
        ids = {"current": jnp.arange(phase.streams["current"].batch_size)}

        @jax.jit
        @jax.vmap
        def drawn(step: jax.Array) -> tuple[jax.Array, ...]:
            examples = draw_batch(phase.streams, context.replace(step=step), ids, {})["current"]
            t = jax.vmap(lambda key: jax.random.randint(key, (), 0, 1000))(subkeys(examples.key, "t"))
            eps = jax.vmap(lambda key: jax.random.normal(key, (4, 4, 1)))(subkeys(examples.key, "eps"))
            drop = jax.vmap(lambda key: jax.random.bernoulli(key, self.setup.label_dropout))
            label = jnp.where(drop(subkeys(examples.key, "label")), self.setup.num_classes, examples.label)
            return examples.image, eps, t, label

        image, eps, t, label = jax.device_get(drawn(jnp.arange(phase.steps)))
        x_0, eps = (x.astype(np.float64).reshape(-1, PIXELS) for x in (image, eps))
        alpha_bar = np.asarray(self.setup.schedule.alpha_bar, np.float64)[t.reshape(-1, 1)]
        x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps
        return {"x_t": x_t, "eps": eps, "label": label.ravel()}

    def output(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """The denoiser's output [n, 16]."""
        params = {name: np.asarray(value, np.float64) for name, value in self.params.items()}
        output = params["w"] * inputs["x_t"] + np.repeat(params["b"], 4)
        return output + params["e"][inputs["label"]][:, None] if self.setup.num_classes else output

    def slopes(self, inputs: dict[str, np.ndarray], error: np.ndarray) -> dict[str, np.ndarray]:
        """Mean over pixels of `error` [n, 16] times d output / d parameter, for each example [n, ...]."""
        slopes = {
            "w": np.mean(error * inputs["x_t"], 1),
            "b": error.reshape(-1, ROWS, 4).sum(2) / PIXELS,
        }
        if self.setup.num_classes:
            slopes["e"] = error.mean(1)[:, None] * (inputs["label"][:, None] == np.arange(7))
        return slopes

    def gradients(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Gradients of half the MSE, one for each example."""
        return self.slopes(inputs, self.output(inputs) - inputs["eps"])

    @staticmethod
    def flat(tree: Any) -> np.ndarray:
        """Entries w and b as one vector: [...] and [..., 4] -> [..., 5]."""
        return np.concatenate([np.asarray(tree["w"], np.float64)[..., None], np.asarray(tree["b"], np.float64)], -1)

    def moments(self, task: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """E[g] [5] and E[g g^T] [5, 5] of the gradient g = (w, b), exact: over the task's images, all t and all noise.

        With u = sqrt(ab) x_0 and n = sqrt(1 - ab), pixel p adds h = (w u + b + (w n - 1) e) (u + n e) to the slope of w
        and k = w u + b + (w n - 1) e to that of b, e ~ N(0, 1): polynomials with known mean and covariance.
        """
        params = {name: np.asarray(value, np.float64) for name, value in (params or self.params).items()}
        first, size = self.setup.start(task), self.setup.task_sizes[task]
        x_0 = self.images[first : first + size].astype(np.float64).reshape(size, PIXELS) / 127.5 - 1.0
        alpha_bar = np.asarray(self.setup.schedule.alpha_bar, np.float64)[:, None, None]
        u, n = np.sqrt(alpha_bar) * x_0, np.sqrt(1 - alpha_bar)
        level, slope = params["w"] * u + np.repeat(params["b"], 4), params["w"] * n - 1
        constant, linear, square = level * u, level * n + slope * u, slope * n  # of h, in powers of e

        def by_row(x: np.ndarray) -> np.ndarray:
            return np.broadcast_to(x, u.shape).reshape(*u.shape[:2], ROWS, 4).sum(3)

        mean = np.concatenate([(constant + square).sum(2, keepdims=True), by_row(level)], 2) / PIXELS
        second = np.einsum("tni,tnj->ij", mean, mean) / (len(u) * size)
        total = len(u) * size * PIXELS**2
        second[0, 0] += np.sum(linear**2 + 2 * np.broadcast_to(square, u.shape) ** 2) / total
        both = by_row(linear * slope).sum((0, 1)) / total
        second[0, 1:] += both
        second[1:, 0] += both
        second[np.arange(1, 5), np.arange(1, 5)] += by_row(slope**2).sum((0, 1)) / total
        return mean.mean((0, 1)), second


@pytest.fixture
def classifying(setup: Setup) -> Setup:
    """A setup whose network classifies as well."""
    return dataclasses.replace(setup, classifier=ClassTerm(scaled_logits, passes=0.5), ema=True)


@pytest.fixture
def affine(setup: Setup) -> Affine:
    images = np.random.default_rng(3).integers(0, 256, (60, 4, 4, 1))
    # Bright, dark and plain tasks, so that their Fisher informations differ.
    lightness = np.repeat([40, 0, -60], 20)[:, None, None, None]
    images = np.clip(images + lightness, 0, 255).astype(np.uint8)
    return Affine(dataclasses.replace(setup, apply=affine_output), images)
