"""Where the time of a train step goes: seconds of its compiled operations, by the layer that they belong to.

    python benchmarks/step_profile.py --out=results/profile.json

From a trace by jax.profiler of one call of the function that training uses. An operation belongs to the layer whose
name the compiler keeps with it; where it fused several, to that of their result. Seconds of all devices are added up.
A CPU's trace does not have what other threads do for an operation, so that there one core does everything.
"""

from jdcl_jax.training.backend import accelerator_expected, reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
import itertools
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import _ours
import _part
import _rows
import jax
from _sizes import SIZES

from jdcl_jax.training.parallel import Parallel

LAYERS = {
    "attention": r"attention\d*/",
    "convolutions": r"/(conv|shortcut|\w+_sample)",
    "normalisation and activation": r"/norm",
    "the rest of the network": r"UNet",
    "data, noise, loss, clipping, optimiser, average": r"",
}
"""Patterns of names; the first that is found counts."""

OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(.*?op_name="([^"]*)"', re.MULTILINE)
CONTAINERS = ("while", "call", "conditional")
"""Operations whose seconds are those of others."""


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    sizes = ["tiny"] if options.tiny else options.size
    return list(itertools.chain.from_iterable(_measure_size(name) for name in sizes))


def _measure_size(name: str) -> list[_rows.Row]:
    size, count = SIZES[name], SIZES[name].steps
    parts = _ours.make_parts(size, size.batch_on(jax.default_backend(), "train"), dtype=_ours.compute_dtype())
    run, compiled = _ours.train_job(parts, Parallel(), count)
    run()
    names = {found[1]: found[3] for found in OPERATION.finditer(compiled.as_text()) if found[2] not in CONTAINERS}
    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        for operation, taken in _events(Path(folder)):
            if operation in names:
                seconds[layer(names[operation])] += taken / count
    total = seconds.total()
    if not total:
        raise SystemExit("the trace names no operation of the step")
    return [
        _rows.figure_row(
            f"train step, {name}: {part}", seconds[part] / total, "of its time", device_seconds=seconds[part]
        )
        for part in LAYERS
    ]


def layer(name: str) -> str:
    """The entry of `LAYERS` to which an operation of that name belongs."""
    return next(part for part, pattern in LAYERS.items() if re.search(pattern, name))


def _events(folder: Path) -> Iterator[tuple[str, float]]:
    """Operation and seconds of every event of the trace; an accelerator's kernels say which operation they are of."""
    for file in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    yield str(dict(event.stats).get("hlo_op", event.name)), event.duration_ns / 1e9


if __name__ == "__main__":
    made = _part.parser(__doc__, rounds=False)
    made.add_argument("--size", choices=SIZES, nargs="+", default=["small", "large"])
    options = made.parse_args()
    if not accelerator_expected() and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    _part.run_part(options, measure)
