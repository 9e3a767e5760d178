"""The localnet's memory: one append-only file of JSON lines, on disk before an answer is given, and beside it a small file
with the newest slot and time, overwritten in place at every slot.

After SIGKILL a replay yields the same balances, signatures, blockhashes and clock. A last line that was cut off belongs to a request
that was never answered: it is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Store:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file: Any = None
        self._clock = os.open(path.with_suffix(".clock"), os.O_RDWR | os.O_CREAT, 0o600)

    def read_clock(self) -> tuple[int, int]:
        """Slot and unix time when the last run ended; zeros on the first."""
        text = os.pread(self._clock, 64, 0)
        slot, time_s = text.split() if text.strip() else (0, 0)
        return int(slot), int(time_s)

    def write_clock(self, slot: int, unix_time_s: int) -> None:
        """Fixed width and one write: a killed process leaves the old or the new value."""
        os.pwrite(self._clock, b"%020d %020d" % (slot, unix_time_s), 0)

    def replay(self) -> Iterator[dict[str, Any]]:
        """Every entry of earlier runs, oldest first; cuts a torn tail off."""
        if not self._path.exists():
            return
        whole = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                yield json.loads(line)
                whole += len(line)
        if whole != self._path.stat().st_size:
            os.truncate(self._path, whole)

    def append(self, entry: dict[str, Any], *, durable: bool = True) -> None:
        """`durable`: on disk before this returns. Slots are not: a lost one only means that less time has passed."""
        if self._file is None:
            self._file = self._path.open("ab")
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        if durable:
            os.fdatasync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        os.close(self._clock)
