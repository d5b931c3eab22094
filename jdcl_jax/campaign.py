"""Which runs a study is made of: methods x seeds. All of them are checked before the first one starts.

Every run is a process of `jdcl_jax.main`, started by the same command line each time: so a finished run is skipped and
an unfinished one goes on where it was.
"""

import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import ml_collections

import jdcl_jax
from jdcl_jax.assembly import assemble
from jdcl_jax.config import differing_keys, flatten, split_words
from jdcl_jax.errors import UserError
from jdcl_jax.measuring.gradients_at import fitting
from jdcl_jax.methods.method import Setup
from jdcl_jax.methods.registry import is_method_name, make_method
from jdcl_jax.processes import Failure, Job, places, run_all
from jdcl_jax.reporting.runs import MACHINE_KEYS
from jdcl_jax.reporting.study_runs import FORMAT, RECORD, STRUCTURE, read_record
from jdcl_jax.reporting.writer import write_json
from jdcl_jax.results import PACKAGES, commit
from jdcl_jax.specs import Spec, parse_seeds, parse_specs
from jdcl_jax.validation import validate
from jdcl_jax.workdir import Workdir, read_json

FEWEST_GRADIENTS, MOST_GRADIENTS = 16, 128  # of single examples, to find their structure [ours]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study; `argument` is what follows `--config=`."""

    spec: Spec
    seed: int
    workdir: Path
    argument: str
    config: ml_collections.ConfigDict

    @property
    def name(self) -> str:
        """How a person calls it."""
        return f"{self.spec.text} seed {self.seed}"

    @property
    def relative_folder(self) -> str:
        """The run's own workdir, seen from that of the study."""
        return f"runs/{self.spec.slug}-{self.seed}"

    @property
    def folder(self) -> Path:
        """The run's own workdir."""
        return self.workdir / self.relative_folder

    def job(self) -> Job:
        """Its process. A run writes its config once the classifier behind the scores is made, which all runs share."""
        command = [sys.executable, "-m", "jdcl_jax.main", f"--config={self.argument}", f"--workdir={self.folder}"]
        log = self.workdir / "logs" / f"{self.folder.name}.log"
        return Job(self.name, self.spec.text, command, log, self.folder / "config.json")


@dataclass(frozen=True)
class Plan:
    """A study that can be run.

    Attributes:
      config: FILE or FILE:ARG, as it was written.
      workdir: the study's folder.
      runs: all runs, the first seed of every method first.
      shared: dotted keys of what all methods have in common.
    """

    config: str
    workdir: Path
    runs: tuple[PlannedRun, ...]
    shared: Mapping[str, Any]

    @property
    def methods(self) -> list[str]:
        """The methods as they were written, in that order."""
        return list(dict.fromkeys(run.spec.text for run in self.runs))


def make_plan(config: str, methods: str, seeds: str, workdir: Path) -> Plan:
    """Reads what the user wrote and checks every run as `jdcl_jax.main` would; nothing is written.

    Each config is built and validated, its data are loaded and its method is made, once where they are the same. Only
    what depends on devices or on files read later (batches over several devices, weights of Inception) is left to the
    runs.

    Args:
      config: FILE or FILE:ARG; ARG holds for all runs.
      methods: see `parse_specs`.
      seeds: see `parse_seeds`.
      workdir: the study's folder; one that holds the same study gets further methods and seeds.

    Raises:
      UserError: anything that cannot be.
    """
    file, _, argument = config.partition(":")
    specs, numbers = parse_specs(methods), parse_seeds(seeds)
    common = split_words(argument)
    for word in common:
        if word.partition("=")[0].strip() == "seed":
            raise UserError(f"--config has {word}; write the seeds of a study as --seeds={seeds}")
        if is_method_name(word):
            raise UserError(f"--config names the method {word}; write the methods of a study as --methods={word}")
    read = _reader(file)
    runs = []
    for seed in numbers:
        for spec in specs:
            words = ",".join([*common, *spec.words, f"seed={seed}"])
            with _naming(spec):
                runs.append(PlannedRun(spec, seed, workdir, f"{file}:{words}", _of_method(spec, read(words))))
    with _naming(specs[0]):
        shared = _shared(read(",".join([*common, specs[0].words[0]])))
    _check_workdir(workdir, shared)
    _check_runs(runs)
    _check_recorded(workdir, runs)
    return Plan(config, workdir, tuple(runs), shared)


@contextlib.contextmanager
def _naming(spec: Spec) -> Iterator[None]:
    """Says of which method it is that something is wrong."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{spec.text}: {error}") from error


def _reader(file: str) -> Callable[[str], ml_collections.ConfigDict]:
    """The config file's `get_config`; whatever goes wrong in it is a `UserError`."""
    if not file:
        raise UserError("no config; write --config=configs/digits.py, or another file of configs/")

    def trouble(error: Exception) -> UserError:
        return UserError(f"the config {file} can't be read: {type(error).__name__}: {error}")

    try:
        spec = importlib.util.spec_from_file_location(
            "study_config", file, loader=SourceFileLoader("study_config", file)
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        get_config = module.get_config
    except UserError:
        raise
    except Exception as error:  # a config file is a program and may raise anything
        raise trouble(error) from error

    def read(argument: str) -> ml_collections.ConfigDict:
        try:
            return get_config(argument)
        except UserError:
            raise
        except Exception as error:
            raise trouble(error) from error

    return read


def _of_method(spec: Spec, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config, unless the spec named one of the file's presets instead of a method."""
    name = spec.words[0]
    if not set(config.method.name.split("+")) <= set(name.split("+")):
        raise UserError(f"{name} is a preset of the config; write it as --config=FILE:{name}, and a method here")
    return config


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted keys and values as JSON has them."""
    return flatten(json.loads(config.to_json_best_effort()))


def _shared(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What all runs of a study have in common, but for what a spec sets itself."""
    everything = _seedless(_plain(config))
    return {key: value for key, value in everything.items() if not key.startswith("method.")}


def _check_workdir(workdir: Path, shared: Mapping[str, Any]) -> None:
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run, no study; write another --workdir")
    record = read_record(workdir)
    different = differing_keys(record["shared"], shared) if record else []
    if different:
        raise UserError(f"{workdir} holds another study ({'; '.join(different)}); write another --workdir")


def _check_recorded(workdir: Path, runs: Sequence[PlannedRun]) -> None:
    """Raises `UserError` for a run that the study's earlier runs cannot stand beside.

    Seeds of a method have the same config; two methods have not.
    """
    planned = {run.spec: _seedless(_plain(run.config)) for run in runs}
    for entry in (read_record(workdir) or {"runs": []})["runs"]:
        file = workdir / entry["folder"] / "config.json"
        if not file.exists():
            continue
        old = _seedless(flatten(read_json(file)))
        for spec, config in planned.items():
            same, different = spec.slug == entry["slug"], differing_keys(old, config)
            if same and different:
                raise UserError(
                    f"{workdir} has {spec.text} seed {entry['seed']} with another config ({'; '.join(different)}); "
                    "write another --workdir, or the same values"
                )
            if not same and not different:
                raise UserError(f"{spec.text}: this is the same as {entry['method']} of {workdir}; write it so")


def _seedless(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys without those that may differ between the seeds of a method."""
    return {key: value for key, value in config.items() if key not in ("seed", *MACHINE_KEYS)}


def _check_runs(runs: Sequence[PlannedRun]) -> None:
    """Raises `UserError` for a run that would be refused, or that another method's run equals."""
    setups: dict[str, Setup] = {}
    same: dict[str, str] = {}
    for run in runs:
        with _naming(run.spec):
            validate(run.config)
            Workdir(run.folder, run.config)
            other = same.setdefault(json.dumps(_plain(run.config), sort_keys=True), run.spec.text)
            if other != run.spec.text:
                raise UserError(f"this is the same as {other}; leave one of them out of --methods")
            around = json.dumps(_shared(run.config), sort_keys=True)
            if around not in setups:
                setups[around] = assemble(run.config).setup
            options = {key: value for key, value in run.config.method.to_dict().items() if key != "name"}
            make_method(run.config.method.name, setups[around], options)


def write_record(plan: Plan, command: str) -> None:
    """Adds the plan to the workdir's study.json: which runs, and how, with what and when they were asked for.

    Raises:
      UserError: it can't be written.
    """
    old = read_record(plan.workdir) or {"runs": [], "calls": []}
    runs = [
        {
            "method": run.spec.text,
            "slug": run.spec.slug,
            "seed": run.seed,
            "folder": run.relative_folder,
        }
        for run in plan.runs
    ]
    planned = {entry["folder"] for entry in runs}
    call = {
        "command": command,
        "config": plan.config,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {
            "jdcl_jax": jdcl_jax.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    }
    runs += [entry for entry in old["runs"] if entry["folder"] not in planned]
    record = {"format": FORMAT, "shared": plan.shared, "runs": runs, "calls": [*old["calls"], call]}
    write_json(plan.workdir / RECORD, record)


def run_plan(plan: Plan, *, command: str, jobs: int, say: Callable[[str], None]) -> list[Failure]:
    """Runs what is not finished yet, after writing study.json; where all is finished, nothing is written.

    Args:
      plan: the study.
      command: how it was started, for the record.
      jobs: how many runs at once; 0: as many as suit the machine.
      say: takes lines for the person who waits.

    Returns:
      The runs that failed.

    Raises:
      Interrupted: by Ctrl-C or a signal; the runs have ended.
      UserError: the workdir can't be written.
    """
    left = [run for run in plan.runs if Workdir(run.folder, run.config).finished_results() is None]
    finished = len(plan.runs) - len(left)
    recorded = {entry["folder"] for entry in (read_record(plan.workdir) or {"runs": []})["runs"]}
    if left or not {run.relative_folder for run in plan.runs} <= recorded:
        write_record(plan, command)
    if not left:
        say(f"all {finished} runs are finished")
        return []
    where = places(jobs, len(left))
    say(f"{len(left)} runs, {len(where)} at once" + (f"; {finished} are finished already" if finished else ""))
    return run_all([run.job() for run in left], where, finished=finished, say=say)


def measure_structure(plan: Plan, *, say: Callable[[str], None]) -> list[Failure]:
    """Measures once how near to rank 1 the Fisher information is, after the first task of the first finished run.

    There all methods of a study still have the same network, unless their options say otherwise. Nothing happens where
    that was measured already, or where too few gradients of the network fit into memory.

    Returns:
      The failure, if it failed.

    Raises:
      Interrupted: by Ctrl-C or a signal.
      UserError: the workdir can't be written.
    """
    numbers = plan.workdir / STRUCTURE
    results = ((run, Workdir(run.folder, run.config).finished_results()) for run in plan.runs)
    first = next(((run, found) for run, found in results if found is not None), None)
    if numbers.exists() or first is None:
        return []
    run, found = first
    images = min(MOST_GRADIENTS, fitting(found["parameters"]))
    if images < FEWEST_GRADIENTS:
        say(f"gradients of {found['parameters']:,} numbers are too large to say how near to rank 1 their Fisher is")
        return []
    words = [f"--workdir={run.folder}", "--task=1", f"--images={images}", f"--out={numbers.with_suffix('.png')}"]
    command = [sys.executable, "-m", "jdcl_jax.fisher", *words]
    log = plan.workdir / "logs" / "structure.log"
    job = Job("structure of the gradients", "structure", command, log, numbers)
    return run_all([job], places(1, 1), say=say)
