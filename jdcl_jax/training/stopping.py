"""Requests to stop: SIGTERM, which a scheduler sends before it takes a machine away, Ctrl-C and a closed terminal.

A run that is asked to stop saves and ends with `EXIT_AGAIN`; the same command goes on from there.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from jdcl_jax.training.supervisor import EXIT_AGAIN

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ONE_REQUEST = 1.0  # seconds within which signals are one request: a terminal, `timeout` and a parent may all send it


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The run was asked to stop and has saved; the message says where it stands."""


@contextlib.contextmanager
def listening(grace: float, late: str) -> Iterator[Callable[[], bool]]:
    """Notes requests to stop; yields a function that says whether there was one.

    A thread reads the signals, so that they are heard while the main thread compiles or waits for a device. If the
    program still runs `grace` seconds later, or is asked again after a second, the thread ends it: files are written as
    a whole, so that what was saved before stays good.

    Args:
      grace: seconds.
      late: what to say then, on standard error.
    """
    asked = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        if not reader.recv(1):  # closed: the run has ended
            return
        asked.set()
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            while (passed := time.monotonic() - began) < grace:
                reader.settimeout(grace - passed)
                if not reader.recv(1):
                    return
                if time.monotonic() - began > ONE_REQUEST:
                    break
        print(late, file=sys.stderr, flush=True)
        os._exit(EXIT_AGAIN)

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # as under nohup
    before = {number: signal.signal(number, lambda number, frame: None) for number in heeded}
    woken = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield asked.is_set
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        thread.join()
        reader.close()
