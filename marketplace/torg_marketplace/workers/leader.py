"""One of several processes does the work, the others stand by: whoever holds a PostgreSQL advisory lock on a connection of its own.

The lock goes with the connection: a process that is killed loses it at once, and who stands by looks twice a second. A leader whose connection
broke stops working before it tries again; one that is stopped (frozen, or its machine paused) loses the lock after five seconds of silence. Two that overlap for a moment could do no harm: every grant and every capture is decided by the database
once more, under its own locks. The leader saves work; it keeps nothing safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
from sqlalchemy import make_url

from torg_marketplace.storage.silence import LOST, connection_class

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_ANSWER_WITHIN_S = 5.0
_SILENT_FOR_S = (
    5.0  # a process that was stopped keeps its connection: the server ends what has not asked anything for so long
)
_SPACE = int.from_bytes(b"torg", "big")


async def lead(database_url: str, role: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs `work` whenever this process leads in `role`. Until cancelled, or until `work` fails."""
    dsn = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    number = int.from_bytes(role.encode()[:3].ljust(3), "big")
    while True:
        try:
            connection = await asyncpg.connect(
                dsn,
                timeout=_ANSWER_WITHIN_S,
                connection_class=connection_class(_ANSWER_WITHIN_S),
                server_settings={
                    "application_name": f"torg {role} {os.getpid()}",
                    "idle_session_timeout": str(round(_SILENT_FOR_S * 1000)),
                },
            )
        except LOST as error:
            log.warning("%s: no connection to stand by on: %s", role, error or type(error).__name__)
            await asyncio.sleep(_LOOK_EVERY_S)
            continue
        try:
            # Asked for, not waited for: a lock that is waited for holds a transaction open for as long.
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", _SPACE, number):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_EVERY_S)
            log.info("%s: this process leads", role)
            await _while_held(connection, work)
        except LOST as error:
            log.warning("%s: this process leads no more: %s", role, error or type(error).__name__)
        finally:
            with contextlib.suppress(Exception):
                await connection.close(timeout=1)


async def _while_held(connection: asyncpg.Connection, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    working = asyncio.create_task(work())
    try:
        while not working.done():
            await asyncio.wait({working}, timeout=_LOOK_EVERY_S)
            await connection.fetchval("SELECT 1", timeout=_ANSWER_WITHIN_S)
        await working
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
