"""A linear regression in the place of a denoiser: everything about it can be worked out with NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdcl_jax.keys import named_key
from jdcl_jax.training.gradients import Gradient, descend
from jdcl_jax.training.state import Context, Pool
from jdcl_jax.training.step import scan_steps, train_step
from jdcl_jax.training.streams import Stream


def squared_loss(params, batch, context):
    """Mean over examples of (x . w + b - label)^2."""
    del context
    examples = batch["current"]
    output = examples.image.reshape(len(examples.label), -1) @ params["w"] + params["b"]
    return jnp.mean((output - examples.label) ** 2), {"mean_label": jnp.mean(examples.label.astype(jnp.float32))}


def rows_in_order(context, key, positions):
    """Step s of a batch of B reads rows s B, s B + 1, ..."""
    del context, key
    return positions % 40


@dataclasses.dataclass(frozen=True)
class Regression:
    """The problem: 40 images of 2x2 pixels, read in order, eight a step."""

    images: np.ndarray
    labels: np.ndarray
    batch_size: int = 8

    @property
    def params(self):
        return {"w": jnp.array([0.5, -1.0, 2.0, 0.25]), "b": jnp.array(0.75)}

    @property
    def streams(self):
        return {"current": Stream(self.batch_size, rows=rows_in_order)}

    @property
    def context(self):
        return Context(named_key(0), Pool(self.images, self.labels), {})

    @property
    def ids(self):
        return {"current": np.arange(self.batch_size, dtype=np.int32)}

    def step(
        self,
        optimizer: optax.GradientTransformation,
        ema: float = 0.0,
        gradient: Gradient = descend(squared_loss),  # noqa: B008 (a pure function)
        **more,
    ):
        """`more`: penalty and track."""
        return functools.partial(
            train_step, gradient=gradient, streams=self.streams, optimizer=optimizer, ema=ema, **more
        )

    def scanned(self, optimizer: optax.GradientTransformation, steps: int, ema: float = 0.0, **more):
        return scan_steps(self.step(optimizer, ema, **more), steps)

    def inputs(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """What the step reads: x float64 [B, 4] in [-1, 1] and labels [B]."""
        rows = np.arange(step * self.batch_size, (step + 1) * self.batch_size) % 40
        return self.images[rows].reshape(self.batch_size, -1) / 127.5 - 1.0, self.labels[rows]

    def gradient(self, params: dict, step: int) -> tuple[float, dict]:
        """Loss and gradient by hand, float64."""
        x, y = self.inputs(step)
        residual = x @ params["w"] + params["b"] - y
        return float(np.mean(residual**2)), {"w": 2 * x.T @ residual / len(y), "b": 2 * np.mean(residual)}


@pytest.fixture
def regression() -> Regression:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 2, 2, 1)).astype(np.uint8)
    return Regression(images, generator.integers(0, 10, 40).astype(np.int32))


def float64(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


@pytest.fixture
def descended(regression):
    """(learning rate, steps) -> parameters after plain gradient descent by hand, float64."""

    def descend(rate: float, steps: int) -> dict:
        params = float64(regression.params)
        for step in range(steps):
            _, gradient = regression.gradient(params, step)
            params = {name: params[name] - rate * gradient[name] for name in params}
        return params

    return descend
