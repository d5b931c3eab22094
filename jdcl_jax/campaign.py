"""Which runs a study is made of: methods x seeds. All of them are checked before the first one starts.

Every run is a process of `jdcl_jax.main`, started by the same command line each time: so a finished run is skipped and
an unfinished one goes on where it was.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import ml_collections

import jdcl_jax
from jdcl_jax.assembly import assemble
from jdcl_jax.config import default_config, differing_keys, flatten, split_words
from jdcl_jax.errors import UserError
from jdcl_jax.methods.method import Setup
from jdcl_jax.methods.registry import is_method_name, known_methods, make_method
from jdcl_jax.processes import Failure, Job, places, run_all
from jdcl_jax.reporting.study import FORMAT, RECORD, read_record
from jdcl_jax.reporting.writer import write_json
from jdcl_jax.results import PACKAGES, commit
from jdcl_jax.validation import validate
from jdcl_jax.workdir import MACHINE_KEYS, Workdir

_NAME = re.compile(r"[A-Za-z0-9_+]+")
_PAIR = re.compile(r"([A-Za-z0-9_.]+)\s*=\s*(.*)")
_PLAIN_PAIR = re.compile(r"[A-Za-z0-9_.]+=[A-Za-z0-9._+-]*")
_LONGEST = 100  # characters of a folder's name; file systems allow 255


@dataclass(frozen=True)
class Spec:
    """A method of a study with its options.

    Attributes:
      text: as it was written; its name in all tables.
      words: the same as words behind the colon of `--config=FILE:`.
    """

    text: str
    words: tuple[str, ...]

    @property
    def slug(self) -> str:
        """A name for files: letters, digits and . _ = + - only; different words never share one."""
        name, *pairs = [word.removeprefix("method.") for word in self.words]
        readable = re.sub(r"[^A-Za-z0-9._=+-]+", "-", "-".join([name, *pairs]))
        # Of such pairs each "=" ends a key without "-", so the name can be read back; any other gets a digest, set off
        # by what no such name holds.
        if len(readable) <= _LONGEST and all(map(_PLAIN_PAIR.fullmatch, pairs)):
            return readable
        return f"{readable[:_LONGEST]}=={hashlib.sha256(','.join(self.words).encode()).hexdigest()[:12]}"


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


def parse_specs(text: str) -> list[Spec]:
    """Reads "finetune,er(rehearsal_coefficient=0.1),gd(train.ema=0.995)".

    A key is one of the method's options, or a dotted key of the whole config if it begins with one of its sections.

    Raises:
      UserError: something else stands there, or the same spec twice.
    """
    if text.count("(") != text.count(")") or text.count("[") != text.count("]"):
        raise UserError(f"--methods={text} has an open bracket; write NAME or NAME(key=value,...)")
    specs = [_spec(part) for part in split_words(text)]
    if not specs:
        raise UserError("no methods; write --methods=finetune,gd or others of " + ", ".join(sorted(known_methods())))
    for index, spec in enumerate(specs):
        if spec.words in [other.words for other in specs[:index]]:
            raise UserError(f"--methods has {spec.text} twice; write it once")
    return specs


def _spec(text: str) -> Spec:
    name, bracket, rest = text.partition("(")
    if not _NAME.fullmatch(name) or (bracket and not rest.endswith(")")):
        raise UserError(f"'{text}' is no method of a study; write NAME or NAME(key=value,...)")
    sections = [key for key, value in default_config().items() if isinstance(value, ml_collections.ConfigDict)]
    words = [name]
    for pair in split_words(rest[:-1]):
        if (match := _PAIR.fullmatch(pair)) is None:
            raise UserError(f"'{pair}' in {text} is no option; write NAME(key=value,...)")
        key, value = match.groups()
        section, dot, _ = key.partition(".")
        words.append(f"{key}={value}" if dot and section in sections else f"method.{key}={value}")
    return Spec(text, tuple(words))


def parse_seeds(text: str) -> list[int]:
    """Reads "0,1,2".

    Raises:
      UserError: something that is no seed, or one twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UserError(f"--seeds={text} are no seeds; write whole numbers from 0 on, such as --seeds=0,1,2")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text} has a seed twice; write each once")
    return seeds


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
    own = ("seed", *MACHINE_KEYS)
    return {key: value for key, value in _plain(config).items() if key not in own and not key.startswith("method.")}


def _check_workdir(workdir: Path, shared: Mapping[str, Any]) -> None:
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run, no study; write another --workdir")
    record = read_record(workdir)
    different = differing_keys(record["shared"], shared) if record else []
    if different:
        raise UserError(f"{workdir} holds another study ({'; '.join(different)}); write another --workdir")


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
