"""For how long a node that declined is left out."""

from __future__ import annotations

import re
from pathlib import Path

import torg_node
from torg_marketplace.rules.declines import FIRST_PAUSE_MS, LASTING_CODES, LONGEST_PAUSE_MS, NO_ANSWER, pause_ms


def test_what_passes_is_asked_about_again_later_and_later() -> None:
    for code in ("quiet_hours", "no_room", "paused", "disk_full", "exposure_limit", "chain_unavailable", NO_ANSWER, ""):
        assert [pause_ms(code, times) for times in range(6)] == [
            60_000,
            120_000,
            240_000,
            480_000,
            LONGEST_PAUSE_MS,
            LONGEST_PAUSE_MS,
        ]
    assert pause_ms("no_room", 10_000) == LONGEST_PAUSE_MS


def test_what_a_node_says_about_the_job_itself_is_for_good() -> None:
    assert pause_ms("kind_denied", 0) is None
    assert pause_ms("vault_wrong_mint", 5) is None


def test_a_word_that_is_not_known_here_counts_as_passing() -> None:
    assert pause_ms("the_moon_is_full", 0) == FIRST_PAUSE_MS


def test_every_lasting_code_is_one_that_nodes_say() -> None:
    source = "".join(path.read_text() for path in Path(torg_node.__file__).parent.rglob("*.py"))
    said = set(re.findall(r'"([a-z_]+)"', source))

    assert said >= LASTING_CODES
