"""Gradient projection memory (GPM, ICLR 2021): updates of a kernel that leave its answers to old inputs as they were.

What a layer was shown in a task spans a few directions c of its input space. As long as no update of the kernel W
[in, out] has a part within that span M, W^T c stays what it was when the task ended.

The optimiser's *update* is projected, u - M M^T u, and not the gradient: Adam divides every coordinate by a scale of
its own and weight decay adds a multiple of W, and both lead back into the span. Projecting only the gradient left 20 %
of the update inside it [ours].

A layer's bias is not projected. Where it is trained, outputs move by it; the cross-attention's keys and values have
none.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdcl_jax.errors import UserError
from jdcl_jax.training.state import Array, PyTree

NOISE = 1e-6
"""Directions with a singular value below this share of the largest are rounding of float32 [ours]."""

Basis = Mapping[str, Any]
"""What is protected of one kernel [in, out], in shapes that never change:

  vectors: M, float32 [in, in]; orthonormal columns, then zeros.
  kept: float32 [in, out], M^T W when it was protected.
  rank: int32 [], how many columns M has.
"""


class Growth(NamedTuple):
    """What one more task did to a basis.

    Attributes:
      rank_before: directions protected before.
      rank: directions protected now.
      width: of all `in` directions of the layer's inputs; at rank == width the kernel is frozen.
      energy_before: share of the inputs' squared norm within the span before, 0 to 1.
      energy: the same now.
      threshold: that was to be reached.
      bytes: memory of the basis.
      seconds: that the extension took.
    """

    rank_before: int
    rank: int
    width: int
    energy_before: float
    energy: float
    threshold: float
    bytes: int
    seconds: float


class Cost(NamedTuple):
    """What protecting one kernel costs.

    Attributes:
      bytes: memory of its basis.
      flops: of projecting one update, whatever the rank (nothing at rank 0).
    """

    bytes: int
    flops: int


def cost(inputs: int, outputs: int) -> Cost:
    """Memory and operations for a kernel [inputs, outputs]: two products with M and three sums."""
    memory = 4 * (inputs * inputs + inputs * outputs + 1)
    return Cost(memory, 4 * inputs * inputs * outputs + 3 * inputs * outputs)


def threshold_at(first: float, growth: float, task: int) -> float:
    """The share of the energy to protect after a task, counted from 0: first + growth * task, at most 1.

    GPM: first .97, growth .003 [ours, on GPM].

    Raises:
      UserError: `first` is not in (0, 1], or `growth` is negative.
    """
    _check_threshold(first)
    if not growth >= 0:
        raise UserError(f"the energy threshold grows by {growth} per task; write 0 or more, such as 0.003")
    return min(1.0, first + growth * task)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise UserError(f"the energy threshold is a share above 0 and up to 1, such as 0.97, not {threshold}")


def empty(inputs: int, outputs: int) -> Basis:
    """The basis that protects nothing of a kernel [inputs, outputs]."""
    return {
        "vectors": np.zeros((inputs, inputs), np.float32),
        "kept": np.zeros((inputs, outputs), np.float32),
        "rank": np.zeros((), np.int32),
    }


def extend(basis: Basis, columns: Array, kernel: Array, threshold: float) -> tuple[Basis, Growth]:
    """Protects also what a layer was shown in a task; on the host, in float64.

    The smallest number of directions is added so that the span holds a share `threshold` of the energy |R|^2 of the
    inputs R: |M M^T R|^2 + |R_k|^2 >= threshold |R|^2, R_k the k largest singular directions of the residual
    R - M M^T R. Directions of rounding noise are never added, so threshold 1 protects all others. Directions that were
    protected before stay as they are, bit for bit.

    Args:
      basis: of the tasks before.
      columns: R [in, n], one input a column; zeros say nothing.
      kernel: [in, out] or [k, k, Ci, out], the raw parameters that the next task starts from. All of M^T W is taken
        from it anew.
      threshold: in (0, 1].

    Raises:
      UserError: a threshold elsewhere, or inputs that are not finite.
      ValueError: arrays of another layer.
    """
    started = time.perf_counter()
    _check_threshold(threshold)
    inputs, outputs = basis["kept"].shape
    weights, shown = _as_matrix(np.asarray(kernel, np.float64)), np.asarray(columns, np.float64)
    if weights.shape != (inputs, outputs) or shown.ndim != 2 or len(shown) != inputs:
        raise ValueError(
            f"a basis for kernels [{inputs}, {outputs}] takes inputs [{inputs}, n], "
            f"not {weights.shape} and {shown.shape}"
        )
    if not np.all(np.isfinite(shown)):
        raise UserError("a protected layer was shown NaN or infinity: training diverged; lower train.learning_rate")
    vectors, before = np.array(basis["vectors"], np.float32), int(basis["rank"])
    # Of R only R R^T matters, and this triangle [in, at most in] has the same.
    triangle = np.asarray(np.linalg.qr(shown.T, mode="r")).T
    new, energies = _directions(vectors[:, :before].astype(np.float64), triangle, threshold)
    rank = before + new.shape[1]
    vectors[:, before:rank] = new
    kept = (vectors.T.astype(np.float64) @ weights).astype(np.float32)
    seconds = time.perf_counter() - started
    growth = Growth(before, rank, inputs, *energies, threshold, cost(inputs, outputs).bytes, seconds)
    return {"vectors": vectors, "kept": kept, "rank": np.asarray(rank, np.int32)}, growth


def _directions(vectors: np.ndarray, columns: np.ndarray, threshold: float) -> tuple[np.ndarray, tuple[float, float]]:
    """New orthonormal directions [in, k], and the shares of the energy in the span before and after."""
    total = float(np.sum(columns**2))
    if total == 0:
        return np.zeros((len(vectors), 0)), (1.0, 1.0)
    # Rounded to float32, the vectors are not quite orthonormal. Without this, part of them would stay in the residual,
    # and next to it a direction that is hardly above the noise is nothing.
    known = np.linalg.qr(vectors)[0]
    left, values, _ = np.linalg.svd(_outside(known, columns), full_matrices=False)
    # Energy outside the span with 0, 1, 2, ... more directions.
    missing = np.append(np.cumsum(values[::-1] ** 2)[::-1], 0.0)
    enough = int(np.argmax(missing <= (1.0 - threshold) * total))
    real = int(np.sum(values > NOISE * np.linalg.norm(columns, 2)))
    count = min(enough, real)
    return left[:, :count], (max(0.0, 1.0 - float(missing[0]) / total), 1.0 - float(missing[count]) / total)


def _outside(known: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return columns - known @ (known.T @ columns)


def _as_matrix(kernel: Any) -> Any:
    """[in, out], or a convolution's [k, k, Ci, out] -> [k k Ci, out]."""
    return kernel.reshape(-1, kernel.shape[-1])


def project_updates() -> optax.GradientTransformationExtraArgs:
    """Takes the part within the protected span out of every update; the last link of a chain.

    `update(updates, state, params, bases={layer: Basis})` turns the update u of each named layer's kernel into
    u - M (M^T (W + u) - kept). That is u - M M^T u and a pull: rounding W + u moves M^T W a little at every step, and
    without the pull these steps would add up. Layers are paths such as "unet/mid_attention/cross/key"; other leaves,
    and all while a basis is empty, stay as they are bit for bit. With all directions protected the update is 0.

    Raises, from `update`:
      ValueError: no params, a layer that does not exist, or a basis of another shape.
    """

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree = None, *, bases: Mapping[str, Basis], **extra: Any
    ) -> tuple[PyTree, optax.OptState]:
        del extra
        if params is None:
            raise ValueError("project_updates reads the parameters: update(updates, state, params, bases=...)")
        kernels = {f"{layer}/kernel".lstrip("/"): layer for layer in bases}
        found = set()

        def project(path: Any, u: jax.Array, weights: jax.Array) -> jax.Array:
            layer = kernels.get(jax.tree_util.keystr(path, simple=True, separator="/"))
            if layer is None:
                return u
            found.add(layer)
            return _project(layer, bases[layer], u, weights)

        projected = jax.tree_util.tree_map_with_path(project, updates, params)
        if unknown := sorted(set(bases) - found):
            raise ValueError(f"bases of layers that have no kernel here: {', '.join(unknown)}")
        return projected, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _project(layer: str, basis: Basis, u: jax.Array, weights: jax.Array) -> jax.Array:
    inputs, outputs = basis["kept"].shape
    if _as_matrix(u).shape != (inputs, outputs):
        raise ValueError(f"'{layer}' has a kernel {u.shape}, but a basis for [{inputs}, {outputs}]")

    def outside() -> jax.Array:
        vectors, update = jnp.asarray(basis["vectors"]), _as_matrix(u).astype(jnp.float32)
        moved = _multiply(vectors.T, _as_matrix(weights) + update) - basis["kept"]
        projected = update - _multiply(vectors, moved)
        # A full basis leaves nothing to learn, not even rounding.
        return jnp.where(basis["rank"] < inputs, projected, 0.0).reshape(u.shape).astype(u.dtype)

    # Subtracting a product with zeros may turn -0 into 0 and anything into NaN.
    return jax.lax.cond(basis["rank"] > 0, outside, lambda: u)


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    # The default keeps three digits on GPUs and TPUs, and every step would leave that much within the span.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
