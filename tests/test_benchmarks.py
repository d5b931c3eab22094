"""The benchmarks run, and what they count is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jdcl_jax.assembly import assemble, forward_flops, init_params

ROOT = Path(__file__).parents[1]


def run(script: str, *words: str) -> None:
    command = [sys.executable, f"benchmarks/{script}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_operations_are_counted_as_often_as_they_run(benchmarks) -> None:
    from _flops import count_flops

    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    product = 2 * 3 * 5 * 7
    assert count_flops(lambda x, y: x @ y, a, b) == product

    def seven_times(x, y):
        return jax.lax.scan(lambda carry, _: (carry + jnp.sum(x @ y), None), 0.0, None, length=7)[0]

    assert count_flops(seven_times, a, b) == 7 * product
    assert count_flops(jax.grad(lambda x, y: jnp.sum((x @ y) ** 2), argnums=(0, 1)), a, b) == 3 * product


def test_convolutions_are_counted_without_the_zeros_between_pixels(benchmarks) -> None:
    from _flops import count_flops

    numbers = ("NHWC", "HWIO", "NHWC")
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def strided(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)

    forward = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    assert count_flops(strided, x, kernel) == forward
    both = count_flops(jax.grad(lambda x, k: jnp.sum(strided(x, k) ** 2), argnums=(0, 1)), x, kernel)
    assert both == pytest.approx(3 * forward, rel=0.15)  # edges: the gradients' own paddings


@pytest.mark.parametrize("method", ["gr", "gd", "lwf", "agem", "l2+gd"])
def test_the_arithmetic_of_a_step_is_what_its_trace_counts(benchmarks, tiny_config, method) -> None:
    import replay_cost

    parts = assemble(tiny_config(method))
    phase = replay_cost.later_phase(parts)
    # A-GEM's two dot products of gradients are counted too: 4 operations a parameter.
    dots = 4 * parameters(parts) if method == "agem" else 0
    forward = forward_flops(parts.network, parts.setup.image_shape) * parts.setup.batch_size
    assert replay_cost.counted_passes(parts, phase) == pytest.approx(phase.passes + dots / forward, rel=0.02)


def parameters(parts) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(init_params(parts)))


def test_the_cost_of_replay_is_counted_and_timed(tmp_path) -> None:
    out = tmp_path / "out.json"
    small = "train.batch_size=4,model.channels=(8,16),model.groups=4"
    run(
        "replay_cost.py",
        f"--config=configs/digits.py:generation,{small}",
        "--methods=gd",
        "--repeats=2",
        f"--out={out}",
    )
    row = json.loads(out.read_text())["methods"]["gd"]
    assert row["arithmetic"] == 9
    assert row["counted"] == pytest.approx(9, rel=0.03)
    assert len(row["rounds"]) == 2
    assert row["timed"] > 0


@pytest.mark.parametrize(
    ("script", "unit"), [("train_step.py", ["--steps-per-call=2"]), ("sampling.py", ["--sampler-steps=2"])]
)
def test_a_benchmark_runs_and_leaves_its_numbers(script, unit, tmp_path) -> None:
    out = tmp_path / "out.json"
    run(script, "--size=tiny", "--repeats=2", *unit, f"--out={out}")
    found = json.loads(out.read_text())
    assert len(found["seconds"]["jdcl_jax"]) == 2
    assert found["median"]["jdcl_jax"] > 0
