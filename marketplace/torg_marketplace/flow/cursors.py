"""Cursors: the last id of the page before, or its last name, in hex. Lists go on behind it, so that nothing comes twice or is left out when
others are added meanwhile. What is neither is refused: an empty or first page in its place would end a reader's loop early, or never."""

from __future__ import annotations

import contextlib
import re
from typing import TypeVar

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from torg_marketplace.storage.base import Base
from torg_protocol.errors import Invalid

R = TypeVar("R", bound=Base)


def cursor_of(name: str) -> str:
    return name.encode().hex()


def name_in(cursor: str, pattern: str) -> str:
    """Raises Invalid `cursor_invalid` for what holds no such name."""
    with contextlib.suppress(ValueError):
        if re.fullmatch(pattern, name := bytes.fromhex(cursor).decode("ascii")):
            return name
    raise no_cursor(cursor)


def id_in(cursor: str, kind: str) -> str:
    """Raises Invalid `cursor_invalid` for what is no id of this kind, such as "job"."""
    if re.fullmatch(rf"{kind}_[0-9a-z]{{26}}", cursor) is None:
        raise no_cursor(cursor)
    return cursor


def party_in(cursor: str) -> str:
    """Raises Invalid `cursor_invalid` for what is no party's public key."""
    if re.fullmatch(r"[1-9A-HJ-NP-Za-km-z]{32,44}", cursor) is None:
        raise no_cursor(cursor)
    return cursor


async def row_in(session: AsyncSession, cursor: str, listed: Select[R], key: InstrumentedAttribute[str]) -> R:
    """The row whose key it names, for lists in another order than that of their keys. Raises Invalid `cursor_invalid` also for a row of
    another list."""
    found = listed.where(key == name_in(cursor, r"[\x21-\x7e]{1,160}")).order_by(None)
    row = (await session.scalars(found)).one_or_none()
    if row is None:
        raise no_cursor(cursor)
    return row


def no_cursor(cursor: str) -> Invalid:
    return Invalid(
        "not a cursor of this list",
        code="cursor_invalid",
        field="cursor",
        value=cursor[:100],
        hint="take next_cursor of the page before, as it is",
    )
