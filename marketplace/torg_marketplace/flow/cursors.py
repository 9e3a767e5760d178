"""Cursors: the last name of the page before, in hex; its last id; or how many came before. What is none of these is refused: an empty or
first page in its place would end a reader's loop early, or never."""

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
    raise _none(cursor)


def id_in(cursor: str, kind: str) -> str:
    """Raises Invalid `cursor_invalid` for what is no id of this kind, such as "job"."""
    if re.fullmatch(rf"{kind}_[0-9a-z]{{26}}", cursor) is None:
        raise _none(cursor)
    return cursor


def count_in(cursor: str | None) -> int:
    """None: the first page. Raises Invalid `cursor_invalid`."""
    if cursor is None:
        return 0
    if re.fullmatch(r"[0-9]{1,12}", cursor) is None:
        raise _none(cursor)
    return int(cursor)


def _none(cursor: str) -> Invalid:
    return Invalid(
        "not a cursor of this list",
        code="cursor_invalid",
        field="cursor",
        value=cursor,
        hint="take next_cursor of the page before, as it is",
    )
