"""What strangers' machines say reaches a terminal as text, and lists fit into it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torg.cli
from torg.cli.present import Coin, narrow_table, table
from torg.cli.ps import Line, listing
from torg.cli.terminal import LogText, cell, plain

ALLOWED_IN_LOGS = re.compile(r"\x1b\[[0-9;:]*m|\x1b\[[0-2]?K|[\t\n\r\b]")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
PIECES = st.lists(st.text(alphabet="\x1b[]0;1mKJHA \x9b\x07\r\n\tab\u202e", max_size=12), max_size=6)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain ünïcödé 😀\ttab\nline", "plain ünïcödé 😀\ttab\nline"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("over\rwritten", "over\\x0dwritten"),
        ("txt.\u202egnp", "txt.\\u202egnp"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(said: str, shown: str) -> None:
    assert plain(said) == shown


def test_a_cell_of_a_table_stays_on_its_line() -> None:
    assert cell("first\nsecond\r\nthird") == "first second third"
    assert table(("a", "b"), [("x\ny", "\x1b[31m")]).splitlines() == ["a    b", "x y  \\x1b[31m"]


def test_logs_keep_colours_and_bars_and_nothing_else_that_moves_or_sets() -> None:
    log = LogText()
    shown = log.take("\x1b[31mred\x1b[0m 50%\r100%\x1b[K\x1b[2J\x1b[1A\x1b]0;title\x07")
    assert shown == "\x1b[31mred\x1b[0m 50%\r100%\x1b[K\\x1b]0;title\\x07"
    assert log.rest() == "\x1b[0m"


@given(PIECES)
def test_wherever_a_log_is_cut_it_reads_the_same_and_is_harmless(pieces: list[str]) -> None:
    whole, cut = LogText(), LogText()
    shown = whole.take("".join(pieces)) + whole.rest()
    assert "".join(cut.take(piece) for piece in pieces) + cut.rest() == shown
    assert CONTROL.search(ALLOWED_IN_LOGS.sub("", shown)) is None


def test_no_command_prints_past_it() -> None:
    """`click.echo` is for JSON and for what `say` made plain."""
    found = [
        f"{file.name}: {line.strip()}"
        for file in Path(torg.cli.__file__).parent.glob("*.py")
        for line in file.read_text().splitlines()
        if "click.echo(" in line and not re.search(r"json|plain\(|\.job_id\}|echo\(shown", line)
    ]
    assert found == []


def test_a_table_that_is_too_wide_loses_columns_in_order_and_then_cuts_one() -> None:
    headings, rows = (
        ("node", "class", "region", "price"),
        [("abcdefgh", "NVIDIA H100 80GB HBM3", "eu-central-1", "2.5")],
    )
    whole = table(headings, rows)
    assert narrow_table(headings, rows, None, ("region",), "class") == (whole, ())
    assert narrow_table(headings, rows, len(whole), ("region",), "class") == (whole, ())
    text, left_out = narrow_table(headings, rows, 40, ("region",), "class")
    assert (left_out, max(map(len, text.splitlines()))) == (("region",), 38)
    text, left_out = narrow_table(headings, rows, 30, ("region",), "class")
    assert text.splitlines() == ["node      class          price", "abcdefgh  NVIDIA H100 …  2.5"]


def test_the_list_of_jobs_is_readable_in_80_columns() -> None:
    jobs = [
        Line(
            "job_01m8cj6gn9en0mtmjsxgkx1c6m",
            "a-name-that-somebody-chose-to-be-long",
            "queued",
            0,
            3,
            None,
            12_345_678,
            note,
        )
        for note in ("waits for a node with 8 GPUs of the class that nobody offers here at this price", "")
    ]
    money = Coin(6, "tUSD")
    lines = listing(jobs, money, 90_000_000, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines] == [
        "job",
        "job_01m8cj6gn9en0mtmjsxgkx1c6m",
        "waits",
        "job_01m8cj6gn9en0mtmjsxgkx1c6m",
    ]
    assert listing(jobs, money, 90_000_000, None).splitlines()[1].endswith("at this price")
