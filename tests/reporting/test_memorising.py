"""Errors of the last task, by method, on numbers chosen here."""

import math

from jdcl_jax.reporting.compare import Group
from jdcl_jax.reporting.memorising import last_error, rows
from jdcl_jax.reporting.runs import load_run


def test_errors_are_those_after_the_last_task_and_averaged_over_seeds(make_run) -> None:
    def run(seed: int, *errors: dict):
        return load_run(make_run(f"er-{seed}", seed=seed, errors=list(errors)))

    first = {"validation": 0.9}
    runs = (
        run(0, first, {"validation": 0.2, "buffer": 0.1, "held_out": 0.3}),
        run(1, first, {"validation": 0.4, "buffer": 0.1, "held_out": None}),
    )
    assert last_error(runs[0], "held_out") == 0.3
    assert math.isnan(last_error(runs[1], "held_out"))
    ((label, cells),) = rows({"er": Group("digits", "er", runs)})
    assert label == "er"
    assert cells == ["0.3000 ± 0.1000", "0.1000 ± 0.0000", "0.3000"]


def test_runs_that_measured_none_are_left_out(make_run) -> None:
    assert rows({"gd": Group("digits", "gd", (load_run(make_run("gd")),))}) == []
