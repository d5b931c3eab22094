"""What the person at the keyboard did wrong, said in one line."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn


class UserError(ValueError):
    """Bad input: the message is one line that says what is wrong, where, and what to write instead."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Ends the process with exit code 2 and the one line of a `UserError`, without a traceback."""
    try:
        yield
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


def one_line(text: str) -> str:
    """Text on one line, what a terminal would obey or not show written as in a string of Python."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def first_line(error: BaseException) -> str:
    """What another library's error says, for one of our own lines: its first line, not too long."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


class Arguments(argparse.ArgumentParser):
    """Reads the words of a command line; what it refuses is one line too."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        with exit_on_user_error():
            raise UserError(f"{message}; see {self.prog} --help")
        raise AssertionError("not reached")
