"""What this host's processors consume, by their own counters: RAPL as the kernel's powercap tree shows it (Intel, and AMD since Zen).

A counter belongs to a whole processor and wraps (some within twenty minutes), so it is added up from regular looks. Root alone may read it. `root`
is / but in tests.
"""

from __future__ import annotations

import re
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = re.compile(r"intel-rapl:\d+")  # those with a second number are parts of one, and counted in it
_ROOT = Path("/")


@dataclass
class _Package:
    folder: Path
    range_uj: int
    last_uj: int


@dataclass(frozen=True, slots=True)
class CpuEnergy:
    """Since `epoch` began, which another agent does not continue."""

    epoch: str
    used_mj: int


class Rapl:
    """`look` often: at least once while the fastest counter goes round. Safe from several threads."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._epoch, self._used_uj, self._lock = secrets.token_hex(8), 0, threading.Lock()
        self._packages = [found for folder in _packages(root) if (found := _open(folder)) is not None]
        self.is_there = bool(self._packages)

    def look(self) -> CpuEnergy | None:
        """None where no processor counts, or none may be read."""
        with self._lock:
            for package in self._packages:
                now_uj = _read(package.folder / "energy_uj")
                if now_uj is None:
                    continue
                moved_uj = now_uj - package.last_uj
                self._used_uj += moved_uj if moved_uj >= 0 else moved_uj + package.range_uj
                package.last_uj = now_uj
            return CpuEnergy(self._epoch, self._used_uj // 1000) if self._packages else None


def _packages(root: Path) -> list[Path]:
    """Processors, not the "psys" domain, which counts the board and them again."""
    folders = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    return [folder for folder in folders if _PACKAGE.fullmatch(folder.name) and _name(folder).startswith("package")]


def _open(folder: Path) -> _Package | None:
    range_uj, now_uj = _read(folder / "max_energy_range_uj"), _read(folder / "energy_uj")
    return None if range_uj is None or now_uj is None else _Package(folder, range_uj, now_uj)


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
