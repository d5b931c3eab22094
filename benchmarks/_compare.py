"""Times two sides in turn, A B A B, and says how they compare."""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _sizes import SIZES

Timing = dict[str, float]
"""{"seconds": wall clock, "cpu": processor time of all threads} of one round."""


def arguments(description: str, **defaults: int) -> argparse.Namespace:
    """The command line that both benchmarks share; `defaults` are whole-number options of one of them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--peer", choices=("torch",), help="time the same network elsewhere too")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each side")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    return parser.parse_args()


class Peer:
    """The other side, in a process of its own that rests while ours works.

    It gets the environment that the user started us with: GLIBC_TUNABLES are ours alone.
    """

    def __init__(self, *command: str):
        from jdcl_jax.training.backend import RESTARTED

        environment = dict(os.environ)
        if environment.pop(RESTARTED, None):
            environment.pop("GLIBC_TUNABLES", None)
        script = Path(__file__).with_name("_peer_torch.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hello = self._answer()

    def round(self, count: int) -> Timing:
        """Runs `count` units untimed and `count` more, and says how long those took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the peer stopped; is it installed? pip install 'jdcl_jax[bench]'")
        return json.loads(line)


def same_network(facts: dict[str, Any], peer: Peer) -> dict[str, Any]:
    """What the peer says of itself; ends the program if its network is not as large as ours."""
    ours, theirs = facts["parameters"], peer.hello["parameters"]
    if ours != theirs:
        raise SystemExit(f"ours has {ours:,} parameters and the peer's {theirs:,}: no comparison")
    return peer.hello


def timed(run: Callable[[], None]) -> Timing:
    """One round of ours, after an untimed one; `run` must wait for the device."""
    run()
    start = time.perf_counter(), time.process_time()
    run()
    return {"seconds": time.perf_counter() - start[0], "cpu": time.process_time() - start[1]}


def alternate(sides: dict[str, Callable[[], Timing]], repeats: int) -> dict[str, list[Timing]]:
    """`repeats` rounds of each side in turn."""
    timings: dict[str, list[Timing]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            timings[name].append(run())
    return timings


def report(
    name: str,
    options: argparse.Namespace,
    facts: dict[str, Any],
    timings: dict[str, list[Timing]],
    units: int,
) -> dict[str, Any]:
    """Prints medians, spread and ratio, and writes `--out`.

    Args:
      name: of the benchmark.
      options: the command line.
      facts: what else belongs in the record.
      timings: rounds of each side, ours first.
      units: steps or images in one round.
    """
    seconds = {side: [r["seconds"] / units for r in rounds] for side, rounds in timings.items()}
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    result = {
        "benchmark": name,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "options": {key: str(value) for key, value in vars(options).items()},
        **facts,
        "hardware": {"processor": _processor(), "cpu_count": os.cpu_count()},
        "python": platform.python_version(),
        "seconds": seconds,
        "cpu_seconds": {side: [r["cpu"] / units for r in rounds] for side, rounds in timings.items()},
        "median": medians,
    }
    for side, values in seconds.items():
        spread = f"{min(values):.4f} to {max(values):.4f}"
        print(f"{side:>9}: {medians[side]:.4f} s a {facts['unit']} ({spread}, {len(values)} rounds)")
    if len(medians) == 2:
        (ours, first), (theirs, second) = medians.items()
        pairs = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
        result["ratio"] = first / second
        print(
            f"{ours} / {theirs} = {first / second:.3f} "
            f"(round by round {min(pairs):.3f} to {max(pairs):.3f}; below 1, {ours} is faster)"
        )
    if options.out:
        write_json(options.out, result)
    return result


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(result, file, indent=1)
    Path(file.name).replace(path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
