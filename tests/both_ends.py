"""Runs the end-to-end and the parallel tests, and all long ones, at the other end of the versions that are supported.

    .venv/bin/python tests/both_ends.py [OPTIONS OF PYTEST]

Where this machine has a newer Python than the one that runs this, they run under the newest with the newest JAX that
can be installed there; otherwise under the oldest supported one with the oldest JAX. Where there is no other Python it
says so and ends well. The environment is .venv-other/.
"""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".venv-other"

Version = tuple[int, int]

# A Python that can make environments and for which wheels are published, or nothing.
ASK = """
import ensurepip, json, sys, sysconfig, venv
usual = sys.version_info.releaselevel == "final" and not sysconfig.get_config_var("Py_GIL_DISABLED")
print(json.dumps(sys.version_info[:2] if usual else None))
"""


def order(found: Iterable[Version], own: Version, oldest: Version) -> list[Version]:
    """The versions to try, best first: newer ones from the newest down, or else older ones from the oldest up."""
    supported = sorted({version for version in found if version >= oldest and version != own})
    newer = [version for version in reversed(supported) if version > own]
    return newer or supported


def supported() -> tuple[Version, str]:
    """The oldest Python and the oldest JAX that setup.py asks for."""
    major, minor = re.search(r">=(\d+)\.(\d+)", importlib.metadata.metadata("jdcl_jax")["Requires-Python"]).groups()
    (jax,) = [one for one in importlib.metadata.requires("jdcl_jax") if re.fullmatch(r"jax>=[\d.]+", one)]
    return (int(major), int(minor)), jax.removeprefix("jax>=")


def programs() -> Iterator[Path]:
    """Everything that may be a Python: on the PATH, and pyenv's, whose commands on the PATH need not work."""
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield from (path for path in Path(folder or ".").glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name))
    yield from Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv").glob("versions/3.*/bin/python3")


def pythons() -> dict[Version, Path]:
    """Version -> a Python that works."""
    found: dict[Version, Path] = {}
    for program in programs():
        said = subprocess.run([program, "-c", ASK], capture_output=True, text=True, check=False)
        version = json.loads(said.stdout) if said.returncode == 0 else None
        if version:
            found.setdefault((version[0], version[1]), program)
    return found


def install(program: Path, jax: list[str]) -> bool:
    """Makes the environment; whether everything could be installed."""
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    subprocess.run([program, "-m", "venv", ENVIRONMENT], check=True)
    pip = [ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "-q", "-e", f"{ROOT}[test]", *jax]
    return subprocess.run(pip, check=False).returncode == 0


def main() -> int:
    own = sys.version_info[:2]
    oldest, oldest_jax = supported()
    found = pythons()
    candidates = order(found, own, oldest)
    if not candidates:
        print(f"Only Python {own[0]}.{own[1]} is here: no tests at the other end of the versions supported", flush=True)
        return 0
    for version in candidates:
        if install(found[version], [] if version > own else [f"jax=={oldest_jax}.*"]):
            break
        print(f"Python {version[0]}.{version[1]}: the packages can't be installed", file=sys.stderr, flush=True)
    else:
        return 1
    python = ENVIRONMENT / "bin" / "python"
    about = "import sys, jax; print(f'The other end: Python {sys.version.split()[0]}, jax {jax.__version__}')"
    subprocess.run([python, "-c", about], check=True)
    options = ["-q", "-n", "2", "--dist=loadfile", "--no-loadscope-reorder", "-m", "end_to_end or long"]
    tests = [python, "-m", "pytest", *options, *sys.argv[1:]]
    # Compiled as for users, which the suite itself does not do (see conftest.py), and with the long forms.
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JDCL_LONG": "1", **os.environ}
    return subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
