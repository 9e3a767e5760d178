"""Whether a GPU is fit for leases: judged purely, from readings and from what the kernel's log says.

This is what does not pass by itself: its owner puts the GPU back with `torg-node uncordon`. What passes, heat, is in `heat.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from torg_node.hardware.gpus import GpuReading

# NVIDIA's list of Xids: those that mean the card (or its memory, or link) and not the program on it.
BROKEN_XIDS: Mapping[int, str] = {
    48: "double-bit ECC error",
    61: "internal micro-controller breakpoint",
    62: "internal micro-controller halt",
    64: "row remapping failed",
    74: "NVLink error",
    79: "fell off the bus",
    95: "uncontained ECC error",
    119: "GPU system processor does not answer",
    120: "GPU system processor error",
}
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:]+)\): (\d+)")
_KERNEL_RECORD_BYTES = 8192


def why_unfit(reading: GpuReading) -> str | None:
    """The reason to take this GPU out of service, or None."""
    if reading.is_lost:
        return "fell off the bus: the driver does not reach it any more"
    if reading.row_remap_failed:
        return "its memory has no spare rows left (row remapping failed)"
    if reading.uncorrected_ecc_errors:
        return f"{reading.uncorrected_ecc_errors} uncorrected ECC errors since boot"
    return None


def broken_xids(log: str) -> dict[str, str]:
    """Reason by PCI address (0000:3b:00.0), from lines of the kernel's log."""
    found: dict[str, str] = {}
    for address, code in _XID.findall(log):
        if int(code) in BROKEN_XIDS:
            found.setdefault(f"{address.lower()}.0", f"Xid {code}: {BROKEN_XIDS[int(code)]}")
    return found


class KernelLog:
    """The kernel's log from now on, a piece at a time. Where it may not be read (no root), there is none: `is_readable`."""

    def __init__(self, path: Path = Path("/dev/kmsg")) -> None:
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError:
            self.close()

    @property
    def is_readable(self) -> bool:
        return self._descriptor >= 0

    def news(self) -> str:
        """What was logged since the last call."""
        pieces: list[bytes] = []
        while self.is_readable:
            try:
                piece = os.read(self._descriptor, _KERNEL_RECORD_BYTES)
            except BrokenPipeError:  # records were overwritten before they were read; the next read goes on
                continue
            except OSError:
                break
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces).decode(errors="replace")

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
