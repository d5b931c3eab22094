"""How far a run is: a bar on a terminal, plain lines elsewhere."""

import functools
import math
import sys
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TextIO

from jdcl_jax.reporting.formats import count, duration, number

P = ParamSpec("P")


def _never_raises(method: Callable[P, None]) -> Callable[P, None]:
    """A closed terminal or an odd number must not end a run of days."""

    @functools.wraps(method)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception:
            return

    return quiet


class Progress:
    """Shows task, phase, step, loss, images per second and the time left; never raises.

    On a terminal it draws one bar per phase; elsewhere it prints a line at the first and the last
    step of a phase and, between them, at most one every `interval` seconds.

        progress = Progress(total_steps=5 * 300, num_tasks=5)
        progress.start("train", 300, task=1)
        progress.update(100, loss=0.12, images_per_second=900.0)
        progress.finish()
        progress.close()
    """

    def __init__(
        self,
        total_steps: int | None = None,
        *,
        num_tasks: int | None = None,
        done_steps: int = 0,
        stream: TextIO | None = None,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Prepares the display; nothing is drawn before `start`.

        Args:
          total_steps: steps of the whole run over all phases that count; None if unknown (then the
            time left is that of the phase, and says so).
          num_tasks: n of "task i/n".
          done_steps: steps of the run done before this process began (a resumed run).
          stream: where to write; standard error if None.
          interval: least seconds between two plain lines within a phase.
          clock: seconds that never go back.
        """
        self._total, self._num_tasks, self._done_before = total_steps, num_tasks, done_steps
        self._stream: TextIO = sys.stderr if stream is None else stream
        self._interval, self._clock = interval, clock
        self._bar: Any = None
        self._label, self._counts, self._num_steps = "", True, 0
        self._start_step = self._step = 0
        self._measured: tuple[float, int] | None = None  # time and steps of the run when the rate began to be measured
        self._phase_measured: tuple[float, int] | None = None  # the same within the phase
        self._last_line = -math.inf
        self._line = ""

    @_never_raises
    def start(
        self,
        phase: str,
        num_steps: int,
        *,
        task: int | None = None,
        start_step: int = 0,
        counts: bool = True,
    ) -> None:
        """Begins a phase.

        Args:
          phase: its name, e.g. "train".
          num_steps: steps of the whole phase.
          task: the task's number, counting from 1.
          start_step: steps of the phase done before this process (a resumed run; already among
            `done_steps`).
          counts: whether its steps are among `total_steps`; False for sampling within an
            evaluation.
        """
        self.finish()
        of = "" if self._num_tasks is None else f"/{self._num_tasks}"
        self._label = phase if task is None else f"task {task}{of}  {phase}"
        self._counts, self._num_steps = counts, num_steps
        self._start_step = self._step = start_step
        self._phase_measured, self._last_line, self._line = None, -math.inf, ""
        if self._stream.isatty():
            self._bar = self._open_bar()

    @_never_raises
    def update(self, step: int, *, loss: float | None = None, images_per_second: float | None = None) -> None:
        """Says that `step` steps of the phase are done, and how it goes."""
        self._step = int(step)
        now = self._clock()
        run_step = self._done_before + self._step - self._start_step
        # The first call holds the compilation and would spoil the rate, so measuring begins after
        # it.
        if self._counts and self._measured is None:
            self._measured = (now, run_step)
        if self._phase_measured is None:
            self._phase_measured = (now, self._step)
        facts = [] if loss is None else [f"loss {number(float(loss), digits=3, missing='nan')}"]
        if images_per_second is not None:
            facts.append(f"{count(float(images_per_second))} images/s")
        facts += self._time_left(now, run_step)
        if self._bar is not None:
            self._bar.n = self._step
            self._bar.set_postfix_str("  ".join(facts), refresh=False)
            self._bar.update(0)
            if self._step >= self._num_steps:
                self._bar.refresh()
            return
        self._line = "  ".join([self._label, f"step {self._step}/{self._num_steps}", *facts])
        if self._step >= self._num_steps or now - self._last_line >= self._interval:
            self._print_line(now)

    @_never_raises
    def finish(self) -> None:
        """Ends the phase."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
        elif self._line:  # the phase ended early, so its last step is not printed yet
            self._print_line(self._clock())
        if self._counts:
            self._done_before += self._step - self._start_step
        self._start_step = self._step

    @_never_raises
    def message(self, text: str) -> None:
        """Prints a line of its own without breaking the bar."""
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self._stream, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    @_never_raises
    def close(self) -> None:
        """Ends the display."""
        self.finish()

    def _open_bar(self) -> Any:
        from tqdm import tqdm  # type: ignore[import-untyped]  # here, since a run without a terminal does not need it

        return tqdm(
            total=self._num_steps,
            initial=self._start_step,
            desc=self._label,
            file=self._stream,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def _print_line(self, now: float) -> None:
        print(self._line, file=self._stream, flush=True)
        self._last_line, self._line = now, ""

    def _time_left(self, now: float, run_step: int) -> list[str]:
        """["3 min 20 s left"] from the rate so far; [] while it is unknown."""
        whole = self._counts and self._total is not None
        measured = self._measured if whole else self._phase_measured
        step = run_step if whole else self._step
        total = self._total if whole and self._total is not None else self._num_steps
        if measured is None or step <= measured[1] or total < step:
            return []
        seconds = (now - measured[0]) / (step - measured[1]) * (total - step)
        return [f"{duration(seconds)} left" + ("" if whole else f" in {self._label.split('  ')[-1]}")]
