"""Whether two runs are the same: every leaf of every checkpoint, every score, every line, every picture.

python tests/faults/states.py WORKDIR WORKDIR   prints what differs and exits with 1 where something does.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

OF_THE_CLOCK = {"seconds", "compile_seconds", "images_per_second", "peak_resident_bytes", "peak_device_bytes"}
OF_THE_START = {"command", "commit", "commits", "started", "finished"}


def leaves(workdir: Path) -> dict[str, bytes]:
    """Every leaf of the checkpoint of every task: parameters, averages, optimisers, buffer, replay set, teacher.

    Read by orbax alone, whatever the package thinks should be there.
    """
    reader = ocp.StandardCheckpointer()
    return {
        f"task {folder.name} {jax.tree_util.keystr(path)}": _bits(np.asarray(leaf))
        for folder in sorted(workdir.glob("checkpoints/tasks/*"))
        for path, leaf in jax.tree_util.tree_leaves_with_path(reader.restore(folder / "state"))
    }


def _bits(array: np.ndarray) -> bytes:
    return f"{array.dtype} {array.shape} ".encode() + array.tobytes()


def lines(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock says."""
    return [_timeless(json.loads(line)) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def results(workdir: Path) -> dict[str, Any]:
    """results.json without what the clock and the way it was started say."""
    found = json.loads((workdir / "results.json").read_text())
    return _timeless({key: value for key, value in found.items() if key not in OF_THE_START})


def _timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _timeless(value) for key, value in tree.items() if key not in OF_THE_CLOCK}
    return [_timeless(item) for item in tree] if isinstance(tree, list) else tree


def differences(wanted: Path, found: Path) -> list[str]:
    """What is not the same in two workdirs, in words; empty where nothing differs."""
    out = _differing("leaf", leaves(wanted), leaves(found))
    out += _differing("results", results(wanted), results(found))
    out += _differing("line", dict(enumerate(lines(wanted))), dict(enumerate(lines(found))))
    pictures = [{str(p.relative_to(d)): p.read_bytes() for p in sorted(d.glob("*/task_*.*"))} for d in (wanted, found)]
    return out + _differing("file", *pictures)


def _differing(kind: str, wanted: dict, found: dict) -> list[str]:
    assert wanted, f"nothing of kind {kind}"
    return [f"{kind} {key}" for key in sorted({*wanted, *found}, key=str) if wanted.get(key) != found.get(key)]


if __name__ == "__main__":
    different = differences(Path(sys.argv[1]), Path(sys.argv[2]))
    print(*different, sep="\n", end="\n" if different else "")
    sys.exit(1 if different else 0)
