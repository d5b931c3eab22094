"""Two virtual CPU devices, quick compiling and one cache for the whole suite, set before jax is imported; tiny runs.

Most of the suite's time is XLA compiling small programs that run once, so nothing is optimised here, as in JAX's own
tests. JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as for users; tests/both_ends.py does that.
"""

import atexit
import dataclasses
import gc
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

EMITTERS = "xla_cpu_use_fusion_emitters"  # they compile slowly; jaxlib 0.12 knows no such option and would abort
CHOICE_OF_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "8")  # XLA:CPU may deadlock with several devices on few threads
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
QUICK = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
if QUICK and CHOICE_OF_EMITTERS and EMITTERS not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += f" --{EMITTERS}=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # else every operation is told where it was called from
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jdcl_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

REPOSITORY = Path(__file__).parents[1]

TINY = (
    "generation",
    "model.channels=(8,)",
    "model.groups=4",
    "tasks.first=3",
    "train.steps=4",
    "train.steps_per_call=2",
    "train.batch_size=8",
    "train.learning_rate=1e-3",
    "train.schedule=constant",
    "train.ema=0.0",
    "evaluation.weights=raw",
    "train.log_every=2",
    "checkpoint.every=2",
    "sampler.steps=3",
    "evaluation.num_samples=60",
    "evaluation.batch_size=60",
    "evaluation.classifier.channels=(8,)",
    "evaluation.classifier.features=8",
    "evaluation.classifier.steps=5",
    "evaluation.likelihood.images=0",
    "evaluation.scores=('fd_classifier','kd_classifier','precision_classifier','recall_classifier','kld','ard')",
)
"""What makes configs/digits.py a run of seconds, whatever the demo is tuned to."""

TINY_JDCL = (
    "jdcl",
    "classifier.kind=joint",
    "classifier.hidden=16",
    "evaluation.scores=('accuracy','accuracy_masked','kld')",
    "train.ema=0.9",
    "evaluation.weights=ema",
    "method.global_steps=4",
    "method.quota=10",
    "method.replay_steps=3",
    "method.replay_batch=8",
    "method.class_delay=2",
)
"""These words more make it a run of JDCL."""

GD_RUN = ("gd", "train.steps=8", "checkpoint.every=4")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs come first, so that the processes of the suite end at about the same time; see "long" too."""
    items.sort(key=lambda item: item.path.parent.name not in ("tests", "faults"))
    for item in items:
        if item.get_closest_marker("long") and not os.environ.get("JDCL_LONG"):
            item.add_marker(pytest.mark.skip(reason="long form: JDCL_LONG=1"))


def pytest_collection_finish() -> None:
    """What is there by now stays; the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def forget_compiled_programs() -> Iterator[None]:
    """Every program compiled maps memory, of which Linux lets a process have so many pieces (vm.max_map_count)."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Compiles as for users, as two programs need whose bits must agree; what `jax.jit` is to be given for that."""
    import jax

    from jdcl_jax.training import parallel

    options: dict[str, Any] = {EMITTERS: True} if CHOICE_OF_EMITTERS else {}
    of_the_package = parallel.compiler_options()
    monkeypatch.setattr(parallel, "compiler_options", lambda: {**of_the_package, **options})
    jax.config.update("jax_disable_most_optimizations", False)
    yield options
    jax.config.update("jax_disable_most_optimizations", QUICK)


@pytest.fixture(scope="module")
def small() -> Iterator[pytest.MonkeyPatch]:
    """Two layers in the UNet's place, for a whole file of tests, and no pages; see small_runs.py."""
    import small_runs
    from jdcl_jax import workdir

    with pytest.MonkeyPatch.context() as patch:
        small_runs.quick(patch.setattr)
        patch.setattr(workdir, "write_report", lambda run: None)
        yield patch


def load_config_file(name: str) -> Any:
    """configs/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(f"configs_{name}", REPOSITORY / "configs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def config_file() -> Callable[[str], Any]:
    """Loads a file of configs/ by its stem."""
    return load_config_file


def as_results(config: Any, num_classes: int = 10) -> dict[str, Any]:
    """What results.json of a finished run of this config says of its protocol."""
    from jdcl_jax.data.groups import task_groups

    tasks = config.tasks
    groups = task_groups(
        num_classes, num_tasks=tasks.num_tasks, groups=tasks.groups, order=tasks.order, first_tasks=tasks.first
    )
    tree = {
        "status": "finished",
        "dataset": config.data.name,
        "method": config.method.name,
        "tasks": [{"task": i + 1, "classes": group} for i, group in enumerate(groups)],
        "scores": dict.fromkeys(config.evaluation.scores),
        "config": config.to_dict(),
    }
    return json.loads(json.dumps(tree))


@pytest.fixture(scope="session", name="as_results")
def _as_results() -> Callable[..., dict[str, Any]]:
    """The function of that name."""
    return as_results


@pytest.fixture(scope="session")
def tiny_words(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The words behind the colon of `--config=configs/digits.py:` for a tiny run; later words win."""
    cache = tmp_path_factory.mktemp("classifiers")
    return lambda *words: ",".join([*TINY, f"evaluation.cache_dir={cache}", *words])


@pytest.fixture(scope="session")
def tiny_config(tiny_words: Callable[..., str]) -> Callable[..., Any]:
    """Config of a tiny run on digits: `tiny_config("gr", "train.ema=0.9")`."""
    digits = load_config_file("digits")
    return lambda *words: digits.get_config(tiny_words(*words))


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that was never disturbed; `losses_traced` counts how often a loss was traced."""

    workdir: Path
    config: Any
    results: dict[str, Any]
    losses_traced: int


@pytest.fixture(scope="session")
def gd_run(tiny_config: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    """Generative distillation on three tasks, eight steps each, checkpoints in the middle; read it, don't touch it."""
    from jdcl_jax.experiment import run
    from jdcl_jax.methods import denoising, teacher

    traced = []
    original = denoising.match

    def counting(*args: Any) -> Any:
        traced.append(1)
        return original(*args)

    workdir = tmp_path_factory.mktemp("gd") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "match", counting)
        patch.setattr(teacher, "match", counting)
        results = run(tiny_config(*GD_RUN), workdir, command="tests")
    yield FinishedRun(workdir, tiny_config(*GD_RUN), results, len(traced))


@pytest.fixture(scope="session")
def gd_words(tiny_words: Callable[..., str]) -> str:
    """The words of `gd_run` for a command line."""
    return tiny_words(*GD_RUN)
