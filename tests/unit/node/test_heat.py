"""A GPU that slows itself down by heat: when it rests, and when it comes back. NVML's bindings run on a SIMULATED library; no real card was hot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support import simulated_nvml
from torg_node.hardware.gpus import GpuReading
from torg_node.hardware.heat import HeatRule, HeatWatch

EVERY_S = 10
READ = """
import json
from dataclasses import asdict
from torg_node.hardware.nvidia import Nvidia
print(json.dumps([asdict(one) for one in Nvidia.open().read(("GPU-SIMULATED-0", "GPU-SIMULATED-1"))]))
"""


@dataclass
class Card:
    """Looked at every ten seconds; the ledger's part is played by `rests`."""

    watch: HeatWatch = field(default_factory=lambda: HeatWatch(HeatRule(rest_after_s=60, back_after_s=600)))
    now_s: float = 0
    rests: bool = False
    since_s: float | None = None

    def look(self, slowed: bool | None, *, is_lost: bool = False) -> bool:
        """Whether it rests afterwards."""
        reading = GpuReading("g", is_lost=is_lost, temperature_c=94 if slowed else 60, slowed_by_heat=slowed)
        change = self.watch.look([reading], {"g"} if self.rests else (), self.now_s)
        if "g" in change.rest:
            self.rests, self.since_s = True, change.rest["g"].since_s
            assert change.rest["g"].temperature_c == 94
        if "g" in change.back:
            self.rests = False
        self.now_s += EVERY_S
        return self.rests

    def looks(self, *slowed: bool) -> list[bool]:
        return [self.look(one) for one in slowed]


def test_one_hot_look_or_a_short_spell_is_nothing() -> None:
    card = Card()
    assert not any(card.looks(*[False] * 6, True, *[False] * 6, True, True, True, *[False] * 6))


def test_heat_that_lasts_for_a_window_makes_it_rest_and_says_since_when() -> None:
    card = Card()
    assert card.looks(*[True] * 7) == [False] * 6 + [True], "not before a whole window was seen"
    assert card.since_s == 0


def test_a_card_at_its_limit_that_is_hot_at_every_other_look_rests_too() -> None:
    assert any(Card().looks(*[True, False] * 6))


def test_it_comes_back_when_no_look_has_shown_it_hot_for_long_enough() -> None:
    card = Card(rests=True)
    assert all(card.looks(*[False] * 59, True, *[False] * 59))
    assert not card.look(slowed=False)
    assert not any(card.looks(*[False] * 3, True, True)), "it begins anew, with no look of before against it"


def test_an_agent_that_finds_a_card_resting_looks_for_the_whole_time_itself() -> None:
    card = Card(rests=True, now_s=5_000)
    assert all(card.looks(*[False] * 60))
    assert not card.look(slowed=False)


def test_a_card_that_is_lost_or_does_not_tell_changes_nothing() -> None:
    card = Card()
    for _ in range(20):
        assert not card.look(None)
        assert not card.look(slowed=True, is_lost=True)
    resting = Card(rests=True)
    for _ in range(200):
        assert resting.look(None)


@given(st.lists(st.booleans(), max_size=200))
def test_it_rests_only_after_heat_and_returns_only_after_none(slowed: list[bool]) -> None:
    card = Card()
    for number, one in enumerate(slowed):
        before, after = card.rests, card.look(one)
        lately = slowed[max(0, number - 6) : number + 1]
        if after and not before:
            assert one
            assert 2 * sum(lately) >= len(lately) == 7
        if before and not after:
            assert not any(slowed[number - 60 : number + 1])


def test_nvml_says_heat_and_not_what_a_card_does_when_it_is_idle(tmp_path: Path) -> None:
    (tmp_path / "hot").write_text("1")
    cool, hot = simulated_nvml.run(simulated_nvml.build(tmp_path), READ, gpus=2, hot=tmp_path / "hot")
    assert (cool["slowed_by_heat"], cool["slowed_by_power"], cool["temperature_c"]) == (False, False, 61)
    assert (hot["slowed_by_heat"], hot["slowed_by_power"], hot["temperature_c"]) == (True, False, 94)
