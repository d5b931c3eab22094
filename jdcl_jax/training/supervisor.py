"""A process that waits for one of a run over several hosts, and says what became of it.

Where another host is lost, JAX's runtime ends the process from within, with a stack of its own and no exception that
could be caught. So the run is a child process, and its parent has the last word. Importing this file imports nothing
heavy, so that a command line can call `supervise` first of all.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: try again later
PIPE = "JDCL_JAX_SUPERVISOR"  # a file descriptor that closes when the parent is gone
LOST = "another process of this run ended or can't be reached, so this one ended too"
REMEDY = "start the same command again on every host"


def supervise(argv: Sequence[str]) -> None:
    """With --multihost among the words: runs the same command as a child and exits as it does; returns in the child.

    A child that was ended by its runtime makes exit code `EXIT_AGAIN` and one last line. SIGTERM and Ctrl-C are passed
    on. A child whose parent is killed ends itself.
    """
    if not any(word.lstrip("-").split("=")[0] == "multihost" for word in argv):
        return
    if PIPE in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[PIPE]),), daemon=True).start()
        return
    ours, theirs = os.pipe()
    environment = {**os.environ, PIPE: str(ours)}
    child = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment, pass_fds=(ours,))
    os.close(ours)

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, pass_on)
    code = child.wait()
    os.close(theirs)
    if code == -signal.SIGABRT:
        print(f"error: {LOST}; {REMEDY}", file=sys.stderr, flush=True)
        code = EXIT_AGAIN
    sys.exit(code if code >= 0 else 128 - code)


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)  # returns when the other end is closed
    os._exit(1)
