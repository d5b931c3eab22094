"""What replay costs: a later task's train step of each method against a plain one, counted and timed.

    python benchmarks/replay_cost.py --out=results/replay.json

A step's share is its operations (products of matrices and convolutions) over those of a plain step; "arithmetic" is the
account of arXiv 2311.14028, in forward passes: S + 6 for generative replay, S + 7 for distillation, a plain train step
being 3. A step that takes more than its share of time wastes it. Then two methods against each other, JDCL's global
stage against its local one, and the drawing of its replay set, labels, quotas and all, against the plain sampler.
Phases that only look at data after training, such as those for a Fisher matrix, have no row.
"""

from jdcl_jax.training.backend import reexec_with_hugepages

if __name__ == "__main__":
    reexec_with_hugepages()

import argparse
import functools
import sys
from collections.abc import Callable

import _compare
import _configs
import _ours
import _part
import _rows
import jax
import jax.numpy as jnp
import numpy as np

from jdcl_jax.assembly import Parts, phase_step
from jdcl_jax.methods.jdcl import DRAW, GLOBAL
from jdcl_jax.methods.local_stage import LOCAL
from jdcl_jax.methods.method import Phase
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.step import ACTIVE, scan_steps

METHODS = (
    "er", "agem", "lwf", "gaussian", "symmetric_gaussian", "trajectory", "gr", "gd",
    "l2", "si", "ewc", "mas", "rank1_ewc", "gpm", "rank1_ewc+gd",
)  # fmt: skip
WITH_SOLVER, JDCL = ("gppdm", "ddgr", "guide"), "jdcl"
SHARE_GOAL, GD_OVER_GR_GOAL, GLOBAL_GOAL, DRAW_GOAL = 1.10, 1.13, 1.05, 0.90
WITH_GOAL = ("gr", "gd")
"""Replay by a fresh teacher."""

CONFIGS = {
    "cpu": "configs/cifar10.py:small,train.batch_size=32",
    "accelerator": "configs/cifar10.py:model.dtype=bfloat16",
}
TINY = (
    "train.batch_size=16,data.image_size=16,context.resolutions=(8,),model.channels=(8,16),model.groups=4,"
    "classifier.hidden=8"
)
OF_A_DENOISER = ("generation",)  # preset: nothing but the denoiser


def measure(options: argparse.Namespace) -> list[_rows.Row]:
    chosen = options.config or CONFIGS["cpu" if jax.default_backend() == "cpu" else "accelerator"]
    config = ",".join([chosen if ":" in chosen else f"{chosen}:", *([TINY] if options.tiny else [])])
    methods = options.methods or (["gr", "gd", JDCL] if options.tiny else [*METHODS, *WITH_SOLVER, JDCL])
    kinds: list[Callable[..., list[_rows.Row]]] = [
        functools.partial(_against_plain, method) for method in methods if method != JDCL
    ]
    if {"gr", "gd"} <= set(methods):
        kinds.append(_gd_over_gr)
    if JDCL in methods:
        kinds += [_global_over_local, _drawing]
    rows = []
    for kind in kinds:
        rows += kind(config, options)
        _ours.forget_programs()
    return rows


def later_phases(parts: Parts) -> dict[str, Phase]:
    """The phases of the second task that train, by name."""
    return {phase.name: phase for phase in parts.method.phases(1) if phase.observe is None}


def later_phase(parts: Parts) -> Phase:
    """The first of these."""
    return next(iter(later_phases(parts).values()))


def counted_passes(parts: Parts, phase: Phase) -> float:
    """Operations of one step over those of a forward pass of its batch."""
    return _ours.step_flops(parts, phase, task=1) / _ours.forward_flops(parts, parts.setup.batch_size)


def _side(parts: Parts, phase: Phase, steps: int) -> _compare.Side:
    run, _ = _ours.train_job(parts, Parallel(), steps, phase, task=1)
    return _compare.timed(run, steps)


@functools.cache
def _plain(config: str, steps: int) -> tuple[_compare.Side, float]:
    """A plain step: how it is timed, and its operations."""
    parts = _configs.parts_of(config, "finetune", *OF_A_DENOISER)
    phase = later_phase(parts)
    return _side(parts, phase, steps), _ours.step_flops(parts, phase, task=1)


def _against_plain(method: str, config: str, options: argparse.Namespace) -> list[_rows.Row]:
    print(f"steps of {method}", file=sys.stderr)
    parts = _configs.parts_of(config, method, *(() if method in WITH_SOLVER else OF_A_DENOISER))
    return [_phase_against_plain(config, method, parts, phase, options) for phase in later_phases(parts).values()]


def _phase_against_plain(
    config: str, method: str, parts: Parts, phase: Phase, options: argparse.Namespace
) -> _rows.Row:
    plain, plain_flops = _plain(config, options.steps_per_call)
    images = " + ".join(str(stream.batch_size) for stream in phase.streams.values())
    timings = _compare.alternate(
        {"jdcl_jax": _side(parts, phase, options.steps_per_call), "plain step": plain}, options.repeats
    )
    flops = _ours.step_flops(parts, phase, task=1)
    row = _rows.timed_row(
        f"step of {method} ({phase.name}), {images} images",
        "step",
        timings,
        flops=flops,
        dtype=parts.config.model.dtype,
        arithmetic=phase.passes,
        counted=counted_passes(parts, phase),
        timed=3 * _rows.ratio(*timings.values())[0],
        of_share=_rows.ratio(*timings.values())[0] / (flops / plain_flops),
    )
    return _rows.with_goal(row, row["of_share"], most=SHARE_GOAL) if method in WITH_GOAL else row


def _gd_over_gr(config: str, options: argparse.Namespace) -> list[_rows.Row]:
    parts = {method: _configs.parts_of(config, method, *OF_A_DENOISER) for method in ("gd", "gr")}
    sides = {name: _side(made, later_phase(made), options.steps_per_call) for name, made in parts.items()}
    row = _rows.timed_row("step of gd / of gr", "step", _compare.alternate(sides, options.repeats))
    return [_rows.with_goal(row, row["ratios"]["gr"][0], most=GD_OVER_GR_GOAL)]


# -- JDCL


def _jdcl(config: str) -> tuple[Parts, dict[str, Phase]]:
    parts = _configs.parts_of(config, JDCL, "method.class_delay=0")  # its class terms from the first step on
    return parts, {phase.name: phase for phase in parts.method.phases(1)}


def _global_over_local(config: str, options: argparse.Namespace) -> list[_rows.Row]:
    parts, phases = _jdcl(config)
    sides = {name: _side(parts, phases[name], options.steps_per_call) for name in (GLOBAL, LOCAL)}
    flops = {name: _ours.step_flops(parts, phases[name], task=1) for name in sides}
    share = flops[GLOBAL] / flops[LOCAL]
    row = _rows.timed_row(
        "JDCL's global step / its local one",
        "step",
        _compare.alternate(sides, options.repeats),
        flops=flops[GLOBAL],
        dtype=parts.config.model.dtype,
        share_of_local=share,
    )
    return [_rows.with_goal(row, row["ratios"][LOCAL][0] / share, most=GLOBAL_GOAL)]


def _drawing(config: str, options: argparse.Namespace) -> list[_rows.Row]:
    """Seconds of a drawn image: the whole drawing of a replay set, from empty quotas to full ones or to its last step,
    and the plain sampler with as many steps and images at a time. Images that a quota did not take count too.
    """
    parts, phases = _jdcl(config)
    batch, steps = parts.config.method.replay_batch, parts.config.method.replay_steps
    plain = _configs.parts_of(config, JDCL, f"sampler.steps={steps}")
    parallel = Parallel()
    sampler = _ours.sampling_job(plain, parallel, batch)
    draw = draw_job(parts, parallel, phases[DRAW])
    drawn = draw()
    sides = {"replay set": _compare.timed(draw, drawn), "plain sampler": _compare.timed(sampler, batch)}
    row = _rows.timed_row(
        f"drawing a replay set, {drawn} images, {batch} at a time, {steps} DDIM steps",
        "image",
        _compare.alternate(sides, options.repeats),
        flops=_ours.forward_flops(parts, batch) * steps / batch,
        dtype=parts.config.model.dtype,
    )
    return [_rows.with_goal(row, 1 / row["ratios"]["plain sampler"][0], least=DRAW_GOAL)]


def draw_job(parts: Parts, parallel: Parallel, phase: Phase) -> Callable[[], int]:
    """A function that draws a whole replay set, from empty quotas, waits, and says how many images it drew."""
    step = phase_step(parts, phase, phase.steps)
    state, context, ids = _ours.step_arguments(parts, phase, task=1)
    context, split = parallel.replicate(context), parallel.split(ids)
    holder = [parallel.replicate(jax.tree.map(jnp.copy, state))]
    call, _ = parallel.compile_step(scan_steps(step, phase.steps), holder[0], context, split, {})
    empty = jax.device_get(state.tracked)

    def run() -> int:
        fresh = holder[0].replace(step=jnp.zeros_like(holder[0].step), tracked=parallel.replicate(empty))
        holder[0], metrics = call(fresh, context, split, {})
        drawn = int(np.asarray(metrics[ACTIVE]).sum()) * parts.config.method.replay_batch
        if not drawn:
            raise SystemExit("nothing was drawn: these timings would mean nothing")
        return drawn

    return run


if __name__ == "__main__":
    made = _part.parser(__doc__)
    made.add_argument("--config", help="a config file with a preset `generation`, with FILE:ARG as in main")
    made.add_argument("--methods", nargs="+", choices=(*METHODS, *WITH_SOLVER, JDCL), help="only these")
    made.add_argument("--steps-per-call", type=int, default=5)
    _part.run_part(made.parse_args(), measure)
