"""The one loop: tasks -> phases -> steps -> evaluation -> checkpoint.

The order is part of the contract: after the last step of a task the method's memory is updated, the task is
evaluated, then its checkpoint is saved, and only then does the next task begin. A checkpoint is made after each phase
too, and before the evaluation. All that is needed to go on stands in it: networks, memory, position, and the scores and
costs so far. So a run that was killed at any moment ends like one that was not.
"""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from jdcl_jax.assembly import Parts, RunArrays, assemble, chain_steps, phase_optimizer, phase_step
from jdcl_jax.errors import UserError
from jdcl_jax.inputs import check_batches, check_hosts_agree, check_resumed, data_checksum
from jdcl_jax.keys import named_key
from jdcl_jax.measuring.evaluator import Evaluator
from jdcl_jax.methods.method import DENOISER, SOLVER, Learned, Phase
from jdcl_jax.phase_log import Metrics, PhaseLog, Sinks
from jdcl_jax.reporting.grids import write_grid
from jdcl_jax.reporting.progress import Progress
from jdcl_jax.reporting.writer import Writer
from jdcl_jax.results import Results
from jdcl_jax.training import hosts
from jdcl_jax.training.checkpoint import Checkpoints, to_host
from jdcl_jax.training.feeding import make_feed
from jdcl_jax.training.layers import layer_names
from jdcl_jax.training.memory import PeakMemory, enough_memory
from jdcl_jax.training.parallel import Parallel
from jdcl_jax.training.state import Context, Pool, PyTree, TrainState, begin_phase, begin_task
from jdcl_jax.training.step import scan_steps
from jdcl_jax.training.stopping import Stopped
from jdcl_jax.workdir import Workdir

logger = logging.getLogger(__name__)

GRID_IMAGES = 64


def run(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    *,
    command: str = "",
    stream: TextIO | None = None,
    asked_to_stop: Callable[[], bool] = bool,
) -> dict[str, Any]:
    """Runs the whole sequence, or what is left of it, and returns the contents of results.json.

    Args:
      config: a full config (see `jdcl_jax.config.default_config`).
      workdir: the run's folder; a finished run in it is returned as it is, an unfinished one goes on.
      command: how the run was started, for the record.
      stream: where progress goes; standard error if None.
      asked_to_stop: whether the run is to save and stop; by default it never is.

    Raises:
      UserError: anything wrong with config, data or workdir; a loss that is not finite; too little memory.
      Stopped: it was asked to, and has saved.
    """
    folder = Workdir(Path(workdir), config)
    if (finished := folder.finished_results()) is not None:
        return finished
    start = "data.device_memory_mib=0, which keeps the training images off the device, or smaller model.channels"
    with enough_memory("the start of the run", start):
        parts = assemble(config)
    with folder.claimed():
        with enough_memory("the start of the run", start):
            experiment = Experiment(parts, folder, command=command, stream=stream, asked_to_stop=asked_to_stop)
        return experiment.run()


class Experiment:
    """One run: the parts, where it stands, and the loop over what is left."""

    def __init__(
        self,
        parts: Parts,
        folder: Workdir,
        *,
        command: str,
        stream: TextIO | None,
        asked_to_stop: Callable[[], bool],
    ):
        self.parts, self.config, self.folder = parts, parts.config, folder
        self.parallel, self.peak = Parallel(self.config.parallel.mode), PeakMemory()
        self._asked_to_stop = asked_to_stop
        self._by_task = [list(parts.method.phases(task)) for task in range(parts.num_tasks)]
        check_batches(self._all_phases(), self.parallel.count, self.config.train.batch_size)
        self._data = data_checksum(parts)
        check_hosts_agree(parts, self._data)
        # Before anything is written: the evaluator finds the last things that can be wrong with the config.
        self.evaluator = Evaluator(parts, self.parallel, Progress(stream=stream).message)
        folder.write_config()
        self.arrays = RunArrays(parts)
        self.checkpoints = Checkpoints(folder.path / "checkpoints", check=self._check_finite)
        self.results = Results(parts, self.parallel, command)
        self.task, self.phase, self.global_step = 0, 0, 0  # the phase behind the last one is the evaluation
        self.entered = False  # whether the phase has begun
        self._denoiser: tuple[PyTree, PyTree] | None = None  # copies on the host, until it is trained again
        self._lines = 0  # of metrics.jsonl, at the checkpoint
        self._carried: Metrics = {}  # metrics of steps before the checkpoint that are not written yet
        self.state = self._restore_or_start()
        self.writer = Writer(folder.path, resume_step=self.global_step, resume_lines=self._lines)
        self.progress = Progress(
            sum(phase.steps for phase in self._all_phases()),
            num_tasks=parts.num_tasks,
            done_steps=self.global_step,
            stream=stream,
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
            hosts.told_by_writer(self.checkpoints.wait)
            return self.folder.finish(self.results.as_dict("finished"))
        finally:
            self.progress.close()
            self.writer.close()
            self.checkpoints.close()

    # -- where the run stands

    def _restore_or_start(self) -> PyTree:
        shapes, found = self.arrays.shapes(), {}

        def read() -> dict[str, Any] | None:
            restored = self.checkpoints.restore_newest(shapes, order=_age)
            found["state"] = self.arrays.initial() if restored is None else restored[0]
            if restored is None:
                return None
            check_resumed(restored[1], self._data, self.folder.path)
            return restored[1]

        record = hosts.told_by_writer(read)
        state = hosts.arrays_from_writer(found.get("state"), shapes)
        if record is not None:
            position = record["position"]
            self.task, self.phase, self.global_step = position["task"], position["phase"], position["global_step"]
            self.entered, self._lines, self._carried = position["entered"], position["lines"], record["carried"]
            self.results.restore(record["history"])
            hosts.told_by_writer(lambda: self.evaluator.scorer.check_same(record["history"]["instrument"]))
            logger.info("resuming at task %d, step %d of the run", self.task + 1, self.global_step)
        return {"networks": self.parallel.replicate(state["networks"]), "memory": state["memory"]}

    def _record(self) -> dict[str, Any]:
        step = int(self._network(self._phases()[self.phase]).step) if self.entered else 0
        position = {"task": self.task, "phase": self.phase, "step": step, "global_step": self.global_step}
        position |= {"entered": self.entered, "lines": self.writer.lines}
        history = self.results.history()
        return {"position": position, "history": history, "carried": self._carried, "data": self._data}

    def _save(self) -> None:
        """Saves where the run stands."""
        self.writer.flush()
        self.checkpoints.save(self.global_step, self.state, self._record())

    def _stop_is_due(self) -> bool:
        return hosts.asked_to_stop() if hosts.several() else self._asked_to_stop()

    def _stop(self) -> NoReturn:
        hosts.told_by_writer(self.checkpoints.wait)  # no other leaves before
        raise Stopped(f"saved task {self.task + 1}, step {self.global_step} of the run, in {self.folder.path}")

    def _check_finite(self, state: PyTree) -> None:
        """An update may overflow where loss and gradient did not; such a checkpoint is of no use to anyone."""
        kept = {f"the parameters of the {name} are": network.params for name, network in state["networks"].items()}
        for what, tree in {**kept, f"what {self.config.method.name} keeps of the past is": state["memory"]}.items():
            floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
            if not all(np.isfinite(leaf).all() for leaf in floats):
                raise UserError(
                    f"{what} no longer finite at step {self.global_step} of the run, task {self.task + 1}; the "
                    "checkpoint before it is kept; write a smaller train.learning_rate or train.clip_norm in a new "
                    "workdir"
                )

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

    # -- a task

    def _run_task(self) -> None:
        phases = self._phases()
        while self.phase < len(phases):
            phase = phases[self.phase]
            self.peak.start()
            with enough_memory(f"task {self.task + 1}, phase {phase.name}", self._advice(phase)):
                if not self.entered:
                    self._enter_phase(phase)
                self._run_phase(phase)
                self._end_phase(phase, last=self.phase == len(phases) - 1)
                self.results.add_memory(self.task, phase.name, self.peak.read())
                self.phase, self.entered = self.phase + 1, False
                self._save()
            if self._stop_is_due():
                self._stop()
        advice = "a smaller evaluation.batch_size or evaluation.likelihood.batch_size, or fewer evaluation.num_samples"
        with enough_memory(f"task {self.task + 1}, phase evaluate", advice):
            self._evaluate()
            self.task, self.phase = self.task + 1, 0
            self.writer.flush()
            self.checkpoints.save_task(self.task, self.state, self._record())

    def _advice(self, phase: Phase) -> str:
        largest = max(phase.streams.values(), key=lambda stream: stream.batch_size)
        batch = f"a smaller {largest.option or 'train.batch_size'} (now {largest.batch_size})"
        pool = ", or data.device_memory_mib=0, which keeps the training images off the device" if self.on_device else ""
        half = ", or model.dtype=bfloat16" if self.config.model.dtype == "float32" else ""
        return f"{batch} or smaller model.channels{half}{pool}"

    def _learned(self) -> Learned:
        networks = self.state["networks"]
        state, solver = networks[DENOISER], networks.get(SOLVER)
        if self._denoiser is None:
            self._denoiser = to_host((state.params, state.averaged))
        params, averaged = self._denoiser
        tracked, own = to_host((state.tracked, None if solver is None else solver.params))
        return Learned(params, averaged, tracked, own)

    def _end_phase(self, phase: Phase, *, last: bool) -> None:
        """What a method makes of what was learned; at the end of the last phase, of the whole task."""
        classifying = DENOISER if self.parts.setup.solver is None else SOLVER
        if phase.observe is None and phase.network == classifying and phase.measured:
            found = self.evaluator.accuracy_by_task(self.state["networks"], self.task)
            self.results.add_phase(self.task, phase.name, found)
        method, memory = self.parts.method, self.state["memory"]
        if last:
            self._remember(method.end_task(memory, self._learned(), self.task))
            self._note("end", method.facts(self.state["memory"], self.task, None))
            return
        self._remember(method.end_phase(memory, self._learned(), self.task, phase))
        self._note(phase.name, method.facts(self.state["memory"], self.task, phase))
        if phase.scored:
            drawn = method.replay_set(self.state["memory"], self.task)
            self.results.add_replay(self.task, self.evaluator.scorer.replay(drawn.images, drawn.labels, self.task))

    def _remember(self, memory: PyTree) -> None:
        """Several hosts take what the first one computed, in which others might differ by rounding."""
        self.state["memory"] = hosts.arrays_from_writer(memory, memory)

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
        own = self.parallel.local(context)
        feed = None
        if not self.on_device:
            feed = make_feed(phase.streams, train.images, train.labels, per_call, self.parallel.own)

        def fed() -> Any:
            return {} if feed is None else self.parallel.split_own(feed(own, step))

        call, compile_seconds = self._compile(phase, context, ids, fed())
        self.progress.start(phase.name, last, task=self.task + 1, start_step=step)
        log = self._log(phase, step)
        self._carried = {}
        log.compiled(compile_seconds)
        while step < last:
            state, metrics = call(self._network(phase), context, ids, fed())
            self.state["networks"][phase.network] = state
            step, self.global_step = step + per_call, self.global_step + per_call
            log.add(step, metrics, self.global_step)
            if step == last:
                break
            every = self.config.checkpoint.every
            if due := step // every > (step - per_call) // every:
                log.flush(self.global_step)
                self.results.add_memory(self.task, phase.name, self.peak.read())
                self._save()
            if self._stop_is_due():
                if not due:
                    self._carried = log.carry(self.global_step)
                    self.results.add_memory(self.task, phase.name, self.peak.read())
                    self._save()
                self._stop()
        log.flush(self.global_step)
        self.progress.finish()

    def _log(self, phase: Phase, step: int) -> PhaseLog:
        return PhaseLog(
            Sinks(self.results, self.writer, self.progress),
            self.task,
            phase,
            step,
            every=self.config.train.log_every,
            skippable=self.config.train.skip_bad_steps,
            carried=self._carried,
            layers=lambda: layer_names(self._network(phase).params),
        )

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


def _age(record: dict[str, Any]) -> tuple[int, int, int]:
    position = record["position"]
    return position["task"], position["phase"], position["step"]
