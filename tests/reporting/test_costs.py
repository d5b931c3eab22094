"""Arithmetic, images and seconds of the phases, by hand."""

import math
from pathlib import Path

import pytest

from jdcl_jax.reporting.compare import Group
from jdcl_jax.reporting.costs import (
    PhaseCost,
    flops_figure,
    forward_flops,
    passes,
    passes_per_step,
    phase_costs,
    seconds_figure,
    total,
)
from jdcl_jax.reporting.runs import Run

# A forward pass of one image takes 5 FLOPs, a batch is 8 images, sampling takes 10 steps an image.
CONFIG = {"train": {"batch_size": 8}, "sampler": {"steps": 10, "guidance": 0.0}, "model": {"class_conditional": False}}


def row(task: int, phase: str, seconds: float, steps: int = 0, images: int = 0, passes: float = 0.0) -> dict:
    flops = 5 * (steps * passes * 8 if steps else images * passes)
    return {
        "task": task,
        "phase": phase,
        "seconds": seconds,
        "compile_seconds": seconds / 4,
        "steps": steps,
        "images": images,
        "model_flops": flops,
    }


COST = [
    row(1, "train", 8.0, steps=100, images=800, passes=3),
    row(1, "estimate", 2.0, steps=20, images=160, passes=4),
    row(1, "measure", 1.0),
    row(1, "evaluate", 4.0, images=60, passes=10),
    row(2, "distil", 16.0, steps=100, images=1600, passes=9),
    row(2, "estimate", 2.0, steps=20, images=160, passes=4),
    row(2, "evaluate", 4.0, images=60, passes=10),
]


def run(**changes) -> Run:
    tree = {"method": "gd", "dataset": "digits", "seed": 0, "status": "finished", "cost": COST, "config": CONFIG}
    return Run(Path("a"), tree | changes)


def test_totals_leave_evaluation_out_unless_it_is_asked_for() -> None:
    assert total(run(), "seconds") == 8 + 2 + 16 + 2
    assert total(run(), "seconds", "evaluate", "measure") == 9
    assert total(run(), "steps", "estimate") == 40
    assert math.isnan(total(run(), "seconds", "absent"))
    assert math.isnan(total(run(cost=None), "seconds"))


def test_passes_a_step_come_from_the_flops_of_sampling() -> None:
    assert forward_flops(run()) == 5
    assert passes_per_step(run(), "train") == 3
    assert passes_per_step(run(), "distil") == 9
    assert passes(run()) == pytest.approx(100 * 3 + 100 * 9 + 40 * 4)


def test_guided_sampling_takes_two_passes_a_step() -> None:
    guided = CONFIG | {"sampler": {"steps": 5, "guidance": 2.0}, "model": {"class_conditional": True}}
    assert forward_flops(run(config=guided)) == 5
    assert forward_flops(run(config=guided | {"model": {"class_conditional": False}})) == 10


def test_a_recorded_count_is_taken_first() -> None:
    assert passes_per_step(run(forward_flops=15.0), "distil") == 3


def test_what_a_run_does_not_say_is_unknown() -> None:
    assert math.isnan(passes_per_step(run(config={}), "train"))
    assert math.isnan(passes_per_step(run(cost=[COST[0]]), "train"))


def summary(cost: PhaseCost) -> tuple:
    return cost.phase, cost.steps.mean, cost.passes.mean, cost.seconds.mean, cost.compiling.mean, cost.images.mean


def test_phases_are_means_over_finished_runs_evaluation_last() -> None:
    slower = [{**entry, "seconds": 3 * entry["seconds"]} for entry in COST]
    group = Group(
        "digits", "gd", (run(), run(cost=slower, seed=1), run(cost=[row(1, "open", 1.0)], seed=2, status="running"))
    )
    found = phase_costs(group)
    assert [summary(cost) for cost in found[:3]] == [
        ("train", 100, 3, 16, 2, 800),
        ("estimate", 40, 4, 8, 1, 320),
        ("distil", 100, 9, 32, 4, 1600),
    ]
    assert [cost.phase for cost in found[3:]] == ["measure", "evaluate"]
    assert math.isnan(found[4].passes.mean)
    assert found[4].flops.mean == 5 * 120 * 10
    assert found[0].seconds.n == 2


def bars(figure) -> list[tuple[str, list[tuple[float, float]]]]:
    """Name of the phase, and (left, width) for each method."""
    return [
        (container.get_label(), [(bar.get_x(), bar.get_width()) for bar in container])
        for container in figure.axes[0].containers
    ]


def test_bars_are_stacked_by_phase() -> None:
    plain = Group("digits", "plain", (run(cost=[COST[0], COST[3]]),))
    methods = {"gd": phase_costs(Group("digits", "gd", (run(),))), "plain": phase_costs(plain)}
    flops = bars(flops_figure(methods))
    assert [name for name, _ in flops] == ["train", "estimate", "distil"]
    assert flops[1][1] == [(12_000, 6400), (12_000, 0)]
    assert flops[2][1] == [(12_000 + 6400, 36_000), (12_000, 0)]
    seconds = bars(seconds_figure(methods))
    assert seconds[0][1] == [(0, 6), (0, 6)]  # without the 2 seconds of compilation
    assert seconds[2][1] == [(9, 12), (6, 0)]


def test_long_times_are_drawn_in_minutes_or_hours() -> None:
    for factor, unit in ((1, "seconds"), (20, "minutes"), (400, "hours")):
        cost = [{**entry, "seconds": factor * entry["seconds"]} for entry in COST]
        group = Group("digits", "gd", (run(cost=cost),))
        assert seconds_figure({"gd": phase_costs(group)}).axes[0].get_xlabel() == unit
