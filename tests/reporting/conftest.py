"""A small workdir made by hand: three tasks, two scores, every number of it chosen here."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Row: after which task. Column: on which task. No two entries alike, so that a swap shows.
FD = [[1.0, None, None], [2.0, 1.5, None], [4.0, 3.0, 1.25]]
RECALL = [[0.9, None, None], [0.8, 0.7, None], [0.5, 0.6, 0.95]]


def score(matrix: list[list[float | None]], union: list[float | None], lower: bool) -> dict[str, Any]:
    sign = "lower" if lower else "higher"
    return {
        "lower_is_better": lower,
        "description": f"a score, {sign} is better",
        "matrix": copy.deepcopy(matrix),
        "union": union,
        "num_generated": {"per_task": 200, "union": 600},
        "num_real": {"per_task": [72, 71, 70], "union": [72, 143, 213]},
        "summary": {
            "bwt": {"value": -2.25, "formula": f"bwt of {sign}"},
            "last_union": {"value": union[-1], "formula": "union[T]"},
            "average": {"value": 2.75, "formula": "mean_j R[T,j]"},
        },
    }


def _results(**changes: Any) -> dict[str, Any]:
    """The tree of a finished run's results.json, with some of its entries replaced."""
    names = [["zero", "one"], ["two", "three"], ["four", "five"]]
    tree = {
        "format": 1,
        "status": "finished",
        "method": "gd",
        "dataset": "digits",
        "seed": 0,
        "command": "python -m jdcl_jax.main --config=configs/digits.py",
        "started": "2026-01-01T10:00:00+00:00",
        "finished": "2026-01-01T10:01:00+00:00",
        "provenance": "handwritten digits",
        "weights": "ema",
        "reduced": "",
        "tasks": [
            {"task": i + 1, "classes": [2 * i, 2 * i + 1], "names": names[i], "train": 290}
            | {"validation": 32, "test": 72}
            for i in range(3)
        ],
        "scores": {
            "fd_classifier": score(FD, [1.1, 2.2, 4.4], lower=True),
            "recall": score(RECALL, [0.9, 0.8, 0.7], lower=False),
        },
        "assigned": [[90, 7, 3], [50, 45, 5], [30, 31, 39]],
        "cost": [
            {"task": task, "phase": phase, "seconds": seconds, "compile_seconds": compiling}
            | {"steps": 300, "images": 28800, "model_flops": 1.2e12}
            for task, phase, seconds, compiling in [
                (1, "train", 16.0, 4.0),
                (1, "evaluate", 3.0, 1.0),
                (2, "train", 20.0, 0.0),
                (2, "evaluate", 5.0, 0.0),
            ]
        ],
        "totals": {"seconds": 44.0, "images": 115200, "model_flops": 4.8e12},
        "versions": {"jax": "0.10.2"},
        "hardware": {"backend": "cpu", "device": "cpu x1", "cpu_count": 2},
        "config": {"seed": 0, "train": {"steps": 300}},
    }
    return tree | changes


@pytest.fixture
def results() -> Callable[..., dict[str, Any]]:
    """`results(method="gr")` is a fresh tree of results.json with some entries replaced."""
    return _results


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run("a", method="gr")` makes the workdir a of a run and returns its place."""

    def make(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        (folder / "samples").mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(_results(**changes)), encoding="utf-8")
        lines = [{"step": 10 * i, "task": 1 + i // 4, "phase": "train", "loss": 1.0 / i} for i in range(1, 12)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
        for task in (1, 2, 3):
            picture = Image.fromarray(np.full((6, 6), 40 * task, np.uint8))
            picture.save(folder / "samples" / f"task_{task:02d}.png")
        return folder

    return make
