"""How much memory a phase takes at most, and what to do where there is too little."""

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from jdcl_jax.errors import UserError, first_line

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"  # see proc(5)


class PeakMemory:
    """The most memory taken since `start`.

    Attributes:
      by_phase: whether the host's peak is that since `start`; elsewhere than on Linux it is that of the whole process.
    """

    def __init__(self) -> None:
        self.by_phase = self._reset()

    def start(self) -> None:
        """Begins anew."""
        self.by_phase = self._reset()

    def read(self) -> dict[str, int | None]:
        """Bytes: "peak_resident_bytes" of this process in the host's memory, "peak_device_bytes" of a device's.

        A device's is the most of any local device since the process began, as its allocator tells; None on a CPU.
        """
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        peaks = [int(stat["peak_bytes_in_use"]) for stat in stats if "peak_bytes_in_use" in stat]
        return {"peak_resident_bytes": self._resident(), "peak_device_bytes": max(peaks, default=None)}

    def _reset(self) -> bool:
        try:
            CLEAR.write_text(RESET_PEAK)
        except OSError:  # not Linux, or forbidden
            return False
        return True

    def _resident(self) -> int:
        if self.by_phase:
            line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def enough_memory(where: str, advice: str) -> Iterator[None]:
    """Says where memory ran out, and what to write instead; host and device alike.

    Raises:
      UserError: in place of a `MemoryError`, and of XLA's own, which has no class to itself.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error)
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in words and "Out of memory" not in words:
            raise
        raise UserError(
            f"out of memory in {where} ({first_line(error)}); write {advice}; the checkpoint before it is kept"
        ) from error
