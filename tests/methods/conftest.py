"""A denoiser that is one multiplication, so that losses can be worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdcl_jax.diffusion.sampler import Sampler
from jdcl_jax.diffusion.schedule import make_schedule
from jdcl_jax.methods.method import Setup


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
        steps=30,
        batch_size=8,
        flip=False,
        seed=0,
    )
