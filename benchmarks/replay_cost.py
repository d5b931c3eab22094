"""What replay costs: a later task's train step of each method against a plain one, counted and timed.

    python benchmarks/replay_cost.py --config=configs/digits.py --out=results/replay-cost-cpu.json

Three numbers for each method, all in forward passes of one batch, a plain train step being 3: the arithmetic of
arXiv 2311.14028's account (S + 6 for generative replay, S + 7 for distillation), matrix and convolution operations
counted in the traced step, and the time of a step, from rounds that alternate with the plain step's.
"""

from jdcl_jax.training.backend import reexec_with_hugepages, share_cpu

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
import os
import platform
import runpy
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import _compare
import _ours
import jax
import jax.numpy as jnp
from _flops import count_flops

from jdcl_jax.assembly import Parts, assemble
from jdcl_jax.methods.method import Phase
from jdcl_jax.results import commit
from jdcl_jax.training.parallel import Parallel

METHODS = ("finetune", "er", "agem", "lwf", "gaussian", "trajectory", "gr", "gd", "l2+gd", "ewc+gd", "rank1_ewc+gd")
STEPS_PER_CALL = 10


def later_phase(parts: Parts) -> Phase:
    """The phase of the second task that trains."""
    return next(phase for phase in parts.method.phases(1) if phase.observe is None)


def counted_passes(parts: Parts, phase: Phase) -> float:
    """Operations of one step over those of a forward pass of its batch."""
    setup = parts.setup
    state, context, ids = _ours.step_arguments(parts, phase, task=1)
    x, t = jnp.zeros((setup.batch_size, *setup.image_shape)), jnp.zeros(setup.batch_size, jnp.int32)
    labels = t if setup.num_classes else None
    forward = count_flops(lambda params: setup.apply(params, x, t, labels, None), state.params)
    return count_flops(lambda *args: _ours.one_step(parts, phase)(*args, {}), state, context, ids) / forward


def measure(config_file: str, method: str, repeats: int, plain: Any, parallel: Parallel) -> dict[str, Any]:
    """The three numbers of a method; `plain` runs a call of plain steps."""
    parts = parts_of(config_file, method)
    phase = later_phase(parts)
    run, _ = _ours.train_job(parts, parallel, STEPS_PER_CALL, phase, task=1)
    sides = {"method": lambda: _compare.timed(run), "plain": lambda: _compare.timed(plain)}
    timings = _compare.alternate(sides, repeats)
    ratios = [m["seconds"] / p["seconds"] for m, p in zip(timings["method"], timings["plain"], strict=True)]
    return {
        "phase": phase.name,
        "arithmetic": phase.passes,
        "counted": counted_passes(parts, phase),
        "timed": 3 * statistics.median(ratios),
        "rounds": [3 * ratio for ratio in ratios],
        "seconds_per_step": statistics.median(t["seconds"] for t in timings["method"]) / STEPS_PER_CALL,
    }


def parts_of(config_file: str, method: str) -> Parts:
    """The run of a method; what stands behind the colon of the file is applied too."""
    path, _, argument = config_file.partition(":")
    return assemble(runpy.run_path(path)["get_config"](",".join(filter(None, [method, argument]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", default="configs/digits.py:generation", help="a config file, with FILE:ARG as in main"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each side")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    options = parser.parse_args()
    share_cpu()
    parallel = Parallel()
    parts = parts_of(options.config, "finetune")
    plain, _ = _ours.train_job(parts, parallel, STEPS_PER_CALL, later_phase(parts), task=1)
    print(f"in forward passes of a batch of {parts.setup.batch_size}; a plain step is 3")
    print(f"{'method':<16}{'arithmetic':>11}{'counted':>9}{'timed':>8}   (rounds)")
    rows = {}
    for method in options.methods.split(","):
        row = rows[method] = measure(options.config, method, options.repeats, plain, parallel)
        spread = f"{min(row['rounds']):.2f} to {max(row['rounds']):.2f}"
        print(
            f"{method:<16}{row['arithmetic']:>11.2f}{row['counted']:>9.2f}{row['timed']:>8.2f}   ({spread})", flush=True
        )
    if options.out:
        device = parallel.devices[0]
        result = {
            "benchmark": "replay_cost",
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            "commit": commit(),
            "config": options.config,
            "batch": parts.setup.batch_size,
            "versions": {"jax": jax.__version__, "python": platform.python_version()},
            "device": f"{device.device_kind} x{parallel.count}",
            "hardware": {"cpu_count": os.cpu_count()},
            "methods": rows,
        }
        _compare.write_json(options.out, result)


if __name__ == "__main__":
    main()
