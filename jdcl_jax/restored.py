"""The denoiser of a run as it was after a task, from the run's folder."""

from dataclasses import dataclass
from pathlib import Path

from jdcl_jax.assembly import Parts, RunArrays, assemble
from jdcl_jax.config import from_json
from jdcl_jax.errors import UserError
from jdcl_jax.methods.method import DENOISER, SOLVER
from jdcl_jax.paths import named_path
from jdcl_jax.training.checkpoint import Checkpoints
from jdcl_jax.training.state import PyTree


@dataclass(frozen=True)
class Restored:
    """A run after a task.

    Attributes:
      parts: the run's parts.
      params: the weights that its evaluation uses, raw or averaged.
      raw: those that the optimizer left, around which the penalties are.
      task: after which they were saved, from 1.
      solver: those of a classifier that is a network of its own; None without one.
    """

    parts: Parts
    params: PyTree
    raw: PyTree
    task: int
    solver: PyTree = None


def restore(workdir: Path, task: int) -> Restored:
    """Reads a run after a task (from 1; 0: the last one saved).

    Raises:
      UserError: no such run or task.
    """
    if not (named_path(workdir, "--workdir", home=False) / "config.json").exists():
        raise UserError(f"{workdir} holds no run: config.json is missing; write the --workdir of jdcl_jax.main")
    parts = assemble(from_json(workdir / "config.json"))
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    if not task and not checkpoints.tasks():
        raise UserError(f"{workdir} has no finished task yet; start its run again with jdcl_jax.main")
    task = task or checkpoints.tasks()[-1]
    state, _ = checkpoints.restore_task(task, RunArrays(parts).shapes())
    network, solver = state["networks"][DENOISER], state["networks"].get(SOLVER)
    ema = parts.config.evaluation.weights == "ema"
    own = None if solver is None else solver.params
    return Restored(parts, network.averaged if ema else network.params, network.params, task, own)
