"""A request to stop is heard whatever the main thread does, and a run that can't stop in time is ended."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from faults.lives import environment
from jdcl_jax.training.stopping import EXIT_AGAIN, listening

WAITS = """
import ctypes, signal, sys, time
from jdcl_jax.training.stopping import SIGNALS, listening

for number in SIGNALS:  # whoever started the tests may have ignored some, as nohup does
    signal.signal(number, signal.SIG_DFL)

with listening(float(sys.argv[1]), "too late") as asked:
    print("listening", flush=True)
    while sys.argv[2] == "deaf":  # a signal ends the sleep, but nobody asks
        ctypes.CDLL(None).sleep(60)
    while not asked():
        time.sleep(0.01)
    time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 0)  # saving
    print("heard", flush=True)
print("after", flush=True)
"""


def ended(arguments: Sequence[str], *signals: signal.Signals, apart: float = 1.5) -> tuple[int, str, float]:
    """Exit code, output and seconds of a process that gets these signals, some seconds apart."""
    command = [sys.executable, "-c", WAITS, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment(), text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        started = time.monotonic()
        for number in signals:
            process.send_signal(number)
            time.sleep(apart)
        try:
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, out, time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_request_is_heard(number) -> None:
    code, out, _ = ended(["20", "awake"], number)
    assert (code, out) == (0, "heard\nafter\n")


def test_a_program_that_does_not_hear_is_ended_when_its_time_is_over() -> None:
    code, out, seconds = ended(["2", "deaf"], signal.SIGTERM)
    assert (code, out) == (EXIT_AGAIN, "too late\n")
    assert seconds < 10


def test_a_second_request_ends_it_at_once() -> None:
    code, out, seconds = ended(["50", "deaf"], signal.SIGINT, signal.SIGINT)
    assert (code, out) == (EXIT_AGAIN, "too late\n")
    assert seconds < 10


def test_signals_of_several_senders_at_once_are_one_request() -> None:
    """As Ctrl-C in a terminal, whose processes also stop each other."""
    code, out, _ = ended(["20", "awake", "1.5"], signal.SIGINT, signal.SIGTERM, signal.SIGHUP, apart=0.1)
    assert (code, out) == (0, "heard\nafter\n")
    code, out, seconds = ended(["3", "deaf"], signal.SIGINT, signal.SIGTERM, apart=0.1)
    assert (code, out) == (EXIT_AGAIN, "too late\n")
    assert seconds > 2.5


def test_afterwards_signals_do_what_they_did() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with listening(1.0, "") as asked:
        assert not asked()
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with listening(1.0, ""):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
