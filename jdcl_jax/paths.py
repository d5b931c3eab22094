"""Paths as people write them."""

import os
from pathlib import Path

from jdcl_jax.errors import UserError

_ABSENT = (FileNotFoundError, NotADirectoryError, PermissionError)


def named_path(text: str | os.PathLike[str], what: str, *, home: bool = True) -> Path:
    """The path that is named, whether there is something or not.

    Args:
      text: as it was written.
      what: which key or argument it is of, for the message.
      home: whether ~ stands for a home.

    Raises:
      UserError: it can be no path of this machine: too long, a null byte, the home of nobody, a link to itself.
    """
    try:
        path = Path(text).expanduser() if home else Path(text)
        path.stat()
    except _ABSENT:
        return path
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{what} is {os.fspath(text)[:100]!r}, which can be no path ({reason}); write another"
        ) from error
    return path
