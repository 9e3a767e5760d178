"""A host whose clock is set while a process runs: SIMULATED, for that process alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.simulated_library import compile_library

SOURCE = Path(__file__).with_name("jumping_clock.c")


@dataclass(frozen=True)
class JumpingClock:
    folder: Path

    @classmethod
    def build(cls, folder: Path) -> JumpingClock:
        compile_library(folder / "clock.so", SOURCE)
        clock = cls(folder)
        clock.move(0)
        return clock

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.folder / "clock.so"), "TORG_SIMULATED_CLOCK": str(self.folder / "moved_s")}

    def move(self, seconds: int) -> None:
        """From now on it shows the right time and so many seconds more."""
        (self.folder / "partial").write_text(f"{seconds}\n")
        (self.folder / "partial").rename(self.folder / "moved_s")
