"""The one connection to the marketplace: dialled by us, signed, renewed with back-off and jitter for as long as this node lives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable

from pydantic import BaseModel, ValidationError
from solders.keypair import Keypair
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from torg_protocol.httpsig import RequestParts, sign_request
from torg_protocol.messages import CHANNEL_PATH, TO_NODE, Hello, Refused, ToNode, Welcome
from torg_protocol.versions import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, SPOKEN, UNKNOWN, is_spoken_in, unknown_to

log = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 20.0
_WELCOME_WITHIN_S = 15.0
_MAX_MESSAGE_BYTES = 8 << 20


class Link:
    """`on_welcome` and `on_message` are called in order, one at a time. What they cannot write down (sqlite3.OperationalError: a full disk) was
    not heard: the connection is renewed, and with it everything that matters is said again. `send` is best effort: what must arrive is journalled."""

    def __init__(
        self,
        base_url: str,
        keypair: Keypair,
        make_hello: Callable[[int], Hello],
        on_welcome: Callable[[Welcome], Awaitable[None]],
        on_message: Callable[[ToNode], Awaitable[None]],
        on_refused: Callable[[Refused], Awaitable[None]],
    ) -> None:
        self._url = base_url
        self._keypair = keypair
        self._make_hello = make_hello
        self._on_welcome, self._on_message, self._on_refused = on_welcome, on_message, on_refused
        self._connection: ClientConnection | None = None
        self._version = PROTOCOL_VERSION  # what the next hello says

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def send(self, message: BaseModel) -> bool:
        if self._connection is None:
            return False
        if not is_spoken_in(getattr(message, "type", ""), self._version):
            return True
        try:
            await self._connection.send(message.model_dump_json(exclude=unknown_to(self._version)))
        except ConnectionClosed:
            return False
        return True

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                if await self._once():
                    pause_s = _FIRST_PAUSE_S
                    self._version = PROTOCOL_VERSION  # it may have been updated meanwhile
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
                log.warning("no connection to the marketplace: %s", str(error) or type(error).__name__)
            except sqlite3.OperationalError as error:
                log.warning("what the marketplace says cannot be written down: %s", error)
            finally:
                self._connection = None
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))  # noqa: S311 - jitter
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _once(self) -> bool:
        """One connection from hello to its end. True when it was welcomed."""
        address = self._url.replace("http", "ws", 1) + CHANNEL_PATH
        async with connect(
            address,
            additional_headers=self._signature(),
            max_size=_MAX_MESSAGE_BYTES,
            ping_interval=10,
            ping_timeout=20,
            proxy=None,
        ) as connection:
            await connection.send(self._make_hello(self._version).model_dump_json(exclude=unknown_to(self._version)))
            async with asyncio.timeout(_WELCOME_WITHIN_S):
                first = _parse(await connection.recv())
            if not isinstance(first, Welcome):
                if isinstance(first, Refused) and not self._can_step_down(first):
                    await self._on_refused(first)
                return False
            self._version = first.protocol_version
            self._connection = connection
            await self._on_welcome(first)
            with contextlib.suppress(ConnectionClosed):
                async for raw in connection:
                    message = _parse(raw)
                    if message is not None:
                        await self._on_message(message)
            return True

    def _can_step_down(self, refused: Refused) -> bool:
        """To a version that both speak. A marketplace that is a release behind does not say which it knows."""
        if refused.problem.get("code") != UNKNOWN:
            return False
        said = refused.problem.get("spoken", [OLDEST_PROTOCOL_VERSION])
        common = [version for version in SPOKEN if version in said and version < self._version]
        if common:
            self._version = max(common)
            log.info("the marketplace is older than this node: going on with version %d of the protocol", self._version)
        return bool(common)

    def _signature(self) -> dict[str, str]:
        authority = self._url.partition("://")[2].partition("/")[0]
        parts = RequestParts("GET", authority, CHANNEL_PATH, "?", {}, b"")
        return sign_request(self._keypair, parts, created_s=int(time.time()), nonce=secrets.token_urlsafe(18))


def _parse(raw: str | bytes) -> ToNode | None:
    try:
        return TO_NODE.validate_json(raw)
    except ValidationError as error:
        log.warning("a message from the marketplace cannot be understood: %s", error.errors(include_url=False)[:1])
        return None
