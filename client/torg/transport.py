"""Signed HTTP to one marketplace: requests, retries, errors, event streams. Knows nothing of jobs.

Whatever goes wrong leaves here as an error of the tree in `torg_protocol.errors`: what the marketplace says by its problem
details, what it does not say as Unavailable (`marketplace_unreachable`, `answer_malformed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from solders.keypair import Keypair

from torg_protocol.errors import Invalid, TorgError, Unavailable, from_problem
from torg_protocol.httpsig import RequestParts, sign_request

# httpx brings a command line of its own, with rich and pygments: a tenth of the start-up time of `torg ps`. It does without.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None is how an import is declared absent
import httpx  # noqa: E402 - after the line above

if TYPE_CHECKING:
    from pydantic import BaseModel

ByteProgress = Callable[[int, int], None]  # bytes done, bytes in all
M = TypeVar("M", bound="BaseModel")
T = TypeVar("T")

_RETRIES = 4
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 5.0
_LONGEST_ASKED_S = 30.0  # a server that asks for more patience than this is told of, not waited for
_RECONNECTS = 60  # about five minutes of silence
_TRY_LATER = frozenset({429, 502, 503, 504})
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_TRANSFER_TIMEOUT = httpx.Timeout(60.0, connect=5.0)


class Transport:
    """One marketplace, one key. Safe for many tasks of one event loop; close it with `aclose`.

    Retried (5 tries, about 6 s in all) after a broken connection or 429, 502, 503, 504: GET, PUT, POST with an idempotency key,
    and what the caller says is safe to repeat, because the server applies them once. Anything else is repeated only when it
    provably was not sent. Retry-After is obeyed up to 30 s; what shall wait for longer (a quota of a day) is refused at once.
    """

    def __init__(
        self,
        base_url: str,
        keypair: Keypair | None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        party: str = "marketplace",
    ) -> None:
        """`party`: who is there, for errors; a node that is rented directly is no marketplace."""
        self._base_url, self._party = base_url, party
        self._keypair = keypair
        self._api_key = api_key
        # Loading the certificates of the world takes 20 ms, which a plain http address needs not.
        encrypted = base_url.startswith("https:")
        timeout = httpx.Timeout(timeout_s, connect=5.0)
        self._transfer_client: httpx.AsyncClient | None = None
        try:
            self._http = httpx.AsyncClient(base_url=base_url, timeout=timeout, trust_env=False, verify=encrypted)
        except httpx.InvalidURL as error:
            raise Invalid(
                f"not a marketplace address: {error}",
                code="marketplace_url_invalid",
                field="marketplace",
                value=base_url,
                hint="write it like https://host",
            ) from error

    async def aclose(self) -> None:
        await self._http.aclose()
        if self._transfer_client is not None:
            await self._transfer_client.aclose()

    @property
    def _transfers(self) -> httpx.AsyncClient:
        """For blob URLs, which may be of another server than the marketplace's, and encrypted where that is not."""
        if self._transfer_client is None:
            self._transfer_client = httpx.AsyncClient(timeout=_TRANSFER_TIMEOUT, trust_env=False)
        return self._transfer_client

    async def ask(self, model: type[M], method: str, path: str, **options: Any) -> M:
        """`request`, with the answer as a value of `model`."""
        return await self.read(model.model_validate, method, path, **options)

    async def read(self, parse: Callable[[Any], T], method: str, path: str, **options: Any) -> T:
        """`request`, with the answer as `parse` reads it. What that cannot read is Unavailable `answer_malformed`."""
        answer = await self.request(method, path, **options)
        with self._understood(path):
            return parse(answer)

    async def ask_pages(self, model: type[M], path: str, query: Mapping[str, str] | None = None) -> AsyncIterator[M]:
        """All pages of a list, by its `next_cursor`."""
        cursor: str | None = None
        while True:
            wanted = {"limit": "200", **(query or {})} | ({"cursor": cursor} if cursor else {})
            page = await self.ask(model, "GET", path, query=wanted)
            yield page
            cursor = getattr(page, "next_cursor", None)
            if cursor is None:
                return

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        safe_to_repeat: bool = False,
    ) -> Any:
        """The parsed JSON answer. Raises the TorgError that the server's problem details describe, or Unavailable."""
        content = b"" if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if body is not None else {}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        may_repeat = method in {"GET", "PUT"} or idempotency_key is not None or safe_to_repeat
        response = await self._send(method, path, query, headers, content, may_repeat=may_repeat)
        return _parse(response)

    async def text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        response = await self._send("GET", path, query, {}, b"", may_repeat=True)
        if response.status_code != 200:
            _parse(response)
        return response.text

    async def content(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        response = await self._send("GET", path, query, {}, b"", may_repeat=True)
        if response.status_code != 200:
            _parse(response)
        return response.content

    async def events(
        self, path: str, *, last_event_id: int = 0, on_gap: Callable[[str], None] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Server-sent events until the server ends the stream; reconnects and resumes after the last one seen.

        `on_gap` is told, once per gap, that the stream is broken and why.
        """
        failures = 0
        while True:
            try:
                async for event in self._stream(path, last_event_id):
                    failures, last_event_id = 0, event["id"]
                    yield event
                return
            except (httpx.TransportError, Unavailable) as error:
                failures += 1
                if failures > _RECONNECTS:
                    raise self._unreachable(error) from error
                if failures == 1 and on_gap is not None:
                    on_gap(str(error) or type(error).__name__)
                asked_s = getattr(error, "data", {}).get("retry_after_s", 0.0)
                await asyncio.sleep(max(asked_s, min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**failures)))

    async def upload(
        self, url: str, source: Path, offset: int, size_bytes: int, on_sent: Callable[[int], None] | None = None
    ) -> None:
        """PUTs a part of a file to a signed URL, streaming; one try. Safe to repeat. `on_sent` is told of each further count of bytes."""

        async def body() -> AsyncIterator[bytes]:
            from torg_host.uploads import part_of  # what archives need loads slowly, and most commands upload nothing

            async for data in part_of(source, offset, size_bytes):
                yield data
                if on_sent:
                    on_sent(len(data))

        await self._put(url, body(), size_bytes)

    async def upload_bytes(self, url: str, data: bytes) -> None:
        """The same for bytes in memory."""
        await self._put(url, data, len(data))

    async def download(self, url: str, file: IO[bytes], size_bytes: int, on_bytes: ByteProgress | None = None) -> None:
        """GETs a signed URL into an open file, from where the file ends; one try.

        Resumes when the server can, else begins anew. Never writes more than `size_bytes`, whatever is sent. Raises Unavailable
        when the connection breaks: what arrived until then is in the file. The caller checks the digest.
        """
        have = file.seek(0, 2)
        headers = {"accept-encoding": "identity"} | ({"range": f"bytes={have}-"} if have else {})
        try:
            async with self._transfers.stream("GET", url, headers=headers) as response:
                if response.status_code not in {200, 206}:
                    await response.aread()
                    _parse(response)
                if response.status_code == 200 or not _continues_at(response, have):
                    have = file.seek(0)
                    file.truncate()
                    if response.status_code == 206:
                        raise Unavailable("the server sent another part than was asked for", code="range_wrong")
                async for piece in response.aiter_raw():  # unbuffered: nothing that arrived is lost when it breaks
                    file.write(piece[: max(0, size_bytes - have)])
                    have += len(piece)
                    if have > size_bytes:
                        return
                    if on_bytes:
                        on_bytes(have, size_bytes)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _put(self, url: str, content: bytes | AsyncIterator[bytes], size_bytes: int) -> None:
        try:
            response = await self._transfers.put(url, content=content, headers={"content-length": str(size_bytes)})
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        _parse(response)

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
        content: bytes,
        *,
        may_repeat: bool,
    ) -> httpx.Response:
        for attempt in range(_RETRIES + 1):
            wait_s = _FIRST_BACKOFF_S * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
            try:
                response = await self._http.send(self._signed(method, path, query, headers, content))
                asked_s = _retry_after_s(response)
                is_worth_it = response.status_code in _TRY_LATER and asked_s <= _LONGEST_ASKED_S
                if not (may_repeat and is_worth_it) or attempt == _RETRIES:
                    return response
                wait_s = max(wait_s, asked_s)
            except httpx.RequestError as error:
                if attempt == _RETRIES or not (may_repeat or isinstance(error, _NOT_SENT)):
                    raise self._unreachable(error) from error
            await asyncio.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _stream(self, path: str, last_event_id: int) -> AsyncIterator[dict[str, Any]]:
        request = self._signed(
            "GET", path, None, {"accept": "text/event-stream", "last-event-id": str(last_event_id)}, b""
        )
        request.extensions["timeout"] = httpx.Timeout(5.0, read=45.0).as_dict()
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != 200:
                await response.aread()
                asked_s = _retry_after_s(response)
                if response.status_code in _TRY_LATER and asked_s <= _LONGEST_ASKED_S:
                    raise Unavailable(f"the marketplace answers {response.status_code}", retry_after_s=asked_s)
                _parse(response)
            async for event in _parse_events(response):
                if event.get("kind") == "problem":  # why the stream ends before its job
                    raise from_problem(event)
                yield event
        finally:
            await response.aclose()

    def _signed(
        self, method: str, path: str, query: Mapping[str, str] | None, headers: Mapping[str, str], content: bytes
    ) -> httpx.Request:
        request = self._http.build_request(method, path, params=query, headers=dict(headers), content=content or None)
        if self._api_key is not None:
            request.headers["authorization"] = f"Bearer {self._api_key}"
        elif self._keypair is not None:
            raw_query = request.url.query.decode()
            parts = RequestParts(
                method=method,
                authority=request.headers["host"],
                path=request.url.raw_path.decode().partition("?")[0],
                query=f"?{raw_query}",
                headers=headers,
                body=content,
            )
            signed = sign_request(self._keypair, parts, created_s=int(time.time()), nonce=secrets.token_urlsafe(18))
            request.headers.update(signed)
        return request

    @contextlib.contextmanager
    def _understood(self, path: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, LookupError) as error:
            raise Unavailable(
                f"the answer to {path} is not one that this torg understands",
                code="answer_malformed",
                field="marketplace",
                value=self._base_url,
                hint="is this a Torg marketplace? if so, one of the two is older: upgrade it",
            ) from error

    def _unreachable(self, error: Exception) -> Unavailable:
        option = "--marketplace or TORG_MARKETPLACE" if self._party == "marketplace" else f"--{self._party}"
        return Unavailable(
            f"cannot reach the {self._party}: {str(error) or type(error).__name__}",
            code=f"{self._party}_unreachable",
            field=self._party,
            value=self._base_url,
            hint=f"is it running? set another one with {option}",
        )


def _parse(response: httpx.Response) -> Any:
    """The JSON of a success; else raises what the problem details say. Never anything but a TorgError."""
    try:
        answer = response.json() if response.content else None
    except ValueError:
        answer = response
    if response.status_code < 300 and answer is not response:
        return answer
    if response.status_code >= 400 and isinstance(answer, dict):
        with contextlib.suppress(TypeError, ValueError):
            error: TorgError = from_problem({"status": response.status_code, **answer})
            raise error
    raise _not_ours(response)


def _not_ours(response: httpx.Response) -> TorgError:
    """An answer that no marketplace gives: a proxy's, or another service's."""
    error_class = Unavailable if response.status_code >= 500 or response.status_code == 429 else Invalid
    return error_class(
        f"the server answered {response.status_code} {response.reason_phrase}, and not as a Torg marketplace does",
        code="not_a_marketplace",
        field="marketplace",
        value=str(response.request.url.copy_with(path="/", query=None)),
        hint="check the address (--marketplace, TORG_MARKETPLACE)",
    )


def _retry_after_s(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


def _continues_at(response: httpx.Response, offset: int) -> bool:
    return bool(response.headers.get("content-range", "").startswith(f"bytes {offset}-"))


async def _parse_events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The subset of the SSE format that the server sends: id and one data line of JSON per event, comments as heartbeats."""
    data: str | None = None
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
        elif not line and data is not None:
            yield json.loads(data)
            data = None
