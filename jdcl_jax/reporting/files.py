"""Files that a reader never sees half-written."""

import contextlib
import os
from pathlib import Path

from jdcl_jax.errors import UserError
from jdcl_jax.training import hosts


def check_page_path(path: str | os.PathLike[str]) -> Path:
    """The path; `UserError` unless it ends in .html, so that no page takes the place of a run's own files."""
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"pages are HTML files: {os.fspath(path)!r} does not end in .html; write {Path(path).stem}.html"
        )
    return Path(path)


@hosts.by_writer
def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path` at once: a reader finds the old file or the new one, nothing between.

    Folders on the way are made. Of several processes of a run only the writing one does it. Raises
    `UserError` where the place cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file under the new name
        temporary.replace(target)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; name a file in a folder that you may write") from error
