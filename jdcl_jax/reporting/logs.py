"""What a command line prints."""

import io
import logging
import sys

from absl import logging as absl_logging


def plain_logging() -> None:
    """Our own log lines as they are, on standard error; none of the libraries that log through absl.

    What goes wrong there is raised too, and is said once, in one line.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what UTF-8 cannot write
        sys.stdout.reconfigure(errors="backslashreplace")
    absl_logging.set_verbosity(absl_logging.FATAL)
    ours = logging.getLogger("jdcl_jax")
    if not ours.handlers:
        ours.addHandler(logging.StreamHandler(sys.stderr))
    ours.setLevel(logging.INFO)
    ours.propagate = False
