"""Which timesteps old examples are rehearsed at: uniform, or where replay is said to matter most."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jdcl_jax.errors import UserError

KINDS = ("uniform", "beta")
BETA = (4.0, 1.2)  # t ~ Beta(4, 1.2) T [code: analysing_ddgm, of the group of arXiv 2303.15342]

DEFAULTS: dict[str, object] = {
    "timesteps": "uniform",  # or "beta"
    "t_min": 0,  # replay at t >= t_min only; 625 of 1000 in the same code
}


@dataclass(frozen=True)
class TimestepLaw:
    """A law on 0..T-1.

    Attributes:
      timesteps: T.
      kind: "uniform", or "beta" for floor(T u), u ~ Beta(4, 1.2).
      t_min: the law given t >= t_min.
    """

    timesteps: int
    kind: str = "uniform"
    t_min: int = 0

    def probabilities(self) -> np.ndarray:
        """P(t) for t = 0..T-1, float64 [T]."""
        edges = np.arange(self.timesteps + 1) / self.timesteps
        cumulative = stats.beta(*BETA).cdf(edges) if self.kind == "beta" else edges
        mass = np.where(np.arange(self.timesteps) >= self.t_min, np.diff(cumulative), 0.0)
        return mass / mass.sum()


def draw_timesteps(law: TimestepLaw, keys: jax.Array) -> jax.Array:
    """One timestep per key: keys [B] -> int32 [B]."""
    if law.kind == "uniform":
        return jax.vmap(lambda key: jax.random.randint(key, (), law.t_min, law.timesteps))(keys)
    cumulative = jnp.asarray(np.cumsum(law.probabilities()), jnp.float32)
    uniform = jax.vmap(jax.random.uniform)(keys)
    # Below t_min it is 0 and never chosen; its end is 1, which no draw reaches.
    return jnp.searchsorted(cumulative, uniform, side="right").astype(jnp.int32)


def law_of_options(options: Mapping[str, Any], timesteps: int) -> TimestepLaw:
    """The law that a method's options name.

    Raises:
      UserError: an unknown kind, or t_min outside 0..T-1.
    """
    kind, t_min = options["timesteps"], options["t_min"]
    if kind not in KINDS:
        raise UserError(f"method.timesteps is '{kind}'; write one of: {', '.join(KINDS)}")
    if not 0 <= t_min < timesteps:
        raise UserError(f"method.t_min is {t_min}; write 0 to {timesteps - 1}, below diffusion.timesteps={timesteps}")
    return TimestepLaw(timesteps, kind, t_min)
