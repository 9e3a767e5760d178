"""What may reach a terminal. Names, reasons, regions and logs come from strangers' machines; a terminal obeys what it is sent.

`say` prints for people: control characters, which could move the cursor, hide text, or set the title and the clipboard, are shown as their code points.
`LogText` is for a job's own output on a terminal: colours and progress bars stay, everything else that a terminal would obey does not. In a pipe
and in files logs are byte for byte what the job wrote.
"""

from __future__ import annotations

import re
import shutil
import sys
from typing import TextIO

import click

# Controls of the two sets but tab and line feed; marks that turn the direction of text around, so that it reads as another one.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_COLOUR_OR_ERASE = re.compile(r"\x1b\[[0-9;:]*m|\x1b\[[0-2]?K")
_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_UNFINISHED = re.compile(r"\x1b(\[[0-?]{0,32}[ -/]{0,8})?\Z")
_KEPT_IN_LOGS = "\r\b"


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    click.echo(plain(text), err=err, nl=nl)


def plain(text: str) -> str:
    return _CONTROLS.sub(_shown, text)


def columns() -> int | None:
    """How wide a line may be; None: nobody looks, or not with a terminal, and lines are whole."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def cell(text: object) -> str:
    """Of a table: on one line."""
    return plain(" ".join(str(text).splitlines()))


class LogText:
    """A stream of text in pieces, each made harmless; a sequence that is cut between two pieces is held back until its rest comes."""

    def __init__(self) -> None:
        self._held = ""
        self._is_coloured = False

    def take(self, piece: str) -> str:
        text, self._held = self._held + piece, ""
        if unfinished := _UNFINISHED.search(text):
            text, self._held = text[: unfinished.start()], unfinished[0]
        shown, at = [], 0
        for sequence in _SEQUENCE.finditer(text):
            shown.append(_harmless(text[at : sequence.start()]))
            if _COLOUR_OR_ERASE.fullmatch(sequence[0]):
                shown.append(sequence[0])
                self._is_coloured = True
            at = sequence.end()
        return "".join(shown) + _harmless(text[at:])

    def rest(self) -> str:
        """What was held back, and an end to all colours."""
        held, self._held = _harmless(self._held), ""
        return held + ("\x1b[0m" if self._is_coloured else "")


def log_text_for(stream: TextIO) -> LogText | None:
    """None: nobody looks, or not with a terminal."""
    return LogText() if stream.isatty() else None


def tolerate_odd_text() -> None:
    """A character that this locale cannot show becomes a question mark, not a failure."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _harmless(text: str) -> str:
    return _CONTROLS.sub(lambda found: found[0] if found[0] in _KEPT_IN_LOGS else _shown(found), text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
