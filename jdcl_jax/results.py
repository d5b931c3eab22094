"""What a run has measured so far, and the results.json made of it."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

import jdcl_jax
from jdcl_jax.assembly import Parts, classifying_flops, forward_flops, init_params
from jdcl_jax.data.tasks import TaskSplit
from jdcl_jax.evaluation.forgetting import summarise
from jdcl_jax.evaluation.replay import REPLAY_SCORES, ReplayQuality
from jdcl_jax.evaluation.scores import select
from jdcl_jax.measuring.evaluator import Evaluated
from jdcl_jax.methods.method import DENOISER, SOLVER, Phase
from jdcl_jax.training import hosts
from jdcl_jax.training.parallel import Parallel

FORMAT = 1
MEMORY = ("peak_resident_bytes", "peak_device_bytes")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "dm-pix", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Of the package, of Python, and of what computes."""
    own = {"jdcl_jax": jdcl_jax.__version__, "python": platform.python_version()}
    return own | {package: importlib.metadata.version(package) for package in PACKAGES}


class Results:
    """Collects costs and scores; `history` is JSON and goes into every checkpoint.

    Args:
      parts: the run's parts.
      parallel: its devices, for the record.
      command: how it was started.
    """

    def __init__(self, parts: Parts, parallel: Parallel, command: str):
        self._parts, self._parallel, self._command = parts, parallel, command
        self._flops = forward_flops(parts.network, parts.setup.image_shape)
        self._commit = commit()  # of the code that is loaded, whatever the checkout holds later
        self._history: dict[str, Any] = {
            "started": _now(),
            "commits": [self._commit],
            "evaluations": [],
            "cost": [],
            "instrument": {},
            "phases": [],
            "replay": {},
            "skipped": [],
        }

    def history(self) -> dict[str, Any]:
        """All that must survive a restart, as JSON."""
        return self._history

    def restore(self, history: dict[str, Any]) -> None:
        """Takes up the history that a checkpoint held."""
        before = history.get("commits", [])
        commits = before if self._commit in before[-1:] else [*before, self._commit]
        self._history = {**history, "commits": commits}

    def add_phase(self, task: int, name: str, accuracy: np.ndarray | None) -> None:
        """Adds the accuracy on each task after a phase, [T]; None: the network does not classify."""
        if accuracy is not None:
            row = [_number(value) for value in accuracy]
            self._history["phases"].append({"task": task + 1, "phase": name, "accuracy": row})

    def add_facts(self, task: int, name: str, facts: dict[str, Any]) -> None:
        """Adds what a method has to say of a phase."""
        if facts:
            self._history["phases"].append({"task": task + 1, "phase": name, **facts})

    def add_replay(self, task: int, quality: ReplayQuality) -> None:
        """Adds the scores of what is replayed in a task (from 0), as those of the generator of the task before."""
        self._history["replay"][str(task - 1)] = {
            "rows": {name: [_number(v) for v in row] for name, row in quality.rows.items()},
            "union": {name: _number(value) for name, value in quality.union.items()},
            "images": {"per_task": [int(n) for n in quality.images], "union": quality.total},
        }

    def add_skipped(self, task: int, name: str, step: int) -> None:
        """Adds a step of a phase that was left out because its loss or gradient was not finite."""
        self._history["skipped"].append({"task": task + 1, "phase": name, "step": step})

    def num_skipped(self) -> int:
        """How many steps were left out so far."""
        return len(self._history["skipped"])

    def add_memory(self, task: int, name: str, peaks: Mapping[str, int | None]) -> None:
        """Adds the most memory that a phase took, see `PeakMemory`; it keeps the larger one where it had one."""
        row = self._cost_row(task, name)
        for key, peak in peaks.items():
            row[key] = peak if row[key] is None or peak is None else max(peak, row[key])

    def add_training(self, task: int, phase: Phase, steps: int, images: int, seconds: float, compiling: float) -> None:
        """Adds `steps` steps of `images` images to a phase's costs; `compiling` is a part of `seconds`."""
        flops = steps * phase.passes * self._parts.setup.batch_size * self._flops
        self._add_cost(task, phase.name, seconds, compiling, steps=steps, images=steps * images, model_flops=flops)

    def add_evaluation(self, evaluated: Evaluated, instrument: dict[str, Any]) -> None:
        """Adds the scores after a task and what measuring, sampling and scoring cost."""
        task, evaluation = len(self._history["evaluations"]), evaluated.evaluation
        self._history["instrument"] = instrument
        self._history["evaluations"].append(
            {
                "per_task": {name: [_number(v) for v in values] for name, values in evaluation.per_task.items()},
                "union": {name: _number(value) for name, value in evaluation.union.items()},
                "assigned": [int(n) for n in evaluation.assigned],
                "num_generated": evaluation.num_generated,
                "num_real": evaluation.num_real,
                "errors": evaluated.errors,
                "confusion": None if evaluated.confusion is None else evaluated.confusion.tolist(),
            }
        )
        for phase, cost in evaluated.cost.items():
            images = len(evaluated.images) if phase == "evaluate" else 0
            amounts = {"steps": 0, "images": images, "model_flops": cost.passes * self._flops}
            self._add_cost(task, phase, cost.seconds, cost.compile_seconds, **amounts)
            self.add_memory(task, phase, cost.memory)

    def _add_cost(self, task: int, phase: str, seconds: float, compiling: float, **amounts: float) -> None:
        row = self._cost_row(task, phase)
        for name, amount in {"seconds": seconds, "compile_seconds": compiling, **amounts}.items():
            row[name] += amount

    def _cost_row(self, task: int, phase: str) -> dict[str, Any]:
        rows = self._history["cost"]
        if not rows or (rows[-1]["task"], rows[-1]["phase"]) != (task + 1, phase):
            zero = dict.fromkeys(("seconds", "compile_seconds", "steps", "images", "model_flops"), 0)
            rows.append({"task": task + 1, "phase": phase, **zero, **dict.fromkeys(MEMORY)})
        return rows[-1]

    def as_dict(self, status: str) -> dict[str, Any]:
        """The contents of results.json; `status` is "running" or "finished"."""
        parts, cost = self._parts, self._history["cost"]
        config = parts.config
        return {
            "format": FORMAT,
            "status": status,
            "method": config.method.name,
            "dataset": config.data.name,
            "seed": config.seed,
            "command": self._command,
            "commit": self._commit,
            "commits": self._history["commits"],
            "started": self._history["started"],
            "finished": _now() if status == "finished" else None,
            "provenance": parts.dataset.provenance,
            "weights": config.evaluation.weights,
            "image_shape": list(parts.setup.image_shape),
            "tasks": self._tasks(),
            "scores": self._scores(),
            "assigned": self._matrix([e["assigned"] for e in self._history["evaluations"]]),
            "errors": [evaluation["errors"] for evaluation in self._history["evaluations"]],
            "instrument": self._history["instrument"],
            "phases": self._history["phases"],
            "confusion": [evaluation["confusion"] for evaluation in self._history["evaluations"]],
            "forward_flops": self._flops,
            "classifying_flops": self._classifying_flops(),
            "cost": cost,
            "skipped_steps": self._history["skipped"],
            "totals": {name: sum(row[name] for row in cost) for name in ("seconds", "images", "model_flops")},
            **self._parameters(),
            "versions": versions(),
            "hardware": self._hardware(),
            "config": config.to_dict(),
        }

    def _tasks(self) -> list[dict[str, Any]]:
        sequence = self._parts.sequence
        names = self._parts.dataset.class_names

        def count(split: TaskSplit, task: int) -> int:
            return int(split.counts[task])

        return [
            {
                "task": task + 1,
                "classes": list(group),
                "names": [names[c] for c in group],
                "train": count(sequence.train, task),
                "validation": count(sequence.validation, task),
                "test": count(sequence.test, task),
                **({"domains": list(sequence.domains[task])} if sequence.domains else {}),
            }
            for task, group in enumerate(sequence.groups)
        ]

    def _scores(self) -> dict[str, Any]:
        evaluations, tasks = self._history["evaluations"], self._parts.num_tasks
        out = {}
        for name, score in select(self._parts.config.evaluation.scores).items():
            matrix = self._matrix([e["per_task"][name] for e in evaluations])
            union = [e["union"][name] for e in evaluations] + [None] * (tasks - len(evaluations))
            out[name] = {
                "lower_is_better": score.lower_is_better,
                "description": score.description,
                "matrix": matrix,
                "union": union,
                "num_generated": evaluations[-1]["num_generated"][name] if evaluations else {},
                "num_real": evaluations[-1]["num_real"][name] if evaluations else {},
                "summary": summarise(matrix, union, score.lower_is_better) if len(evaluations) == tasks else {},
            }
        return {**out, **self._replay_scores()}

    def _replay_scores(self) -> dict[str, Any]:
        """Those of the replay sets that a method drew; the last task's generator has drawn none."""
        drawn, tasks = self._history["replay"], self._parts.num_tasks
        if not drawn:
            return {}
        out: dict[str, Any] = {}
        for name, (words, lower) in REPLAY_SCORES.items():
            matrix, union = np.full((tasks, tasks), np.nan), [None] * tasks
            for task, found in drawn.items():
                matrix[int(task)] = [np.nan if value is None else value for value in found["rows"][name]]
                union[int(task)] = found["union"][name]
            out[name] = {
                "lower_is_better": lower,
                "description": words,
                "matrix": matrix,
                "union": union,
                "num_generated": drawn[max(drawn, key=int)]["images"],
                "num_real": {},
                "summary": summarise(matrix, union, lower) if len(drawn) == tasks - 1 else {},
            }
        return out

    def _matrix(self, rows: list[list[float]]) -> np.ndarray:
        matrix = np.full((self._parts.num_tasks, self._parts.num_tasks), np.nan)
        for i, row in enumerate(rows):
            matrix[i] = [np.nan if value is None else value for value in row]
        return matrix

    def _classifying_flops(self) -> float | None:
        parts = self._parts
        if parts.setup.solver is not None:
            return parts.setup.solver.passes * self._flops
        return classifying_flops(parts.network, parts.setup.image_shape) if parts.setup.classifier else None

    def _parameters(self) -> dict[str, int]:
        """All, and those of the classifier alone: a solver, or a head and, where it has its own, an encoder."""
        setup = self._parts.setup
        shapes = jax.eval_shape(lambda: init_params(self._parts))
        own = {k: v for k, v in shapes.items() if k in ("head", "encoder")} if setup.classifier else {}
        if setup.solver is not None:
            own = jax.eval_shape(setup.solver.fresh, jax.random.key(0))
            shapes = {DENOISER: shapes, SOLVER: own}
        return {
            "parameters": int(parameter_overview.count_parameters(shapes)),
            "classifier_parameters": int(parameter_overview.count_parameters(own)) if own else 0,
        }

    def _hardware(self) -> dict[str, Any]:
        device = self._parallel.devices[0]
        return {
            "backend": device.platform,
            "device": f"{device.device_kind} x{self._parallel.count}",
            "hosts": hosts.count(),
            "cpu_count": os.cpu_count(),
        }


def commit() -> str | None:
    """The commit of the checkout that the package runs from, "-dirty" with changes; None if it was installed."""
    package = Path(jdcl_jax.__file__).parent
    describe = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        tracked = subprocess.run([*describe[:3], "ls-files", "--error-unmatch", "__init__.py"], capture_output=True)
        if tracked.returncode:
            return None
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
