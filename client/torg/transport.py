"""Signed HTTP to one marketplace: requests, retries, errors, event streams. Knows nothing of jobs."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
from solders.keypair import Keypair

from torg_protocol.errors import TorgError, Unavailable, from_problem
from torg_protocol.httpsig import RequestParts, sign_request

ByteProgress = Callable[[int, int], None]  # bytes done, bytes in all

_RETRIES = 4
_FIRST_BACKOFF_S = 0.2


class Transport:
    """One marketplace, one key. Safe for many tasks of one event loop; close it with `aclose`.

    GET, PUT and POST with an idempotency key are retried on connection errors and 503 (5 tries, about 6 s in all), because
    the server applies them once. Everything else is tried once.
    """

    def __init__(self, base_url: str, keypair: Keypair | None, *, timeout_s: float = 30.0) -> None:
        self._base_url = base_url
        self._keypair = keypair
        self._http = httpx.AsyncClient(
            base_url=base_url, timeout=httpx.Timeout(timeout_s, connect=5.0), trust_env=False
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """The parsed JSON answer. Raises the TorgError that the server's problem details describe, or Unavailable."""
        content = b"" if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if body is not None else {}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        may_repeat = method in {"GET", "PUT"} or idempotency_key is not None
        for attempt in range(_RETRIES + 1):
            try:
                response = await self._http.send(self._signed(method, path, query, headers, content))
                if response.status_code == 503 and may_repeat and attempt < _RETRIES:
                    raise httpx.ConnectError("server asks to try later")
                return _parse(response)
            except httpx.TransportError as error:
                if not may_repeat or attempt == _RETRIES:
                    raise self._unreachable(error) from error
                await asyncio.sleep(_FIRST_BACKOFF_S * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    async def events(self, path: str, *, last_event_id: int = 0) -> AsyncIterator[dict[str, Any]]:
        """Server-sent events until the server ends the stream; reconnects and resumes after the last one seen."""
        failures = 0
        while True:
            headers = {"accept": "text/event-stream", "last-event-id": str(last_event_id)}
            try:
                request = self._signed("GET", path, None, headers, b"")
                request.extensions["timeout"] = httpx.Timeout(5.0, read=45.0).as_dict()
                response = await self._http.send(request, stream=True)
                try:
                    if response.status_code != 200:
                        await response.aread()
                        _parse(response)
                    async for event in _parse_events(response):
                        failures, last_event_id = 0, event["id"]
                        yield event
                    return
                finally:
                    await response.aclose()
            except httpx.TransportError as error:
                failures += 1
                if failures > 60:
                    raise self._unreachable(error) from error
                await asyncio.sleep(min(5.0, _FIRST_BACKOFF_S * 2**failures))

    async def text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        response = await self._http.send(self._signed("GET", path, query, {}, b""))
        if response.status_code != 200:
            _parse(response)
        return response.text

    async def upload(self, url: str, source: Path, on_bytes: ByteProgress | None = None) -> None:
        """PUTs a file to a signed URL, streaming."""
        size = source.stat().st_size

        async def body() -> AsyncIterator[bytes]:
            sent = 0
            with source.open("rb") as file:
                while piece := file.read(1 << 20):
                    yield piece
                    sent += len(piece)
                    if on_bytes:
                        on_bytes(sent, size)

        response = await self._http.put(url, content=body(), headers={"content-length": str(size)}, timeout=300.0)
        _parse(response)

    async def download(self, url: str, destination: Path, on_bytes: ByteProgress | None = None) -> None:
        """GETs a signed URL into a file, streaming. The caller checks the digest."""
        async with self._http.stream("GET", url, timeout=300.0) as response:
            if response.status_code != 200:
                await response.aread()
                _parse(response)
            total, done = int(response.headers.get("content-length", 0)), 0
            with destination.open("wb") as file:
                async for piece in response.aiter_bytes(1 << 20):
                    file.write(piece)
                    done += len(piece)
                    if on_bytes:
                        on_bytes(done, total)

    def _signed(
        self, method: str, path: str, query: Mapping[str, str] | None, headers: Mapping[str, str], content: bytes
    ) -> httpx.Request:
        request = self._http.build_request(method, path, params=query, headers=dict(headers), content=content or None)
        if self._keypair is not None:
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

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"cannot reach the marketplace: {str(error) or type(error).__name__}",
            code="marketplace_unreachable",
            field="marketplace",
            value=self._base_url,
            hint="is it running? set another one with --marketplace or TORG_MARKETPLACE",
        )


def _parse(response: httpx.Response) -> Any:
    if response.status_code < 400:
        return response.json() if response.content else None
    try:
        problem = response.json()
    except ValueError:
        problem = {
            "title": response.text[:200] or response.reason_phrase,
            "status": response.status_code,
            "code": "http_error",
        }
    error: TorgError = from_problem(problem)
    raise error


async def _parse_events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The subset of the SSE format that the server sends: id and one data line of JSON per event, comments as heartbeats."""
    data: str | None = None
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
        elif not line and data is not None:
            yield json.loads(data)
            data = None
