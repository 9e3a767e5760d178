"""The strict client that fetches a job's inputs: named hosts only, never a private address, no more bytes than allowed, digests checked.

It connects through an `EgressProxy` of its own on this host's loopback, so the rules are those of a job's way out: names are compared
before they are resolved, and a connection goes to the very address that was checked, also after a redirect.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from torg_host.addresses import AddressRange
from torg_node.egress.flow_limit import FlowLimit
from torg_node.egress.proxy import EgressProxy
from torg_node.egress.rules import EgressRules

log = logging.getLogger(__name__)
_TRIES, _FIRST_PAUSE_S = 5, 0.5
_MAX_ANSWER_BYTES = 32 << 20  # of a listing
_MAX_REDIRECTS = 5
_REFUSED = "this host is not among those that the input names, or it is not on the public internet"
T = TypeVar("T")


class InputInvalid(Exception):
    """This input can never be fetched as it is written: not there, not allowed, too large, or of another digest."""


class NotPublic(InputInvalid):
    """Its host is not one that may be asked."""


class InputUnavailable(Exception):
    """Not now, not from here; another node, or a later try, may succeed."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: httpx.Headers
    body: bytes


@dataclass
class Allowance:
    """Bytes that may still be written."""

    left_bytes: int

    def take(self, count: int) -> None:
        """Raises InputInvalid."""
        self.left_bytes -= count
        if self.left_bytes < 0:
            raise InputInvalid("the inputs do not fit into resources.disk")


@dataclass
class InputClient:
    """`allow`: `name:port`; None: every public host. Use it as an async context manager."""

    allow: Sequence[str] | None
    allowance: Allowance
    opened: tuple[AddressRange, ...] = ()
    bytes_per_s: int = 0
    proxy_url: str = ""
    _http: httpx.AsyncClient = field(init=False)
    _server: asyncio.Server = field(init=False)
    _proxy: EgressProxy = field(init=False)

    async def __aenter__(self) -> Self:
        rules = EgressRules(None if self.allow is None else tuple(self.allow), self.opened)
        self._proxy = EgressProxy(rules, FlowLimit(self.bytes_per_s, time.monotonic))
        listener = socket.create_server(("127.0.0.1", 0))
        self.proxy_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._server = await self._proxy.serve(listener)
        self._http = httpx.AsyncClient(
            proxy=self.proxy_url,
            trust_env=False,
            follow_redirects=True,
            max_redirects=_MAX_REDIRECTS,
            timeout=httpx.Timeout(60.0, connect=30.0),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()
        self._server.close()
        await self._proxy.close()

    async def json(self, url: str, headers: dict[str, str] | None = None) -> tuple[Any, httpx.Headers]:
        """Raises InputInvalid or InputUnavailable."""

        async def once() -> tuple[Any, httpx.Headers]:
            body = bytearray()
            async with self._opened(url, headers) as response:
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > _MAX_ANSWER_BYTES:
                        raise InputInvalid(f"{_shown(url)}: the answer is too large")
            try:
                return json.loads(body), response.headers
            except ValueError as error:
                raise InputInvalid(f"{_shown(url)}: the answer is not JSON") from error

        return await _persistently(url, once)

    async def ask(self, url: str, headers: dict[str, str]) -> Answer:
        """One try, for protocols in which other statuses than 200 say something. Raises NotPublic, InputInvalid, httpx.HTTPError."""
        body = bytearray()
        async with self._sent(url, headers) as response:
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > _MAX_ANSWER_BYTES:
                    raise InputInvalid(f"{_shown(url)}: the answer is too large")
        return Answer(response.status_code, response.headers, bytes(body))

    async def download(
        self,
        url: str,
        path: Path,
        *,
        digest: str | None,
        size_bytes: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """To `path`. A download that was cut off begins anew. An `authorization` in `headers` goes to the address's own origin, not where
        it redirects to. Raises InputInvalid or InputUnavailable."""
        path.parent.mkdir(parents=True, exist_ok=True)
        before = self.allowance.left_bytes

        async def once() -> None:
            self.allowance.left_bytes = before
            hasher = hashlib.sha256()
            async with self._opened(url, headers) as response:
                with path.open("wb") as file:
                    async for piece in response.aiter_raw(1 << 20):
                        self.allowance.take(len(piece))
                        hasher.update(piece)
                        await asyncio.to_thread(file.write, piece)
            check_bytes(url, f"sha256:{hasher.hexdigest()}", digest, path.stat().st_size, size_bytes)

        await _persistently(url, once)

    @asynccontextmanager
    async def _opened(self, url: str, headers: dict[str, str] | None = None) -> AsyncIterator[httpx.Response]:
        async with self._sent(url, headers) as answer:
            _check(url, answer)
            yield answer

    @asynccontextmanager
    async def _sent(self, url: str, headers: dict[str, str] | None = None) -> AsyncIterator[httpx.Response]:
        asked = {"accept-encoding": "identity", **(headers or {})}
        try:
            async with self._http.stream("GET", url, headers=asked) as answer:
                if answer.headers.get("x-torg-egress") == "refused":
                    if answer.status_code != httpx.codes.FORBIDDEN:  # nobody there: as on the way through a CONNECT
                        raise httpx.ProxyError(f"{answer.status_code} {answer.reason_phrase}")
                    raise NotPublic(f"{_shown(url)}: {_REFUSED}")
                yield answer
        except httpx.ProxyError as error:
            if not str(error).startswith("403"):
                raise
            raise NotPublic(f"{_shown(url)}: {_REFUSED}") from error
        except httpx.TooManyRedirects as error:
            raise InputInvalid(f"{_shown(url)}: too many redirects") from error


async def _persistently(url: str, once: Callable[[], Awaitable[T]]) -> T:
    """What fails for now is tried again, a few times."""
    why = ""
    for number in range(_TRIES):
        if number:
            await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (number - 1))
        try:
            return await once()
        except (InputUnavailable, httpx.TransportError) as error:
            why = str(error) or type(error).__name__
            log.info("%s: %s", _shown(url), why)
    raise InputUnavailable(f"{_shown(url)} cannot be fetched: {why}")


def check_bytes(what: str, digest: str, expected: str | None, size_bytes: int, expected_bytes: int | None) -> None:
    """Raises InputInvalid."""
    if expected_bytes is not None and size_bytes != expected_bytes:
        raise InputInvalid(f"{_shown(what)}: {size_bytes} bytes came, not {expected_bytes}")
    if expected is not None and digest != expected:
        raise InputInvalid(f"{_shown(what)}: its digest is {digest}, not {expected}")


def _check(url: str, answer: httpx.Response) -> None:
    if answer.status_code in {408, 425, 429} or answer.status_code >= 500:
        raise InputUnavailable(f"{_shown(url)}: HTTP status {answer.status_code}")
    if answer.status_code in {401, 403}:
        raise InputInvalid(
            f"{_shown(url)}: HTTP status {answer.status_code}: not open to everybody, or not for these credentials"
        )
    if answer.status_code != 200:
        raise InputInvalid(f"{_shown(url)}: HTTP status {answer.status_code}")


def _shown(url: str) -> str:
    """Without its query, which may hold somebody's signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}" if parts.scheme else url
