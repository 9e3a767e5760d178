"""Cursors of lists that are sorted by name: the last name of the page before, in hex."""

from __future__ import annotations

import contextlib
import re

from torg_protocol.errors import Invalid


def cursor_of(name: str) -> str:
    return name.encode().hex()


def name_in(cursor: str, pattern: str) -> str:
    """Raises Invalid `cursor_invalid` for what holds no such name."""
    with contextlib.suppress(ValueError):
        if re.fullmatch(pattern, name := bytes.fromhex(cursor).decode("ascii")):
            return name
    raise Invalid(
        "not a cursor of this list", code="cursor_invalid", field="cursor", value=cursor, hint="take next_cursor"
    )
