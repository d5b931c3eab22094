"""Noise schedules: how much of the image is left at every timestep."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.errors import UserError

SCHEDULES = ("linear", "cosine")


@flax.struct.dataclass
class Schedule:
    """alpha_bar_t for t = 0..T-1, float32 [T], falling; the last one is exactly 0 with zero terminal SNR."""

    alpha_bar: jax.Array

    @property
    def timesteps(self) -> int:
        """T, the number of timesteps."""
        return self.alpha_bar.shape[0]


def linear_betas(timesteps: int, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """Evenly spaced betas, float64 [T]. Defaults of DDPM and of arXiv 2311.14028 [code]."""
    return np.linspace(start, end, timesteps, dtype=np.float64)


def cosine_betas(timesteps: int, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """The cosine schedule of improved DDPM (arXiv 2102.09672), float64 [T]; betas capped at `largest`."""
    u = np.arange(timesteps + 1, dtype=np.float64) / timesteps
    alpha_bar = np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], largest)


def zero_terminal_snr(alpha_bar: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alpha_bar) so that the last entry is 0 and the first is kept (arXiv 2305.08891)."""
    root = np.sqrt(alpha_bar)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def alpha_bars(
    name: str = "linear",
    timesteps: int = 1000,
    *,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_snr: bool = False,
) -> np.ndarray:
    """alpha_bar_t for t = 0..T-1 by the schedule's name, float64 [T]; arguments and errors as `make_schedule`.

    The likelihood bound needs these digits: its coefficients divide by beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, of
    which float32 keeps only three digits at small t.
    """
    if name == "linear":
        betas = linear_betas(timesteps, beta_start, beta_end)
    elif name == "cosine":
        betas = cosine_betas(timesteps)
    else:
        raise UserError(f"diffusion.schedule is '{name}'; write one of: {', '.join(SCHEDULES)}")
    alpha_bar = np.cumprod(1.0 - betas)
    return zero_terminal_snr(alpha_bar) if zero_snr else alpha_bar


def make_schedule(
    name: str = "linear",
    timesteps: int = 1000,
    *,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_snr: bool = False,
) -> Schedule:
    """Builds a schedule by name; computed in float64, stored in float32.

    Args:
      name: "linear" (betas from beta_start to beta_end) or "cosine" (which ignores the two betas).
      timesteps: T.
      beta_start: first beta of the linear schedule.
      beta_end: last beta of the linear schedule.
      zero_snr: rescale to zero terminal SNR, so that x_{T-1} is pure noise.

    Raises:
      UserError: an unknown name.
    """
    alpha_bar = alpha_bars(name, timesteps, beta_start=beta_start, beta_end=beta_end, zero_snr=zero_snr)
    return Schedule(alpha_bar=jnp.asarray(alpha_bar, jnp.float32))
