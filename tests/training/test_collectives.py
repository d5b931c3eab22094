"""What the devices send each other: in a train step its gradients and metrics, at once; in a sampler nothing.

Read off the programs that `Parallel` makes: what JAX asks for, array by array, and what XLA has made of it, which
merges sums that do not wait for each other. JDCL's draw and other phases that fill a store gather their images on
purpose and are left out.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import small_runs
from jdcl_jax.assembly import RunArrays, assemble, phase_step
from jdcl_jax.keys import named_key
from jdcl_jax.measuring.generation import Generator
from jdcl_jax.methods.method import DENOISER, Learned
from jdcl_jax.training import parallel as devices
from jdcl_jax.training.gradients import descend
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool, create_state
from jdcl_jax.training.step import scan_steps

pytestmark = pytest.mark.end_to_end

KINDS = ("all-reduce", "all-gather", "all-to-all", "collective-broadcast", "collective-permute", "reduce-scatter")
SENT = re.compile(rf"^.*? = (.*?) ((?:ragged-)?(?:{'|'.join(KINDS)}))(?:-start)?\(", re.MULTILINE)
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*?\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
ASKED = re.compile(rf"stablehlo\.({'|'.join(KINDS).replace('-', '_')})\b.*?: \((.*?)\) ->", re.DOTALL)


class Sent(NamedTuple):
    """A collective operation: its kind and the shapes of its arrays with their dtype, such as "f32[3,3,8,8]"."""

    kind: str
    arrays: list[str]


class Program(NamedTuple):
    """What `Parallel` gives the compiler, in StableHLO, and gets, in HLO."""

    lowered: str
    compiled: str

    @property
    def asked(self) -> list[Sent]:
        """Every collective operation that JAX asks for."""
        found = ASKED.findall(self.lowered)
        return [Sent(kind, [hlo(array) for array in re.findall("tensor<(.*?)>", arrays)]) for kind, arrays in found]

    @property
    def sent(self) -> list[Sent]:
        """Every one that is compiled, whether it runs once or in a loop."""
        return sent_in(self.compiled)

    @property
    def sent_in_outer_loops(self) -> list[Sent]:
        """Those in the bodies of the entry computation's loops: once in a round, and not in a loop within it."""
        bodies = {name: body for _, name, body in COMPUTATION.findall(self.compiled)}
        (entry,) = [body for entry, _, body in COMPUTATION.findall(self.compiled) if entry]
        return [one for name in re.findall(r"\bbody=%?([\w.-]+)", entry) for one in sent_in(bodies[name])]


def sent_in(text: str) -> list[Sent]:
    return [Sent(kind, re.findall(r"[a-z]+\d*\[[\d,]*\]", arrays)) for arrays, kind in SENT.findall(text)]


def hlo(array: str) -> str:
    """From "2x3xf32" to "f32[2,3]"."""
    *sizes, dtype = array.split("x")
    return f"{dtype}[{','.join(sizes)}]"


def name_of(leaf: Any) -> str:
    return f"f{8 * leaf.dtype.itemsize}[{','.join(map(str, leaf.shape))}]"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """All that `Parallel` compiles while the test runs."""
    made, original = [], devices._compile

    def compiling(mapped: Any, *args: Any) -> tuple[Any, float]:
        compiled, seconds = original(mapped, *args)
        made.append(Program(mapped.lower(*args).as_text(), compiled.as_text()))
        return compiled, seconds

    monkeypatch.setattr(devices, "_compile", compiling)
    monkeypatch.setattr(devices, "compiler_options", lambda: {"xla_backend_optimization_level": 0})
    return made


def check(program: Program, params: Any, *, gradients: int, metrics: int) -> None:
    """Only so many gradients and metrics are sent, 4 bytes a number, each array once, in one operation a step."""
    leaves = gradients * jax.tree.leaves(params)
    wanted = Counter([*map(name_of, leaves), *["f32[]"] * metrics])
    assert {one.kind for one in program.asked} == {"all_reduce"}
    assert Counter(array for one in program.asked for array in one.arrays) == wanted
    (operation,) = program.sent
    assert operation.kind == "all-reduce"
    assert program.sent_in_outer_loops == [operation]
    # Biases that are added to the same features have the same gradient, which XLA sends once; a constant it does not.
    spared = wanted - Counter(operation.arrays)
    assert Counter(operation.arrays) + spared == wanted
    assert spared <= Counter(name_of(leaf) for leaf in leaves if leaf.ndim < 2) + Counter({"f32[]": metrics - 1})


# -- the train step


@pytest.fixture
def compiled_step(tiny_config, programs) -> Callable[..., tuple[Program, Any]]:
    """(method, phase, words) -> the program of the second task's phase, and the network's parameters."""

    def compiled_step(method: str, name: str, *words: str) -> tuple[Program, Any]:
        parallel = Parallel("pmap")
        parts = assemble(tiny_config(method, *words, f"train.batch_size={4 * parallel.count}"))
        (phase,) = [phase for phase in parts.method.phases(1) if phase.name == name]
        arrays = jax.device_get(RunArrays(parts).initial())
        state, train = arrays["networks"][DENOISER], parts.sequence.train
        memory = parts.method.end_task(arrays["memory"], Learned(state.params, state.averaged, state.tracked), 0)
        context = Context(named_key(0), Pool(train.images, train.labels), parts.method.context(memory, 1))
        step = phase_step(parts, phase, phase.steps)
        ids = parallel.split({key: np.arange(s.batch_size, dtype=np.int32) for key, s in phase.streams.items()})
        parallel.compile_step(scan_steps(step, 2), *parallel.replicate((state, context)), ids, {})
        return programs[-1], state.params

    return compiled_step


JDCL = small_runs.JDCL[1:]
TWO_LOSSES = ["loss", "loss_current", "loss_replay"]
STEPS = {
    "finetune": ("train", [], 1, ["loss"]),
    "gr": ("replay", [], 1, TWO_LOSSES),
    "gd": ("distil", [], 1, TWO_LOSSES),
    "ewc+gd": ("ewc+distil", [], 1, TWO_LOSSES),  # the penalty sees no examples and is the same everywhere
    "agem": ("project", [], 2, ["loss", "loss_current", "loss_buffer"]),
    "jdcl, local": ("local", JDCL, 1, ["loss", "loss_denoising", "loss_class"]),
    "jdcl, global": (
        "global", JDCL, 1,
        ["loss", "loss_denoising", "loss_class", "loss_distillation", "loss_class_distillation"],
    ),
}  # fmt: skip
"""Method -> phase, options, how many gradients, the metrics that are averaged."""


@pytest.mark.parametrize("name", STEPS)
def test_a_train_step_sends_its_gradients_and_metrics_once_and_nothing_else(compiled_step, monkeypatch, name) -> None:
    """A-GEM's two gradients do not wait for each other and go together."""
    phase, words, gradients, averaged = STEPS[name]
    monkeypatch.setattr("jdcl_jax.assembly.UNet", small_runs.Line)
    program, params = compiled_step(name.partition(",")[0], phase, *words)
    check(program, params, gradients=gradients, metrics=len(averaged))


@pytest.mark.long
def test_the_unet_sends_nothing_of_its_own(compiled_step) -> None:
    program, params = compiled_step("gd", "distil")
    assert len(jax.tree.leaves(params)) > 50
    check(program, params, gradients=1, metrics=len(TWO_LOSSES))


@pytest.mark.long
def test_the_same_holds_on_eight_devices() -> None:
    """A process has as many devices as it began with, so this is one of its own."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    environment = {**os.environ, "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8", "NPROC": "16"}
    code = "import jax, pytest, sys; assert jax.device_count() == 8; sys.exit(pytest.main(sys.argv[1:]))"
    chosen = "sends_its_gradients or the_unet or a_sampler"
    command = [
        sys.executable,
        "-c",
        code,
        "-q",
        "--color=no",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        chosen,
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\n{len(STEPS) + 3} passed" in done.stdout  # every step; gd's with the UNet; two samplers


# -- these tests can fail


def unchanged(gradients, metrics, batch, over):
    return gradients, metrics


def averaged_twice(gradients, metrics, batch, over):
    return over.mean((gradients, metrics))


def one_more_mean(gradients, metrics, batch, over):
    return gradients, {**metrics, "brightness": over.mean(jnp.mean(batch["current"].image))}


def mean_of_what_is_the_same_everywhere(gradients, metrics, batch, over):
    return gradients, {**metrics, "norm": over.mean(optax.tree.norm(gradients))}


def gathered(gradients, metrics, batch, over):
    return gradients, {**metrics, "brightest": jnp.max(over.gather(batch["current"].image))}


@pytest.fixture
def regressing(regression, programs) -> Callable[..., Program]:
    """(what is done with the averaged gradient and metrics, what with the step) -> the program of a regression."""

    def squared(params, batch, context):
        images = batch["current"].image
        return jnp.mean((images.reshape(len(images), -1) @ params["w"] + params["b"]) ** 2), {}

    def program(after: Callable[..., Any], within: Callable[..., Any] = lambda step: step) -> Program:
        def gradient(params, batch, context, over):
            return after(*descend(squared)(params, batch, context, over), batch, over)

        parallel, optimizer = Parallel("pmap"), optax.sgd(0.05)
        state = create_state(regression.params, optimizer, ema=False)
        ids = parallel.split(regression.ids)
        step = scan_steps(within(regression.step(optimizer, gradient=gradient)), 2)
        parallel.compile_step(step, *parallel.replicate((state, regression.context)), ids, {})
        return programs[-1]

    return program


def test_a_regression_sends_its_gradient_and_its_loss(regressing, regression) -> None:
    program = regressing(unchanged)
    ((kind, arrays),) = program.sent
    assert (kind, sorted(arrays)) == ("all-reduce", ["f32[4]", "f32[]", "f32[]"])
    check(program, regression.params, gradients=1, metrics=1)


@pytest.mark.parametrize(
    "after", [averaged_twice, one_more_mean, mean_of_what_is_the_same_everywhere, gathered], ids=lambda f: f.__name__
)
def test_whatever_else_a_step_might_send_is_seen(regressing, regression, after) -> None:
    program = regressing(after)
    with pytest.raises(AssertionError):
        check(program, regression.params, gradients=1, metrics=1)


def test_an_average_in_every_round_of_a_loop_within_the_step_is_seen(regressing, regression) -> None:
    program = regressing(unchanged, lambda step: scan_steps(step, 3))
    assert len(program.sent) == 1
    assert program.sent_in_outer_loops == []
    with pytest.raises(AssertionError):
        check(program, regression.params, gradients=1, metrics=1)


# -- the sampler


@pytest.mark.parametrize("words", [(), ("model.class_conditional=True",)], ids=["unconditional", "conditional"])
def test_a_sampler_sends_nothing(tiny_config, programs, words) -> None:
    parts, parallel = assemble(tiny_config("gd", *words)), Parallel("pmap")
    params, num = RunArrays(parts).initial()["networks"][DENOISER].params, 2 * parallel.count
    labels = np.zeros(num, np.int32) if parts.setup.num_classes else None
    assert len(Generator(parts.setup, parallel, num)(params, named_key(0), num, labels)) == num
    (program,) = programs
    assert program.asked == []
    assert program.sent == []
