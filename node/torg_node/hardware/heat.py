"""When a GPU that slows itself down by heat gets no more work, and when it gets work again: decided purely, with hysteresis.

One hot look is nothing: a card that is full of work touches its limit and recovers. One that slows down in at least half of the looks of a window
does not do the work that it is paid for, and the next lease would heat it further. It rests until no look has shown it hot for a while,
which is longer than the window, so that a card at its limit does not come and go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from torg_node.hardware.gpus import GpuReading

_LEAST_LOOKS = 3  # in a window, whatever its length: fewer tell nothing


@dataclass(frozen=True, slots=True)
class HeatRule:
    """`rest_after_s`: the window. `back_after_s`: for how long no look may have shown it hot."""

    rest_after_s: int = 60
    back_after_s: int = 600


@dataclass(frozen=True, slots=True)
class Hot:
    """`since_s`: the first hot look of the window, on the caller's clock."""

    since_s: float
    temperature_c: int | None


@dataclass(frozen=True, slots=True)
class HeatChange:
    """`rest`: what should get no more work. `back`: what rested and is fit again."""

    rest: Mapping[str, Hot] = field(default_factory=dict)
    back: frozenset[str] = frozenset()


class HeatWatch:
    """Remembers the looks of one agent's life. A card that rested before it began is looked at for `back_after_s` like any other."""

    def __init__(self, rule: HeatRule) -> None:
        self._rule = rule
        self._looks: dict[str, list[tuple[float, bool]]] = {}
        self._hot_at: dict[str, float] = {}  # of those that rest: when they were hot last, as far as this agent knows

    def look(self, readings: Iterable[GpuReading], resting: Collection[str], now_s: float) -> HeatChange:
        """`resting`: those that get no work by heat now. A card that is lost, or does not tell, changes nothing."""
        rest: dict[str, Hot] = {}
        back: set[str] = set()
        for reading in readings:
            if reading.is_lost or reading.slowed_by_heat is None:
                continue
            if reading.uuid in resting:
                if self._is_back(reading, now_s):
                    back.add(reading.uuid)
            elif (since_s := self._hot_since(reading, now_s)) is not None:
                rest[reading.uuid] = Hot(since_s, reading.temperature_c)
        return HeatChange(rest, frozenset(back))

    def _hot_since(self, reading: GpuReading, now_s: float) -> float | None:
        """None unless a whole window was looked at and at least half of its looks were hot, the newest among them."""
        self._hot_at.pop(reading.uuid, None)
        looks = self._looks.setdefault(reading.uuid, [])
        looks.append((now_s, reading.slowed_by_heat is True))
        begins_s = now_s - self._rule.rest_after_s
        # The one at or before the window's begin stays: with it the window was seen whole.
        while len(looks) > 1 and looks[1][0] <= begins_s:
            del looks[0]
        hot = [at_s for at_s, is_hot in looks if is_hot]
        is_whole = looks[0][0] <= begins_s and len(looks) >= _LEAST_LOOKS
        return hot[0] if is_whole and looks[-1][1] and 2 * len(hot) >= len(looks) else None

    def _is_back(self, reading: GpuReading, now_s: float) -> bool:
        self._looks.pop(reading.uuid, None)
        if reading.slowed_by_heat:
            self._hot_at[reading.uuid] = now_s
        return now_s - self._hot_at.setdefault(reading.uuid, now_s) >= self._rule.back_after_s
