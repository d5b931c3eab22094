"""The command line and the record that all parts of the suite share."""

import argparse
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _rows import Row, line

from jdcl_jax.reporting.files import write_bytes

Measure = Callable[[argparse.Namespace], list[Row]]


def parser(description: str | None, *, peers: bool = False, rounds: bool = True) -> argparse.ArgumentParser:
    """The options that every part has, those about peers and timed rounds where it has these."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.set_defaults(peer=None)
    if peers:
        made.add_argument("--peer", choices=("torch",), help="time the same network under PyTorch too")
    if rounds:
        made.add_argument("--repeats", type=_at_least_one, default=5, help="timed rounds of each side")
    made.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that it runs")
    made.add_argument("--out", type=Path, help="a JSON file for the result")
    return made


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("one round at least")
    return number


def run_part(options: argparse.Namespace, measure: Measure) -> None:
    """Measures, prints a line for every row and writes `--out`."""
    if options.peer:  # both frameworks on one accelerator
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")
    from jdcl_jax.training.backend import share_cpu
    from jdcl_jax.training.compile_cache import use_compilation_cache

    share_cpu()
    use_compilation_cache()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("jdcl_jax").setLevel(logging.INFO)
    rows = measure(options)
    for row in rows:
        print(line(row), flush=True)
    if options.out:
        write_json(options.out, {**provenance(), "tiny": options.tiny, "rows": rows})


def empty_caches(folder: str) -> dict[str, str]:
    """The environment of a program that keeps what it compiles and trains in that folder, whatever the user chose."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_COMPILATION_CACHE"}
    return {**kept, "XDG_CACHE_HOME": folder, "JAX_COMPILATION_CACHE_DIR": str(Path(folder) / "jdcl_jax" / "xla")}


def provenance() -> dict[str, Any]:
    """Command, commit, versions and hardware."""
    import jax
    import jaxlib

    import jdcl_jax
    from jdcl_jax.results import commit
    from jdcl_jax.training.backend import RESTARTED, compiler_options

    devices = jax.local_devices()
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": commit(),
        "versions": {
            "jdcl_jax": jdcl_jax.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "python": platform.python_version(),
        },
        "device": f"{devices[0].device_kind} x{len(devices)}",
        "hardware": {"processor": processor(), "cpu_count": os.cpu_count()},
        "compiler_options": compiler_options(),
        "glibc": os.environ.get("GLIBC_TUNABLES", ""),
        "restarted": RESTARTED in os.environ,
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes the whole file or nothing."""
    write_bytes(path, f"{json.dumps(result, indent=1)}\n".encode())


def processor() -> str:
    """Its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
