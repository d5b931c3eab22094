"""The one loop: tasks -> phases -> steps -> evaluation -> checkpoint.

The order is part of the contract: after the last step of a task the method's memory is updated, the task is
evaluated, then its checkpoint is saved, and only then does the next task begin. All that is needed to go on stands in
the checkpoint: networks, memory, position, and the scores and costs so far. So a run that was killed at any moment
ends like one that was not.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import ml_collections
import numpy as np
import optax

from jdcl_jax.assembly import Parts, RunArrays, assemble, chain_steps, phase_optimizer, phase_step
from jdcl_jax.errors import UserError
from jdcl_jax.keys import named_key
from jdcl_jax.measuring.evaluator import Evaluator
from jdcl_jax.methods.method import DENOISER, SOLVER, Learned, Phase
from jdcl_jax.reporting.grids import write_grid
from jdcl_jax.reporting.progress import Progress
from jdcl_jax.reporting.writer import Writer
from jdcl_jax.results import Results
from jdcl_jax.training.checkpoint import Checkpoints, to_host
from jdcl_jax.training.feeding import make_feed
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool, PyTree, TrainState, begin_phase, begin_task
from jdcl_jax.training.step import ACTIVE, scan_steps
from jdcl_jax.workdir import Workdir

logger = logging.getLogger(__name__)

GRID_IMAGES = 64


def run(
    config: ml_collections.ConfigDict, workdir: str | Path, *, command: str = "", stream: TextIO | None = None
) -> dict[str, Any]:
    """Runs the whole sequence, or what is left of it, and returns the contents of results.json.

    Args:
      config: a full config (see `jdcl_jax.config.default_config`).
      workdir: the run's folder; a finished run in it is returned as it is, an unfinished one goes on.
      command: how the run was started, for the record.
      stream: where progress goes; standard error if None.

    Raises:
      UserError: anything wrong with config, data or workdir; a loss that is not finite.
    """
    folder = Workdir(Path(workdir), config)
    if (finished := folder.finished_results()) is not None:
        return finished
    parts = assemble(config)
    with folder.claimed():
        return Experiment(parts, folder, command=command, stream=stream).run()


class Experiment:
    """One run: the parts, where it stands, and the loop over what is left."""

    def __init__(self, parts: Parts, folder: Workdir, *, command: str, stream: TextIO | None):
        self.parts, self.config, self.folder = parts, parts.config, folder
        self.parallel = Parallel(self.config.parallel.mode)
        self._by_task = [list(parts.method.phases(task)) for task in range(parts.num_tasks)]
        self._check_batches()
        # Before anything is written: the evaluator finds the last things that can be wrong with the config.
        self.evaluator = Evaluator(parts, self.parallel, Progress(stream=stream).message)
        folder.write_config()
        self.arrays = RunArrays(parts)
        self.checkpoints = Checkpoints(folder.path / "checkpoints")
        self.results = Results(parts, self.parallel, command)
        self.task, self.phase, self.global_step = 0, 0, 0
        self.entered = False  # whether the phase has begun
        self._denoiser: tuple[PyTree, PyTree] | None = None  # copies on the host, until it is trained again
        self.state = self._restore_or_start()
        self.writer = Writer(folder.path, resume_step=self.global_step)
        self.progress = Progress(
            self._total_steps(), num_tasks=parts.num_tasks, done_steps=self.global_step, stream=stream
        )
        train = parts.sequence.train
        self.on_device = train.images.nbytes <= self.config.data.device_memory_mib * 2**20
        self.pool = self.parallel.replicate(Pool(train.images, train.labels)) if self.on_device else None
        self._compiled: dict[tuple[str, int], Callable[..., Any]] = {}

    def run(self) -> dict[str, Any]:
        """Goes through the tasks that are left and finishes the results."""
        try:
            while self.task < self.parts.num_tasks:
                self._run_task()
            self.checkpoints.wait()
            return self.folder.finish(self.results.as_dict("finished"))
        finally:
            self.progress.close()
            self.writer.close()
            self.checkpoints.close()

    # -- where the run stands

    def _restore_or_start(self) -> PyTree:
        restored = self.checkpoints.restore_newest(self.arrays.shapes(), order=_age)
        if restored is None:
            state = self.arrays.initial()
        else:
            state, record = restored
            position = record["position"]
            self.task, self.phase, self.global_step = position["task"], position["phase"], position["global_step"]
            self.entered = position["entered"]
            self.results.restore(record["history"])
            self.evaluator.scorer.check_same(record["history"]["instrument"])
            logger.info("resuming at task %d, step %d of the run", self.task + 1, self.global_step)
        return {"networks": self.parallel.replicate(state["networks"]), "memory": state["memory"]}

    def _record(self) -> dict[str, Any]:
        step = int(self._network(self._phases()[self.phase]).step) if self.entered else 0
        position = {"task": self.task, "phase": self.phase, "step": step, "global_step": self.global_step}
        return {"position": {**position, "entered": self.entered}, "history": self.results.history()}

    def _phases(self) -> list[Phase]:
        return self._by_task[self.task]

    def _optimizer(self, phase: Phase) -> optax.GradientTransformation:
        """Its learning-rate schedule spans the steps of the present phase and of those that go on with it."""
        return phase_optimizer(self.parts, chain_steps(self._phases(), self.phase), phase.network)

    def _network(self, phase: Phase) -> TrainState:
        return self.state["networks"][phase.network]

    def _per_call(self, phase: Phase) -> int:
        """Steps that one call makes: the same for all tasks, so that a phase of any length is one program."""
        lengths = [other.steps for other in self._all_phases() if other.name == phase.name]
        return math.gcd(self.config.train.steps_per_call, *lengths)

    def _all_phases(self) -> list[Phase]:
        return list(itertools.chain.from_iterable(self._by_task))

    def _total_steps(self) -> int:
        return sum(phase.steps for phase in self._all_phases())

    def _check_batches(self) -> None:
        for phase in self._all_phases():
            for name, stream in phase.streams.items():
                unit = self.parallel.count * stream.multiple
                if stream.batch_size % unit:
                    of_train = stream.batch_size == self.config.train.batch_size
                    option = stream.option or ("train.batch_size" if of_train else "")
                    what = f"{option}=" if option else f"in phase {phase.name} the batch of stream {name}, "
                    how = "write" if option else "write options that make it"
                    otherwise = ", or start with JAX_NUM_CPU_DEVICES=1" if jax.default_backend() == "cpu" else ""
                    raise UserError(
                        f"{what}{stream.batch_size} can't be shared by {self.parallel.count} devices; "
                        f"{how} a multiple of {unit}{otherwise}"
                    )

    # -- a task

    def _run_task(self) -> None:
        phases = self._phases()
        while self.phase < len(phases):
            if not self.entered:
                self._enter_phase(phases[self.phase])
            self._run_phase(phases[self.phase])
            self._end_phase(phases[self.phase], last=self.phase == len(phases) - 1)
            self.phase, self.entered = self.phase + 1, False
        method = self.parts.method
        self.state["memory"] = method.end_task(self.state["memory"], self._learned(), self.task)
        self._note("end", method.facts(self.state["memory"], self.task, None))
        self._evaluate()
        self.task, self.phase = self.task + 1, 0
        self.checkpoints.save_task(self.task, self.state, self._record())

    def _learned(self) -> Learned:
        networks = self.state["networks"]
        state, solver = networks[DENOISER], networks.get(SOLVER)
        if self._denoiser is None:
            self._denoiser = to_host((state.params, state.averaged))
        params, averaged = self._denoiser
        tracked, own = to_host((state.tracked, None if solver is None else solver.params))
        return Learned(params, averaged, tracked, own)

    def _end_phase(self, phase: Phase, *, last: bool) -> None:
        classifying = DENOISER if self.parts.setup.solver is None else SOLVER
        if phase.observe is None and phase.network == classifying and phase.measured:
            found = self.evaluator.accuracy_by_task(self.state["networks"], self.task)
            self.results.add_phase(self.task, phase.name, found)
        if last:
            return
        method = self.parts.method
        self.state["memory"] = method.end_phase(self.state["memory"], self._learned(), self.task, phase)
        self._note(phase.name, method.facts(self.state["memory"], self.task, phase))
        if phase.scored:
            drawn = method.replay_set(self.state["memory"], self.task)
            self.results.add_replay(self.task, self.evaluator.scorer.replay(drawn.images, drawn.labels, self.task))

    def _note(self, name: str, facts: dict[str, Any]) -> None:
        for warning in facts.get("warnings", ()):
            self.progress.message(f"warning: {warning}")
        self.results.add_facts(self.task, name, facts)

    def _enter_phase(self, phase: Phase) -> None:
        networks = self.state["networks"]
        if self.phase == 0:
            networks[DENOISER] = self.parallel.replicate(begin_task(networks[DENOISER]))
        reset = self.config.train.reset_optimizer and not phase.continues
        start = self.parts.method.start(self.state["memory"], self.task, phase)
        state = begin_phase(networks[phase.network], self._optimizer(phase), reset_optimizer=reset, params=start)
        networks[phase.network] = self.parallel.replicate(state)
        if phase.network == DENOISER and (phase.observe is None or start is not None):
            self._denoiser = None
        self.entered = True

    def _run_phase(self, phase: Phase) -> None:
        per_call = self._per_call(phase)
        step, last = int(self._network(phase).step), phase.steps
        context = self._context(phase)
        ids = self.parallel.split({name: np.arange(s.batch_size, dtype=np.int32) for name, s in phase.streams.items()})
        train = self.parts.sequence.train
        feed = None if self.on_device else make_feed(phase.streams, train.images, train.labels, per_call)
        call, compile_seconds = self._compile(
            phase, context, ids, {} if feed is None else self.parallel.split(feed(context, step))
        )
        self.progress.start(phase.name, last, task=self.task + 1, start_step=step)
        log = _PhaseLog(self, phase, step, compile_seconds)
        while step < last:
            fed = {} if feed is None else self.parallel.split(feed(context, step))
            state, metrics = call(self._network(phase), context, ids, fed)
            self.state["networks"][phase.network] = state
            step, self.global_step = step + per_call, self.global_step + per_call
            log.add(step, metrics)
            crossed = step // self.config.checkpoint.every > (step - per_call) // self.config.checkpoint.every
            if crossed and step < last:
                log.flush()
                self.checkpoints.save(self.global_step, self.state, self._record())
        log.flush()
        self.progress.finish()

    def _context(self, phase: Phase) -> Context:
        key = named_key(self.config.seed, "task", self.task, *key_name(self._phases(), self.phase))
        method = self.parts.method.context(self.state["memory"], self.task)
        return self.parallel.replicate(Context(key=key, pool=self.pool, method=method))

    def _compile(self, phase: Phase, *arguments: Any) -> tuple[Callable[..., Any], float]:
        """Compiled once per name of a phase for the whole run; 0 seconds if it was there already.

        Again only where the length of the schedule is part of the program, in a cosine one.
        """
        schedule = (self.config.solver if phase.network == SOLVER else self.config.train).schedule
        cosine = phase.observe is None and schedule == "cosine"
        name = (phase.name, chain_steps(self._phases(), self.phase) if cosine else 0)
        if name in self._compiled:
            return self._compiled[name], 0.0
        self.progress.message(f"compiling {phase.name} ...")
        many = scan_steps(phase_step(self.parts, phase, chain_steps(self._phases(), self.phase)), self._per_call(phase))
        compiled, seconds = self.parallel.compile_step(many, self._network(phase), *arguments)
        self.progress.message(f"compiled {phase.name} in {seconds:.1f} s")
        self._compiled[name] = compiled
        return compiled, seconds

    # -- after a task

    def _evaluate(self) -> None:
        found = self.evaluator(self.state["networks"], self.state["memory"], self.task, self.progress)
        self.results.add_evaluation(found, self.evaluator.scorer.instrument)
        stem = f"task_{self.task + 1:02d}"
        write_grid(self.folder.path / "samples" / f"{stem}.png", found.images[:GRID_IMAGES])
        for name, images in self.parts.method.pictures(self.state["memory"], self.task).items():
            write_grid(self.folder.path / name / f"{stem}.png", images)
        if found.curves is not None:
            self.folder.write_curves(self.task + 1, found.curves.arrays())
        facts = {"task": self.task + 1, "phase": "evaluate"}
        errors = {f"eps_mse_{name}": value for name, value in found.errors.items() if value is not None}
        self.writer.write_scalars(self.global_step, {**facts, **found.evaluation.union, **errors})
        self.writer.write_images(self.global_step, {"samples": found.images[:GRID_IMAGES]})
        self.folder.write_results(self.results.as_dict("running"))


def key_name(phases: Sequence[Phase], place: int) -> tuple[str | int, ...]:
    """Names the random numbers of one of a task's phases.

    Training phases by number, not by name: methods that are compared see the same examples and noise. An observation
    that comes again in a task has its turn in its name, so that it draws anew.
    """
    phase, before = phases[place], phases[:place]
    if phase.observe is None:
        return "phase", sum(other.observe is None for other in before)
    turn = sum(other.name == phase.name for other in before)
    return ("observe", phase.name, turn) if turn else ("observe", phase.name)


class _PhaseLog:
    """Collects the metrics of calls, and fetches them only when there is something to say."""

    def __init__(self, experiment: Experiment, phase: Phase, step: int, compile_seconds: float):
        self._experiment, self._phase = experiment, phase
        self._pending: list[dict[str, jax.Array]] = []
        self._step = self._flushed = step
        self._time = time.perf_counter()
        self._images = sum(stream.batch_size for stream in phase.streams.values())
        experiment.results.add_training(experiment.task, phase, 0, self._images, compile_seconds, compile_seconds)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of the call that ended with `step`; waits for the call before it."""
        if self._pending:
            jax.block_until_ready(self._pending[-1])
        self._pending.append(metrics)
        every = self._experiment.config.train.log_every
        if step // every > self._step // every or jax.default_backend() == "cpu":
            jax.block_until_ready(metrics)
        due = step // every > self._step // every
        self._step = step
        if due:
            self.flush()

    def flush(self) -> None:
        """Writes the means since the last time; stops the run at a loss that is not finite."""
        if not self._pending:
            return
        pending = jax.device_get(self._pending)
        self._pending = []
        values = {name: np.concatenate([np.atleast_1d(m[name]) for m in pending]) for name in pending[0]}
        experiment, steps = self._experiment, self._step - self._flushed
        self._check_finite(values)
        now = time.perf_counter()
        seconds, self._time = now - self._time, now
        rate = steps * self._images / max(seconds, 1e-9)
        active = int(np.sum(values.pop(ACTIVE, np.ones(steps))))  # steps that did anything
        means = {name: float(np.mean(v, dtype=np.float64)) for name, v in values.items()}
        facts = {"task": experiment.task + 1, "phase": self._phase.name, "phase_step": self._step}
        experiment.writer.write_scalars(experiment.global_step, {**facts, **means, "images_per_second": rate})
        shown = {"loss": means["loss"]} if "loss" in means else {}
        experiment.progress.update(self._step, **shown, images_per_second=rate)
        experiment.results.add_training(experiment.task, self._phase, active, self._images, seconds, 0.0)
        self._flushed = self._step

    def _check_finite(self, values: dict[str, np.ndarray]) -> None:
        """Looks at the gradients too: where they are not finite, the parameters no longer are either."""
        for name in ("loss", "gradient_norm"):
            bad = np.flatnonzero(~np.isfinite(values.get(name, np.zeros(0))))
            if bad.size:
                experiment = self._experiment
                experiment.checkpoints.wait()
                raise UserError(
                    f"the {name} became {values[name][bad[0]]} in task {experiment.task + 1}, phase "
                    f"{self._phase.name}, step {self._flushed + int(bad[0]) + 1}; the checkpoint before it is kept in "
                    f"{experiment.checkpoints.directory}; "
                    "write a smaller train.learning_rate or train.clip_norm in a new workdir"
                )


def _age(record: dict[str, Any]) -> tuple[int, int, int]:
    position = record["position"]
    return position["task"], position["phase"], position["step"]
