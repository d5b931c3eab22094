"""Archives of arrays (.npz) that somebody names: read without trust, and never unpickled."""

import contextlib
import io
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np


class ArchiveError(ValueError):
    """The file is no archive of plain arrays, or of more than fits into memory; the message says why."""


def read_archive(
    file: str | os.PathLike[str] | io.BytesIO, names: Collection[str] | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads arrays of an archive.

    Args:
      file: its path, or its bytes as a stream.
      names: which to read, of those that it has; None: all.

    Returns: the arrays by name, and the names of all that it holds.

    Raises:
      ArchiveError: it cannot be read.
      FileNotFoundError: there is no such file.
    """
    try:
        with contextlib.ExitStack() as stack:
            stream = file if isinstance(file, io.BytesIO) else stack.enter_context(Path(file).open("rb"))
            _check_size(stream, names)
            stream.seek(0)
            archive = stack.enter_context(np.load(stream, allow_pickle=False))
            found = {name: archive[name] for name in archive.files if names is None or name in names}
            for name, array in found.items():
                if not isinstance(array, np.ndarray):
                    raise ArchiveError(f"{name!r} is no array")
            return found, list(archive.files)
    except (FileNotFoundError, ArchiveError):
        raise
    except Exception as error:  # zipfile and numpy raise a dozen kinds for damaged bytes
        if "Object arrays" in str(error):
            raise ArchiveError("it holds an array of Python objects, which is never loaded") from error
        raise ArchiveError(f"{error or type(error).__name__}"[:300]) from error


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_size(stream: BinaryIO, names: Collection[str] | None) -> None:
    """By the sizes that the archive declares, beyond which nothing is unpacked."""
    if stream.read(6) == b"\x93NUMPY":
        raise ArchiveError("it is a single array, no .npz file")
    if not zipfile.is_zipfile(stream):
        raise ArchiveError("it is damaged, cut short, or no .npz file")
    with zipfile.ZipFile(stream) as archive:
        wanted = [i for i in archive.infolist() if names is None or i.filename.removesuffix(".npy") in names]
    size, most = sum(info.file_size for info in wanted), memory()
    if size > most:
        raise ArchiveError(f"its arrays are of {size / 2**30:.3g} GiB, and the memory of {most / 2**30:.3g} GiB")
