import io

import pytest

from jdcl_jax.reporting.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError("gone")


def run(progress: Progress, clock: Clock, steps: range, seconds: float, **facts: float) -> None:
    for step in steps:
        clock.now += seconds
        progress.update(step, **facts)


def test_plain_lines_are_the_first_the_last_and_one_every_few_seconds():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock, interval=5.0, num_tasks=5)
    progress.start("train", 20, task=2)
    run(progress, clock, range(1, 21), 1.0)
    progress.finish()
    steps = [line.split("step ")[1].split()[0] for line in stream.getvalue().splitlines()]
    assert steps == ["1/20", "6/20", "11/20", "16/20", "20/20"]


def test_a_line_says_task_phase_step_loss_speed_and_time_left():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(1000, num_tasks=5, stream=stream, clock=clock, interval=0.0)
    progress.start("train", 200, task=2)
    run(progress, clock, range(100, 201, 100), 40.0, loss=0.04228, images_per_second=912.3)
    assert stream.getvalue().splitlines()[-1] == (
        # 100 steps in 40 s between the two updates; 800 steps of the run are left.
        "task 2/5  train  step 200/200  loss 0.0423  912 images/s  5 min 20 s left"
    )


def test_the_first_call_with_its_compilation_does_not_count_for_the_time_left():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(30, stream=stream, clock=clock, interval=0.0)
    progress.start("train", 30)
    clock.now = 1000.0
    progress.update(10)
    clock.now = 1010.0
    progress.update(20)
    first, second = stream.getvalue().splitlines()
    assert "left" not in first
    assert second.endswith("  10 s left")


def test_a_resumed_run_counts_what_was_done_before():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(1000, done_steps=950, stream=stream, clock=clock, interval=0.0)
    progress.start("train", 100, start_step=50)
    run(progress, clock, range(60, 81, 10), 10.0)  # 10 steps in 10 s, 20 of the run left
    assert stream.getvalue().splitlines()[-1].endswith("step 80/100  20 s left")


def test_the_time_left_runs_on_over_phases_that_do_not_count():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(40, stream=stream, clock=clock, interval=0.0)
    progress.start("train", 20, task=1)
    run(progress, clock, range(10, 21, 10), 10.0)
    progress.start("sample", 4, task=1, counts=False)
    run(progress, clock, range(1, 5), 5.0)
    assert stream.getvalue().splitlines()[-2].endswith("sample  step 3/4  5.0 s left in sample")
    progress.start("train", 20, task=2)
    run(progress, clock, range(10, 11), 10.0)
    # 20 steps in 10 + 20 + 10 s since the first update; 10 steps left.
    assert stream.getvalue().splitlines()[-1].endswith("step 10/20  20 s left")


def test_a_phase_that_ends_early_still_shows_its_last_step():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock)
    progress.start("train", 20)
    run(progress, clock, range(1, 4), 0.1)
    progress.close()
    first, last = stream.getvalue().splitlines()
    assert "step 1/20" in first
    assert "step 3/20" in last


def test_a_terminal_gets_a_bar():
    stream, clock = Terminal(), Clock()
    progress = Progress(20, num_tasks=5, stream=stream, clock=clock)
    progress.start("train", 20, task=2)
    run(progress, clock, range(10, 21, 10), 1.0, loss=0.5)
    progress.message("saved")
    progress.close()
    text = stream.getvalue()
    assert "\r" in text
    assert "saved\n" in text
    last = text.split("\r")[-1]
    assert "task 2/5  train" in last
    assert "20/20" in last
    assert "loss 0.5" in last


@pytest.mark.parametrize("stream", [Broken(), None])
def test_nothing_ever_raises(stream):
    if stream is None:
        stream = io.StringIO()
        stream.close()
    progress = Progress(10, stream=stream)
    progress.start("train", 10, task=1)
    progress.update(1, loss=float("nan"), images_per_second=float("inf"))
    progress.update("five", loss="x")  # type: ignore[arg-type]
    progress.message("hello")
    progress.finish()
    progress.close()
