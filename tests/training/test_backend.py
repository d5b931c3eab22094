"""Compiler options only where they help, and one restart that keeps the command line."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jaxlib
import pytest

from jdcl_jax.training import backend


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    backend.compiler_options.cache_clear()
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    (tmp_path / "cpuinfo").write_text("flags : fpu avx2 avx512f avx512dq\n")
    monkeypatch.setattr(backend, "PROCESSOR", tmp_path / "cpuinfo")
    yield
    backend.compiler_options.cache_clear()


def pretend(monkeypatch, *, platform, version):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jaxlib, "__version__", version)


def test_cpu_with_jaxlib_0_10_gets_the_options_and_one_log_line(monkeypatch, caplog):
    pretend(monkeypatch, platform="cpu", version="0.10.2")
    with caplog.at_level("INFO"):
        first, second = backend.compiler_options(), backend.compiler_options()
    assert list(first) == ["xla_cpu_experimental_ynn_fusion_type", "xla_cpu_prefer_vector_width"] and first == second
    assert len(caplog.records) == 1 and all(f"{name}={value}" in caplog.text for name, value in first.items())


@pytest.mark.parametrize("processor", ["flags : fpu avx2\n", None])
def test_wide_vectors_are_for_processors_that_have_them(monkeypatch, tmp_path, processor):
    pretend(monkeypatch, platform="cpu", version="0.10.2")
    file = tmp_path / "other"
    if processor:
        file.write_text(processor)
    monkeypatch.setattr(backend, "PROCESSOR", file)
    assert list(backend.compiler_options()) == ["xla_cpu_experimental_ynn_fusion_type"]


@pytest.mark.parametrize(
    "platform,version",
    [
        ("gpu", "0.10.2"),
        ("tpu", "0.10.2"),
        ("cpu", "0.9.2"),
        ("cpu", "0.12.0.1"),
        ("cpu", "1.10.0"),
    ],
)
def test_no_option_elsewhere(monkeypatch, platform, version):
    pretend(monkeypatch, platform=platform, version=version)
    assert backend.compiler_options() == {}


@pytest.mark.parametrize(
    "flag,left",
    [
        ("--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT", ["xla_cpu_prefer_vector_width"]),
        ("--xla_cpu_prefer_vector_width=256", ["xla_cpu_experimental_ynn_fusion_type"]),
    ],
)
def test_the_user_s_own_flag_wins(monkeypatch, flag, left):
    pretend(monkeypatch, platform="cpu", version="0.10.2")
    monkeypatch.setenv("XLA_FLAGS", flag)
    assert list(backend.compiler_options()) == left


def test_flags_in_a_file_win_too(monkeypatch, tmp_path):
    """XLA reads XLA_FLAGS as a file's name where it does not begin with a dash."""
    pretend(monkeypatch, platform="cpu", version="0.10.2")
    file = tmp_path / "flags.txt"
    file.write_text("--xla_cpu_prefer_vector_width=256\n")
    monkeypatch.setenv("XLA_FLAGS", str(file))
    assert list(backend.compiler_options()) == ["xla_cpu_experimental_ynn_fusion_type"]
    backend.compiler_options.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "none.txt"))
    assert len(backend.compiler_options()) == 2


def test_nothing_is_said_where_the_user_chose_all(monkeypatch, caplog):
    pretend(monkeypatch, platform="cpu", version="0.10.2")
    flags = ("--xla_cpu_prefer_vector_width=256", "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT")
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    with caplog.at_level("INFO"):
        assert backend.compiler_options() == {}
    assert not caplog.records


def test_the_installed_jaxlib_accepts_the_options():
    """A name that a version does not know raises: the next one must be caught here."""
    compiled = jax.jit(lambda x: 2 * x).lower(1.0).compile(backend.compiler_options())
    assert compiled(3.0) == 6.0


PROGRAM = """
import os, sys
from pathlib import Path
from jdcl_jax.training import backend

backend.TRANSPARENT_HUGEPAGES = Path(os.environ["HUGEPAGES"])
backend._glibc_version = lambda: tuple(map(int, os.environ["GLIBC"].split(".")))
backend.importlib.metadata.entry_points = lambda group: ()
backend.importlib.util.find_spec = lambda name: None
if "FORBIDDEN" in os.environ:
    def forbidden(*arguments):
        raise PermissionError(1, "Operation not permitted")
    os.execve = forbidden
backend.reexec_with_hugepages()
assert "jax" not in sys.modules
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], __name__, os.getpid())
"""


@pytest.fixture
def run(tmp_path):
    """Runs a little program by file or by module name in a controlled environment."""
    package = tmp_path / "demo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "program.py").write_text(PROGRAM)
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    unwanted = ("GLIBC_TUNABLES", backend.RESTARTED, "JAX_PLATFORMS")

    def run(*arguments, hugepages="enabled", code=None, **environment):
        clean = {name: value for name, value in os.environ.items() if name not in unwanted}
        clean |= {"HUGEPAGES": str(tmp_path / hugepages), "GLIBC": "2.39"}
        clean["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(Path.cwd())])
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=clean | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out, err = process.communicate(code, timeout=60)
        assert process.returncode == 0, err
        return out.strip(), err.strip(), process.pid

    return run


def test_a_module_is_restarted_once_with_its_arguments(run):
    out, err, pid = run("-m", "demo.program", "--config=a b.py", "--x=")
    assert out == f"{backend.TUNABLE} ['--config=a b.py', '--x='] __main__ {pid}"
    assert err == f"restarting once with GLIBC_TUNABLES={backend.TUNABLE}, which makes training on CPU faster"


def test_a_file_and_the_interpreter_s_own_options_survive(run, tmp_path):
    out, err, pid = run("-X", "utf8", str(tmp_path / "demo" / "program.py"), "one")
    assert out == f"{backend.TUNABLE} ['one'] __main__ {pid}"
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "why,setting",
    [
        ("the user set tunables", {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}),
        ("the user turned them off", {"GLIBC_TUNABLES": ""}),
        ("already restarted", {backend.RESTARTED: "1"}),
        ("an accelerator was asked for", {"JAX_PLATFORMS": "cuda,cpu"}),
        ("an old C library", {"GLIBC": "2.31"}),
        ("another C library", {"GLIBC": "0"}),
        ("no such kernel setting", {"hugepages": "absent"}),
    ],
)
def test_no_restart(run, why, setting):
    out, err, pid = run("-m", "demo.program", **setting)
    expected = setting.get("GLIBC_TUNABLES", "None")
    assert (out, err) == (f"{expected} [] __main__ {pid}".strip(), ""), why


@pytest.mark.parametrize("kernel", ["always madvise [never]", "[always] madvise never"])
def test_no_restart_where_asking_changes_nothing(run, tmp_path, kernel):
    (tmp_path / "other").write_text(kernel)
    assert run("-m", "demo.program", hugepages="other")[0].startswith("None")


def test_no_restart_of_a_program_that_cannot_be_read_again(run):
    assert run("-c", PROGRAM)[0].startswith("None")
    assert run("-", code=textwrap.dedent(PROGRAM))[0].startswith("None")
    assert run(code=PROGRAM)[0].startswith("None")


def test_a_program_that_may_not_be_restarted_goes_on(run):
    out, err, pid = run("-m", "demo.program", "one", FORBIDDEN="1")
    assert out == f"None ['one'] __main__ {pid}"
    assert err.splitlines()[1:] == ["no restart, going on as it is: [Errno 1] Operation not permitted"]


def test_restart_with_jax_platforms_cpu(run):
    assert run("-m", "demo.program", JAX_PLATFORMS="cpu")[0].startswith(backend.TUNABLE)


def test_the_c_library_s_version_is_read():
    name_and_version = os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else None
    version = backend._glibc_version()
    if name_and_version is None:
        assert version == (0,)
    else:
        assert ".".join(map(str, version)) == name_and_version.split()[1]


SHARING = """
import os
from jdcl_jax.training import backend

backend.usable_cores = lambda: int(os.environ["CORES"])
if "EARLY" in os.environ:
    import jax.numpy
    jax.numpy.zeros(2)
backend.share_cpu(int(os.environ.get("BATCH", "4")))
import jax
print(len(jax.devices()))
"""


@pytest.mark.parametrize(
    "why,setting,count",
    [
        ("two cores or more", {}, 2),
        ("one core", {"CORES": "1"}, 1),
        ("a batch that two can't share", {"BATCH": "5"}, 1),
        ("a device was asked for before", {"EARLY": "1"}, 1),
        ("the user said how many", {"JAX_NUM_CPU_DEVICES": "1"}, 1),
        ("the user said how many in the older way", {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, 3),
    ],
)
def test_two_devices_share_the_processor(why, setting, count):
    clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    clean |= {"JAX_PLATFORMS": "cpu", "CORES": "2", **setting}
    done = subprocess.run([sys.executable, "-c", SHARING], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(count), why


def test_an_accelerator_keeps_the_processor_as_it_is(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.setattr(backend, "usable_cores", lambda: 2)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("it was changed"))
    backend.share_cpu()
