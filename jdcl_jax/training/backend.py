"""What makes XLA fast on the CPU that runs it: compiler options, two devices, and the allocator's page size.

Importing this file imports nothing heavy, so that a command line can call `reexec_with_hugepages` first of all.
"""

import functools
import importlib.metadata
import importlib.util
import logging
import os
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}
AVX512_OPTIONS = {"xla_cpu_prefer_vector_width": "512"}
PROCESSOR = Path("/proc/cpuinfo")

DEVICES_FLAG, DEVICES_VARIABLE = "xla_force_host_platform_device_count", "JAX_NUM_CPU_DEVICES"

TUNABLE = "glibc.malloc.hugetlb=1"
RESTARTED = "JDCL_JAX_RESTARTED"
TRANSPARENT_HUGEPAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options for `lowered.compile(compiler_options=...)`; empty on GPU and TPU.

    On CPU, jaxlib 0.10 sends convolutions to its library YNNPACK, where a train step's take up to twice as long as in
    XLA's older path; its sums and products of matrices are good. So those two kinds are all that it gets. Where the
    processor has AVX-512, its vectors are used whole, of which XLA prefers a half [ours: 1 to 3 % of a train step].
    Other versions of jaxlib, and an option that the user names in XLA_FLAGS, are left alone.
    """
    import jax
    import jaxlib

    known = jaxlib.__version__.split(".")[:2] == ["0", "10"]
    if jax.default_backend() != "cpu" or not known:
        return {}
    flags = _flags_of_the_user()
    options = {**CPU_OPTIONS, **(AVX512_OPTIONS if _has_avx512() else {})}
    chosen = {name: value for name, value in options.items() if name not in flags}
    if chosen:
        logger.info("XLA:CPU: compiling with %s", " ".join(f"{name}={value}" for name, value in chosen.items()))
    return chosen


def _flags_of_the_user() -> str:
    """XLA_FLAGS, or what stands in the file that it names: XLA takes whatever begins with no dash for one."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if not flags or flags.startswith("-"):
        return flags
    try:
        return Path(flags).read_text()
    except (OSError, ValueError):
        return flags


def _has_avx512() -> bool:
    try:
        return "avx512f" in PROCESSOR.read_text()
    except OSError:  # not Linux
        return False


def share_cpu(batch_size: int = 2) -> None:
    """Makes JAX see two devices on a CPU of several cores, each of which computes half of every batch.

    Within a program XLA:CPU leaves cores idle wherever one operation does not fill them; two programs side by side
    fill the gaps: a train step takes a tenth less time on two cores [ours, measured]. Call it before anything asks JAX
    for a device. It does nothing where an accelerator may be used, on a single core, for an odd `batch_size`, and
    where the user says how many devices there are (JAX_NUM_CPU_DEVICES, or the option in XLA_FLAGS).
    """
    asked_otherwise = DEVICES_VARIABLE in os.environ or DEVICES_FLAG in _flags_of_the_user()
    if asked_otherwise or accelerator_expected() or usable_cores() < 2 or batch_size % 2:
        return
    import jax

    try:
        jax.config.update("jax_num_cpu_devices", 2)
    except RuntimeError:  # somebody, a config file perhaps, has asked for a device already
        return
    logger.info("XLA:CPU: two devices share the processor")


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reexec_with_hugepages() -> None:
    """Starts the running command line anew, once, with huge pages for large allocations; else returns at once.

    XLA:CPU takes the memory for a step's intermediate results from malloc in every call, so every call maps and clears
    hundreds of megabytes, page by page. Pages of 2 MiB make that cheap, but glibc reads the setting only when a process
    starts. Call it under `if __name__ == "__main__":`, before anything heavy is imported, and nowhere else: it
    replaces the process. It does nothing where the system is not Linux with glibc 2.35, an accelerator may be used,
    GLIBC_TUNABLES is set (to anything: so an empty one turns this off), or the program was not started from a file or
    with `-m`.
    """
    if not _restart_helps():
        return
    print(
        f"restarting once with GLIBC_TUNABLES={TUNABLE}, which makes training on CPU faster",
        file=sys.stderr,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**os.environ, "GLIBC_TUNABLES": TUNABLE, RESTARTED: "1"}
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError as error:  # some containers forbid it
        print(f"no restart, going on as it is: {error}", file=sys.stderr)


def _restart_helps() -> bool:
    asked_otherwise = "GLIBC_TUNABLES" in os.environ or RESTARTED in os.environ
    repeatable = bool(sys.executable) and sys.argv[0] not in ("", "-", "-c") and len(sys.orig_argv) > 1
    watched = sys.gettrace() is not None or bool(sys.flags.interactive)
    if asked_otherwise or not repeatable or watched:
        return False
    return _glibc_version() >= (2, 35) and _hugepages_on_request() and not accelerator_expected()


def _glibc_version() -> tuple[int, ...]:
    """(0,) where the C library is another one."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError, OSError):
        return (0,)
    return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else (0,)


def _hugepages_on_request() -> bool:
    """Whether the kernel gives huge pages to those that ask; "always" needs no asking, "never" gives none."""
    try:
        return "[madvise]" in TRANSPARENT_HUGEPAGES.read_text()
    except OSError:
        return False


def accelerator_expected() -> bool:
    """Whether JAX may find a GPU or TPU, judged without importing it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms != "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return bool(plugins) or any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
