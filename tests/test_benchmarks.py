"""The benchmarks run, and what they count is right."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import small_runs
from jdcl_jax.assembly import assemble, forward_flops, init_params
from jdcl_jax.methods.method import Learned
from jdcl_jax.results import commit
from jdcl_jax.training.parallel import Parallel

ROOT = Path(__file__).parents[1]


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"benchmarks/{script}", *words]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"  # what runs does not matter here
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def two_layers(monkeypatch):
    """For one test only: others here are of the real networks."""
    small_runs.quick(monkeypatch.setattr)


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


def test_operations_are_those_that_xla_counts_where_there_is_no_loop(benchmarks, tiny_config) -> None:
    import _ours

    parts = assemble(tiny_config("finetune"))
    counted = _ours.forward_flops(parts, 4)
    # XLA counts sums and activations too, and leaves out products with the zeros of a padding.
    assert counted == pytest.approx(4 * forward_flops(parts.network, parts.setup.image_shape), rel=0.1)


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


@pytest.mark.parametrize(
    ("part", "rows"),
    [
        pytest.param("ceilings", 2, marks=pytest.mark.long),
        pytest.param("train_step", 2, marks=pytest.mark.long),
        ("attention", 1),
        pytest.param("sampling", 3, marks=pytest.mark.long),
        pytest.param("checkpoint", 2, marks=pytest.mark.long),
    ],
)
def test_a_part_runs_and_leaves_its_numbers(part, rows, tmp_path) -> None:
    out = tmp_path / "out.json"
    done = run(f"{part}.py", "--tiny", "--repeats=2", f"--out={out}")
    found = json.loads(out.read_text())
    assert len(found["rows"]) == rows
    assert all(row["what"] in done.stdout for row in found["rows"])
    first = found["rows"][0]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in first["seconds"].values())
    assert found["commit"] == commit()  # none where the code is not in a checkout
    assert found["versions"]["jax"] == jax.__version__


@pytest.mark.long
def test_a_step_is_divided_among_its_layers(tmp_path) -> None:
    out = tmp_path / "out.json"
    run("step_profile.py", "--tiny", f"--out={out}")
    share = {row["what"].split(": ")[1]: row["value"] for row in json.loads(out.read_text())["rows"]}
    assert sum(share.values()) == pytest.approx(1)
    assert share["convolutions"] > 0.02
    assert share["attention"] > 0.001  # on some processors 0.005, and other work moves it
    assert share["data, noise, loss, clipping, optimiser, average"] > 0.02


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transpose(jvp(UNet))/UNet._up/up1_res0/conv1/transpose", "convolutions"),
        ("jvp(UNet)/UNet._layers/UNet._encode/down0_sample/pad", "convolutions"),
        ("jvp(UNet)/UNet._up/UNet._attend/up1_attention0/norm/div", "attention"),
        ("jvp(UNet)/UNet._encode/mid_attention/out/dot_general", "attention"),
        ("jvp(UNet)/UNet._encode/mid_res0/norm2/rsqrt", "normalisation and activation"),
        ("jvp(UNet)/UNet._up/concatenate", "the rest of the network"),
        ("while/body/closed_call/mul", "data, noise, loss, clipping, optimiser, average"),
    ],
)
def test_an_operation_belongs_to_the_layer_in_its_name(benchmarks, name, expected) -> None:
    import step_profile

    assert step_profile.layer(name) == expected


@pytest.mark.long
def test_the_cost_of_replay_is_its_time_over_its_share_of_operations(benchmarks, monkeypatch) -> None:
    import _compare
    import _ours
    import replay_cost

    seconds = iter(range(1, 100))  # of one side after the other

    def side(run, units: int):
        taken = float(next(seconds))
        return lambda: taken

    monkeypatch.setattr(_ours, "train_job", lambda *args, **options: (lambda: None, None))
    monkeypatch.setattr(_ours, "sampling_job", lambda *args, **options: lambda: None)
    monkeypatch.setattr(replay_cost, "draw_job", lambda *args: lambda: 500)
    monkeypatch.setattr(_compare, "timed", side)
    options = SimpleNamespace(config="", tiny=True, methods=["gd", "jdcl"], repeats=2, steps_per_call=2)
    gd, jdcl, drawing = replay_cost.measure(options)
    assert gd["arithmetic"] == 9
    assert gd["counted"] == pytest.approx(9, rel=0.03)
    assert (gd["timed"], gd["ratios"]["plain step"][0]) == (3 * 2, 2)  # the plain step took 1, this one 2
    assert gd["of_share"] == pytest.approx(2 / (gd["counted"] / 3), rel=0.01)
    assert gd["goal"]["met"]
    assert jdcl["ratios"]["local"][0] == 3 / 4
    assert jdcl["goal"]["figure"] == pytest.approx(3 / 4 / jdcl["share_of_local"])
    assert drawing["goal"]["figure"] == pytest.approx(6 / 5)


@pytest.mark.usefixtures("two_layers")
def test_the_drawing_that_is_timed_draws(benchmarks, tiny_config) -> None:
    import replay_cost

    parts = assemble(tiny_config(*small_runs.JDCL))
    (draw,) = [phase for phase in parts.method.phases(1) if phase.name == "draw"]
    run = replay_cost.draw_job(parts, Parallel(), draw)
    drawn = run()
    assert drawn % parts.config.method.replay_batch == 0
    assert drawn >= parts.config.method.quota * 4  # of two old and two new classes
    assert run() == drawn  # from an empty store again


@pytest.mark.usefixtures("two_layers")
@pytest.mark.parametrize(
    "words",
    [
        ("gr",),
        ("ewc",),
        pytest.param(("ddgr", "classifier.kind=solver", "solver.network=cnn"), marks=pytest.mark.long),
        pytest.param(small_runs.JDCL, marks=pytest.mark.long),
    ],
)
def test_a_later_step_that_is_timed_runs(benchmarks, tiny_config, words) -> None:
    import _ours
    import replay_cost

    parts = assemble(tiny_config(*words))
    phases = replay_cost.later_phases(parts)
    assert len(phases) == {"ddgr": 2, "jdcl": 2}.get(words[0], 1)
    for phase in phases.values():
        run, compiled = _ours.train_job(parts, Parallel(), 2, phase, task=1)
        run(2)
        assert "while" in compiled.as_text()  # steps in a loop


@pytest.mark.long
def test_every_method_whose_growth_is_measured_can_run(benchmarks, tmp_path) -> None:
    import growth

    for method in (*growth.BOUNDED, *growth.WITH_DIRECTIONS, *growth.WITH_QUOTAS):
        parts = assemble(growth.make_config(method, 20, str(tmp_path)))
        assert len(parts.sequence.groups) == 20, method


@pytest.mark.parametrize(("method", "apart"), [("jdcl", True), ("gpm", False)])
def test_a_task_is_timed_after_few_others_and_after_many(benchmarks, monkeypatch, method, apart) -> None:
    import growth

    def entry(task: int, phase: str, seconds: float, steps: int) -> dict:
        return {"task": task, "phase": phase, "seconds": seconds + 5, "compile_seconds": 5, "steps": steps}

    tasks = range(1, 9)
    cost = [entry(task, "local", 2.0 + (task > 5) + 50 * (task == 8), 10) for task in tasks]
    cost += [entry(task, "keep", task, 0) for task in tasks] + [entry(task, "evaluate", 9.0, 0) for task in tasks]
    cost += [entry(task, "draw", task, 1) for task in tasks] if apart else []
    monkeypatch.setattr(growth, "_cost", lambda method, tasks: cost)
    row = growth._row(method, 8)
    late, early = ([3.0, 3.0], [2.0, 2.0]) if apart else ([9.0, 10.0], [5.0, 6.0])
    assert row["seconds"] == {"late": late, "early": early}
    assert row["what"] == f"a task of {method} after 5 others / after 2"
    assert row["goal"] == {"figure": pytest.approx(sum(late) / sum(early)), "most": 1.1, "met": False}
    assert row["drawing_and_keeping"] == ([2 * task for task in tasks] if apart else [0] * 8)
    assert row["seconds_a_step"] == {"local": pytest.approx(0.2)}


@pytest.mark.usefixtures("two_layers")
@pytest.mark.parametrize("name", ["er", "l2+gd"])
def test_what_a_method_keeps_for_later_tasks_is_timed_too(benchmarks, tiny_config, monkeypatch, name) -> None:
    import growth

    clock = iter(range(0, 100, 3))
    monkeypatch.setattr(growth.time, "perf_counter", lambda: next(clock))
    parts, entries = assemble(tiny_config(name)), []
    params = init_params(parts)
    memory, learned = parts.method.init_memory(params), Learned(params, params, {})
    plain = parts.method.end_task(memory, learned, 1)
    growth.time_keeping(parts.method, entries)
    jax.tree.map(np.testing.assert_array_equal, parts.method.end_task(memory, learned, 1), plain)
    assert entries == [{"task": 2, "phase": "keep", "seconds": 3, "compile_seconds": 0.0, "steps": 0}]


@pytest.mark.long
def test_whole_runs_are_timed_for_it(tmp_path) -> None:
    out = tmp_path / "out.json"
    run("growth.py", "--tiny", f"--out={out}")
    (row,) = json.loads(out.read_text())["rows"]
    assert row["drawing_and_keeping"] == [0, 0, 0, 0]
    assert 0 < next(iter(row["seconds_a_step"].values())) < row["median"]["late"]


# -- the suite


def test_the_suite_keeps_what_it_has_and_names_what_failed(tmp_path, benchmarks, monkeypatch, capsys) -> None:
    import _part
    import run as suite

    out = tmp_path / "bench.json"
    product = {"what": "matrix product, float32, 8 x 8", "unit": "product", "flops_per_second": 1e9, "devices": 2}
    step = {"what": "train step", "unit": "step", "flops": 1e9, "median": {"jdcl_jax": 4.0, "torch eager": 5.0}}
    step |= {"ratios": {"torch eager": [0.8, 0.7, 0.9]}, "goal": {"figure": 0.8, "most": 1.0, "met": True}}
    here = {"hardware": {"processor": _part.processor()}}
    of_part = {
        "ceilings": {**here, "rows": [{**product, "median": {"jdcl_jax": 1.0}, "ratios": {}}]},
        "train_step": {**here, "rows": [step]},
    }
    monkeypatch.setattr(suite, "_run", lambda part, options: of_part.get(part))
    monkeypatch.setattr(sys, "argv", ["run.py", "--parts", "ceilings", "train_step", f"--out={out}"])
    suite.main()
    monkeypatch.setattr(sys, "argv", ["run.py", "--parts", "demo", f"--out={out}"])
    with pytest.raises(SystemExit, match="failed: demo"):
        suite.main()
    kept = json.loads(out.read_text())["parts"]
    assert set(kept) == {"ceilings", "train_step"}
    assert kept["train_step"]["rows"][0]["share"] == pytest.approx(0.25)  # 1e9 operations in 4 s, of 1e9 a second
    table = capsys.readouterr().out
    assert "| 0.25 <!-- from:" in table
    assert "at most 1: 0.800 <!-- from:" in table
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps(of_part["train_step"]))

    def refused(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        with pytest.raises(SystemExit, match="2"):
            suite.main()
        return capsys.readouterr().err

    assert "bench.json was measured without --tiny; name another file" in refused("--tiny", f"--out={out}")
    assert "there is no file" in refused(f"--show={tmp_path / 'none.json'}")
    assert "is of one part alone, not of the suite" in refused(f"--show={alone}")
    assert "is of one part alone, not of the suite" in refused(f"--out={alone}")
    monkeypatch.setattr(_part, "processor", lambda: "another")
    assert "bench.json was measured on another processor" in refused(f"--out={out}")
    assert json.loads(out.read_text())["parts"] == kept


@pytest.mark.parametrize("file", ["results/bench-cpu.json", "results/bench-cpu-avx2.json"])
def test_the_table_in_the_docs_is_that_of_the_file(benchmarks, file) -> None:
    import run as suite

    assert suite.markdown(json.loads((ROOT / file).read_text()), file) in (ROOT / "docs" / "speed.md").read_text()


def test_a_share_of_the_peak_is_of_the_devices_that_computed(benchmarks) -> None:
    import run as suite

    product = {"what": "matrix product, bfloat16, 8 x 8", "flops_per_second": 8e9, "devices": 4}
    step = {"what": "a step", "unit": "step", "dtype": "bfloat16", "flops": 1e9, "share_goal": 0.35, "ratios": {}}
    on_one = {**step, "median": {"jdcl_jax": 1.0}, "devices": 1}  # 1e9 a second, of 2e9
    on_all = {**step, "median": {"jdcl_jax": 1.0}}
    unknown = {**on_one, "dtype": "float32"}  # no such product was timed
    parts = {"ceilings": {"rows": [product]}, "train_step": {"rows": [on_one, on_all, unknown]}}
    suite._with_shares(parts)
    assert (on_one["share"], on_all["share"]) == (0.5, 0.125)
    assert "0.50 <!-- from: f --> at least 0.35: met" in suite.markdown({"parts": {"": {"rows": [on_one]}}}, "f")
    assert "0.12 <!-- from: f --> at least 0.35: **NOT met**" in suite.markdown(
        {"parts": {"": {"rows": [on_all]}}}, "f"
    )
    assert "| at least 0.35: **not measured** |" in suite.markdown({"parts": {"": {"rows": [unknown]}}}, "f")


def test_a_part_that_has_no_rounds_is_not_told_how_many(benchmarks, monkeypatch, tmp_path) -> None:
    import run as suite

    asked = []

    def note(command, **_):
        asked.append(command[1:-1])
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(suite.subprocess, "run", note)
    options = SimpleNamespace(repeats=7, tiny=False, peer="torch")
    assert [suite._run(part, options) for part in suite.PARTS] == [None] * len(suite.PARTS)
    told = {Path(command[0]).stem: command[1:] for command in asked}
    assert told["train_step"] == ["--repeats=7", "--peer=torch"]
    assert told["ceilings"] == ["--repeats=7"]
    assert told["growth"] == []


def test_a_goal_against_a_peer_is_against_the_one_that_users_of_that_device_would_pick(benchmarks) -> None:
    import _peers
    from _rows import line, timed_row

    row = timed_row("a step", "step", {"jdcl_jax": [1.0], _peers.EAGER: [2.0], _peers.COMPILED: [4.0]})
    assert _peers.against(row, "cpu", eager=1.0, compiled=0.7)["goal"] == {"figure": 0.5, "most": 1.0, "met": True}
    assert _peers.against(row, "gpu", eager=1.0, compiled=0.2)["goal"] == {"figure": 0.25, "most": 0.2, "met": False}
    without = timed_row("a step", "step", {"jdcl_jax": [1.0], _peers.EAGER: [2.0]})
    left_out = _peers.against(without, "gpu", eager=1.0, compiled=0.7)
    assert left_out["goal"] == {"figure": None, "most": 0.7, "met": False}
    assert "not measured" in line(left_out)
    assert _peers.EAGER not in _peers.forms("gpu", "bfloat16", "train")
    assert all("--fused" not in words for words in _peers.forms("cpu", "float32", "sample").values())


def test_the_share_of_scores_is_their_time_over_that_of_training(benchmarks, monkeypatch) -> None:
    import evaluation

    def taken(job, units: int):  # of an image: a step of B images takes 2 + B / 2, four steps of the sampler 1 / 4
        return lambda: 0.25 if job == "sampler" else (2 + units / 2) / units

    monkeypatch.setattr(evaluation._compare, "timed", taken)
    monkeypatch.setattr(evaluation._ours, "train_job", lambda *args: ("step", None))
    monkeypatch.setattr(evaluation._ours, "sampling_job", lambda *args: "sampler")
    config = "configs/cifar10.py:gd,generation,train.epochs=0,train.steps=300,train.batch_size=100"
    options = SimpleNamespace(tiny=True, repeats=1)
    row, share = evaluation._share_rows(options, "GD", f"{config},evaluation.num_samples=800,sampler.steps=20", 500.0)
    assert row["median"] == {"train step of 4": 1.0, "train step of 2": 1.5, "sampler": 0.25}
    assert share["training_seconds"] == pytest.approx(300 * (2 + 100 / 2))
    assert share["value"] == pytest.approx((800 * 20 * 0.25 / 4 + 500) / share["training_seconds"])
    assert share["goal"] == {"figure": share["value"], "most": 0.1, "met": True}
    assert evaluation.step_seconds(100, {2: 2.0, 4: 5.0}) == 100  # no line beyond what an image was seen to take
    assert evaluation.step_seconds(100, {2: 3.0, 4: 5.0}) == 101


def test_products_are_counted_as_written_down_whatever_runs(benchmarks) -> None:
    from _flops import count_flops, plain_forms

    from jdcl_jax.models.attention import attention

    x = jnp.zeros((1, 8, 2, 4))
    with plain_forms():
        assert count_flops(attention, x, x, x) == 2 * (2 * 2 * 8 * 8 * 4)
    assert jax.default_backend() == "cpu"


def test_a_loop_of_unknown_length_is_not_counted(benchmarks) -> None:
    from _flops import count_flops

    def grow(x):
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 9.0, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="unknown length"):
        count_flops(grow, jnp.ones((3, 3)))


def test_a_goal_is_met_or_not(benchmarks) -> None:
    from _rows import figure_row, line, ratio, timed_row, with_goal

    row = timed_row("a step", "step", {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 2.0, 2.0]})
    assert row["ratios"] == {"theirs": [1.0, 0.5, 2.0]}
    assert ratio([1.0, 2.0, 4.0], [2.0, 2.0, 2.0]) == [1.0, 0.5, 2.0]
    assert with_goal(row, 1.0, most=1.0)["goal"]["met"]
    assert not with_goal(row, 1.01, most=1.0)["goal"]["met"]
    assert with_goal(row, 0.9, least=0.9)["goal"]["met"]
    missed = with_goal(figure_row("a share", 0.89, "of all"), 0.89, least=0.9)
    assert not missed["goal"]["met"]
    assert "NOT met" in line(missed)


def test_sides_take_turns_and_their_first_round_is_not_timed(benchmarks, monkeypatch) -> None:
    import _compare

    calls = []
    clock = iter(range(100))
    monkeypatch.setattr(_compare.time, "perf_counter", lambda: next(clock))
    sides = {name: _compare.timed(lambda name=name: calls.append(name), units=2) for name in "ab"}
    assert _compare.alternate(sides, 2) == {"a": [0.5, 0.5], "b": [0.5, 0.5]}
    assert "".join(calls) == "aabbaabb"


@pytest.mark.parametrize(("code", "left"), [(3, set()), (7, set()), (0, {"able"})])
def test_a_peer_that_cannot_is_left_out(benchmarks, tmp_path, monkeypatch, capfd, code, left) -> None:
    import _compare

    script = tmp_path / "peer.py"
    script.write_text(
        "import sys, json\n"
        f"if {code}: sys.exit({code})\n"
        "print(json.dumps({'parameters': 7, 'device': 'cpu'}), flush=True)\n"
        "for line in sys.stdin: print(json.dumps({'seconds': 2.0 * int(line)}), flush=True)\n"
    )
    monkeypatch.setattr(_compare, "PEER", script)
    with _compare.torch_peers(True, {"able": ()}, "train") as peers:
        assert set(peers) == left
        _compare.check_comparable(7, "cpu", peers)
        assert ("is left out" in capfd.readouterr().err) == bool(code)
        for peer in peers.values():
            assert peer.round(5) == 2.0
            with pytest.raises(SystemExit, match="no comparison"):
                _compare.check_comparable(8, "cpu", peers)
            with pytest.raises(SystemExit, match="JAX computes on gpu and able on cpu"):
                _compare.check_comparable(7, "gpu", peers)
