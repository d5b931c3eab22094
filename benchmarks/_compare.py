"""Times several sides in turn, A B A B; a peer works in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Side = Callable[[], float]
"""One timed round -> seconds of one unit."""

PEER = Path(__file__).with_name("_peer_torch.py")
UNUSABLE = 3
"""Exit code of a peer that can't do what it was asked for here, such as compile."""


class Peer:
    """The other side, in a process of its own that rests while ours works.

    It gets the environment that the user started us with: GLIBC_TUNABLES are ours alone.

    Raises:
      ChildProcessError: it can't do what it was asked for here, or stopped.
    """

    def __init__(self, *command: str):
        from jdcl_jax.training.backend import RESTARTED

        environment = dict(os.environ)
        if environment.pop(RESTARTED, None):
            environment.pop("GLIBC_TUNABLES", None)
        self._process = subprocess.Popen(
            [sys.executable, str(PEER), *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hello = self._answer()

    def round(self, count: int) -> float:
        """Runs `count` units untimed and `count` more, and says how many seconds one of these took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"]) / count

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        if code == UNUSABLE:
            raise ChildProcessError("it can't do this here")
        raise ChildProcessError(f"it stopped with exit code {code}; is it there? pip install 'jdcl_jax[bench]'")


@contextmanager
def torch_peers(wanted: bool, forms: Mapping[str, Sequence[str]], *command: str) -> Iterator[dict[str, Peer]]:
    """The peers that can run here, by name; `forms` are what each is asked for besides `command`."""
    peers: dict[str, Peer] = {}
    try:
        for name, words in forms.items() if wanted else ():
            try:
                peers[name] = Peer(*command, *words)
            except ChildProcessError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
        yield peers
    finally:
        for peer in peers.values():
            peer.close()


def check_comparable(parameters: int, platform: str, peers: Mapping[str, Peer]) -> None:
    """Ends the program if a peer's network is not as large as ours, or if one side has an accelerator and not both."""
    for name, peer in peers.items():
        if (peer.hello["device"] == "cpu") != (platform == "cpu"):
            raise SystemExit(
                f"JAX computes on {platform} and {name} on {peer.hello['device']}: no comparison; install both for the "
                "accelerator, or set JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES="
            )
        if peer.hello["parameters"] != parameters:
            raise SystemExit(
                f"ours has {parameters:,} parameters and that of {name} {peer.hello['parameters']:,}: no comparison"
            )


def timed(run: Callable[[], object], units: int) -> Side:
    """Rounds of `run`, of so many units: an untimed one, because a side that waited must fetch its memory back, then
    a timed one. `run` must wait for the device.
    """

    def one_round() -> float:
        run()
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / units

    return one_round


def alternate(sides: Mapping[str, Side], repeats: int) -> dict[str, list[float]]:
    """Seconds of a unit in `repeats` rounds of each side in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            seconds[name].append(side())
    return seconds
