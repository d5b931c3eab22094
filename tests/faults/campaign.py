"""The long campaign: runs that are killed again and again at random moments must end like one that was not.

PYTHONPATH=. python tests/faults/campaign.py --kills=60 --terminations=20 --out=results/faults/campaign.json

Of every method in runs.py one run is left in peace. Others are started in folders of their own and killed, each several
times, at a random moment of a random place: while they start, make a step, use replay, save, evaluate, end a task, or
write the report; with SIGKILL, or with SIGTERM, after which a run has 10 seconds to save and end. When such a run is at
its end it is compared, in a fresh process, with the one left in peace. Every negative control takes a part of the state
away from a run when it resumes; then the comparison must find other parameters or scores.
"""

import argparse
import dataclasses
import json
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import lives, runs
from faults.lives import Life
from faults.victim import Fault
from jdcl_jax.training.supervisor import EXIT_AGAIN

PLACES = ("start", "step", "replay", "save", "evaluation", "end of task")  # the report comes last in every run
SPANS = {"start": 2.0, "step": 0.05, "replay": 0.05, "save": 0.3, "evaluation": 1.0, "end of task": 0.2, "report": 0.3}
"""Seconds within which a fault strikes after a run comes to a place: about as long as it is there."""

SIGTERM_SECONDS = 10.0
HITS_A_RUN = 8


@dataclasses.dataclass
class Tally:
    """What became of the faults of one method."""

    tried: Counter[str] = dataclasses.field(default_factory=Counter)
    survived: Counter[str] = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    seconds_lost: list[float] = dataclasses.field(default_factory=list)
    seconds_to_end: list[float] = dataclasses.field(default_factory=list)
    controls: dict[str, int] = dataclasses.field(default_factory=dict)
    runs: int = 0
    unsaved: int = 0  # ended after SIGTERM before they could save


class Method:
    """The campaign of one method."""

    def __init__(self, name: str, folder: Path, seed: int, cold: bool):
        self.name, self.folder, self.tally = name, folder / name, Tally()
        self.words = runs.words(name, str(folder / "cache"))
        self.random = random.Random(f"{seed} {name}")
        if not cold:
            self._live(self.folder / "warm")  # fills the caches of compiled programs and classifiers
        peace = self._live(self.folder / "peace")
        assert peace.code == 0, peace.log
        self.steps, self.seconds = lives.steps_of(peace), peace.seconds
        self.tally.problems += lives.faults_of(peace, self.steps)

    def _live(self, workdir: Path, fault: Fault | None = None) -> Life:
        return lives.live(self.words, workdir, fault, fork=True)

    def hit(self, number: int, sent: signal.Signals) -> None:
        """Runs until `number` signals have struck."""
        name = sent.name
        while self.tally.tried[name] < number:
            workdir = self.folder / f"{name}-{self.tally.runs}"
            self.tally.runs += 1
            left = min(HITS_A_RUN, number - self.tally.tried[name])
            struck, problems, seconds = [], [], 0.0
            while True:
                fault = self._next(left - len(struck), sent)
                life = self._live(workdir, fault)
                seconds += life.seconds
                problems += lives.faults_of(life, self.steps) + self._ending(life, sent)
                if life.was_hit and (life.code != 0 or sent == signal.SIGTERM):  # which may come just before the end
                    struck.append(fault.place if fault else "")
                if life.code == 0:
                    break
                if not life.was_hit:
                    problems.append(f"exit code {life.code}: {life.log[-600:]}")
                    break
            problems += self._compare(workdir)
            self._count(name, struck, problems, seconds, workdir)

    def _next(self, left: int, sent: signal.Signals) -> Fault | None:
        if left <= 0:
            return None
        place = "report" if left == 1 else self.random.choice(PLACES)
        turns = {"start": 1, "report": 1, "evaluation": 1, "end of task": 2, "save": 6}.get(place, 12)
        delay = self.random.uniform(0.0, SPANS[place])
        return Fault(place, self.random.randint(1, turns), delay, int(sent))

    def _ending(self, life: Life, sent: signal.Signals) -> list[str]:
        if not life.was_hit or (life.code == 0 and sent == signal.SIGKILL):
            return []
        assert life.ending is not None
        wanted = (-sent,) if sent == signal.SIGKILL else (0, EXIT_AGAIN)
        out = [] if life.code in wanted else [f"{sent.name} ended in exit code {life.code}: {life.log[-600:]}"]
        if sent == signal.SIGTERM:
            hit = next(at for at, words in enumerate(life.trace) if words[0] == "signal")
            if (made := sum(words[0] == "step" for words in life.trace[hit:])) > 1:  # one may be under way
                out.append(f"it made {made} calls of steps after SIGTERM")
            self.tally.seconds_to_end.append(life.ending)
            self.tally.unsaved += "stopped before it could save" in life.log
            if life.ending > SIGTERM_SECONDS:
                out.append(f"it ended {life.ending:.1f} s after SIGTERM")
            if life.code != 0 and "the same command goes on from" not in life.log:
                out.append(f"it does not say how to go on: {life.log[-300:]}")
        return out

    def _compare(self, workdir: Path) -> list[str]:
        command = [sys.executable, str(Path(__file__).with_name("states.py")), str(self.folder / "peace"), str(workdir)]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode not in (0, 1) or "Traceback" in ended.stderr:
            return [f"the comparison failed: {ended.stderr[-600:]}"]
        return [f"not the same: {line}" for line in ended.stdout.splitlines()]

    def _count(self, name: str, struck: list[str], problems: list[str], seconds: float, workdir: Path) -> None:
        self.tally.tried[name] += len(struck)
        for place in struck:
            self.tally.tried[f"{name}, {place}"] += 1
        if problems:
            self.tally.problems += [f"{workdir.name} ({', '.join(struck)}): {problem}" for problem in problems]
        else:
            self.tally.survived[name] += len(struck)
            for place in struck:
                self.tally.survived[f"{name}, {place}"] += 1
            shutil.rmtree(workdir)
        if struck:
            self.tally.seconds_lost.append((seconds - self.seconds) / len(struck))
        say(f"{self.name}: {name} {self.tally.tried[name]} tried, {self.tally.survived[name]} survived")

    def control(self, most: int) -> None:
        """Every part that is taken away must show; `most` of them are tried, the last ones."""
        for lost, phase in list(runs.LOST[self.name].items())[-most:] if most else []:
            workdir = self.folder / f"without-{lost}"
            life = self._live(workdir, Fault("step", self._middle_of(phase), 0.0, int(signal.SIGTERM)))
            task, _, _ = lives.newest_position(workdir)
            assert (life.code, task) == (EXIT_AGAIN, 1), life.log
            life = self._live(workdir, Fault(lost=lost))
            different = self._compare(workdir) if life.code == 0 else []
            self.tally.controls[lost] = len(different)
            if not any("params" in thing or "results scores" in thing for thing in different):  # not that part alone
                self.tally.problems.append(
                    f"no parameter and no score shows that {lost} was lost (exit code {life.code})"
                )
            say(f"{self.name}: without {lost}, {len(different)} things differ")

    def _middle_of(self, phase: str) -> int:
        """The number of the call in the middle of a phase of the second task."""
        told = [json.loads(line) for line in (self.folder / "peace" / "metrics.jsonl").read_text().splitlines()]
        ends = [line["step"] for line in told if (line["task"], line["phase"]) == (2, phase) and "phase_step" in line]
        return self.steps.index(ends[0]) + 1


def campaign(name: str, folder: Path, options: argparse.Namespace) -> Tally:
    """All that is asked for, of one method."""
    method = Method(name, folder, options.seed, options.cold)
    method.hit(options.kills, signal.SIGKILL)
    method.hit(options.terminations, signal.SIGTERM)
    method.control(options.controls)
    return method.tally


def say(line: str) -> None:
    """To the person who waits."""
    print(line, file=sys.stderr, flush=True)


def _row(tally: Tally) -> dict[str, Any]:
    lost, ends = tally.seconds_lost, tally.seconds_to_end
    return {
        "runs": tally.runs,
        "tried": dict(sorted(tally.tried.items())),
        "survived": dict(sorted(tally.survived.items())),
        "seconds_lost_per_resume": sum(lost) / len(lost) if lost else None,
        "most_seconds_to_end_after_sigterm": max(ends, default=None),
        "ended_after_sigterm_without_saving": tally.unsaved,
        "things_that_differ_without": tally.controls,
        "problems": tally.problems,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kills runs and compares how they end.")
    parser.add_argument("--methods", default=",".join(runs.METHODS), help="separated by commas")
    parser.add_argument("--kills", default=60, type=int, help="SIGKILLs of every method")
    parser.add_argument("--terminations", default=20, type=int, help="SIGTERMs of every method")
    parser.add_argument("--controls", default=9, type=int, help="negative controls of every method, at most")
    parser.add_argument("--seed", default=0, type=int, help="of places and moments")
    parser.add_argument("--cold", action="store_true", help="fill no caches before; seconds say nothing then")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of what was found")
    return parser.parse_args()


def main() -> None:
    """Runs the campaign of every method, two at a time where there are two cores; exits with 1 if anything was lost."""
    options = _options()
    names = options.methods.split(",")
    if len(names) > 1:
        raise SystemExit(_several(names, options))
    begun = time.time()
    with tempfile.TemporaryDirectory(prefix="faults_") as folder:
        tally = campaign(names[0], Path(folder), options)
    write(options, {names[0]: _row(tally)}, begun)
    raise SystemExit(bool(tally.problems))


def write(options: argparse.Namespace, methods: dict[str, Any], begun: float) -> None:
    """What was found, with all that is needed to find it again."""
    from jdcl_jax.results import PACKAGES, commit

    found = {
        "command": shlex.join(["PYTHONPATH=.", "python", *sys.argv]),
        "commit": commit(),
        "seed": options.seed,
        "data": "scikit-learn's digits, 8x8",
        "network": "two dense layers in the UNet's place, see tests/small_runs.py",
        "hardware": f"{os.cpu_count()} CPU cores, two virtual devices",
        "python": platform.python_version(),
        "versions": {package: __import__("importlib.metadata").metadata.version(package) for package in PACKAGES},
        "minutes": round((time.time() - begun) / 60, 1),
        "methods": methods,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")


def _several(names: list[str], options: argparse.Namespace) -> int:
    """Each method in a process of its own, which alone decides what is in memory when it splits."""
    begun = time.time()
    waiting, running, found = list(names), [], {}
    with tempfile.TemporaryDirectory(prefix="faults_cache_") as cache:
        env = lives.environment(JAX_COMPILATION_CACHE_DIR=cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1")
        while waiting or running:
            while waiting and len(running) < max(1, (os.cpu_count() or 1)):
                name = waiting.pop(0)
                part = Path(cache) / f"{name}.json"
                words = [f"--methods={name}", f"--kills={options.kills}", f"--terminations={options.terminations}"]
                words += [f"--controls={options.controls}"]
                command = [sys.executable, __file__, *words, f"--seed={options.seed}", f"--out={part}"]
                running.append((name, part, subprocess.Popen(command, env=env)))
            time.sleep(0.2)
            for name, part, process in list(running):
                if process.poll() is not None:
                    running.remove((name, part, process))
                    failed = {"problems": [f"the campaign itself failed with exit code {process.returncode}"]}
                    found[name] = json.loads(part.read_text())["methods"][name] if part.exists() else failed
    write(options, {name: found[name] for name in names}, begun)
    return int(any(found[name]["problems"] for name in names))


if __name__ == "__main__":
    main()
