"""What the person at the keyboard did wrong, said in one line."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """Bad input: the message is one line that says what is wrong, where, and what to write instead."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the process with exit code 2 and the one line of a `UserError`, without a traceback."""
    try:
        yield
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
