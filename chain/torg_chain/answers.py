"""What an RPC node answers when it does not answer: HTTP errors, JSON-RPC errors, and what is no JSON at all.

Looked at before solders parses it, because solders knows only some error codes: others raise AttributeError, and a known one without its
data is a panic of its native code, which no `except Exception` catches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from torg_chain.errors import BEHIND_HINT, ChainBehind, ChainUnavailable, Retry

# What the request itself is to blame for: solders parses these, and the caller knows what they mean for it.
_ABOUT_THE_REQUEST = frozenset({-32700, -32600, -32601, -32602, -32002, -32003})
_BEHIND = -32016  # it was asked for what it knows at a slot that it has not reached
_NO_USE = frozenset({401, 403, 404, 405, 410})
_LONGEST_WAIT_S = 60.0


class Answer(Protocol):
    """The part of an httpx response that counts here."""

    status_code: int

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> bytes: ...

    async def aread(self) -> bytes: ...


async def check_answer(response: Answer) -> None:
    """A response hook. Raises ChainUnavailable with its retry class; what is a result, or about the request, passes."""
    content = await response.aread()
    if response.status_code >= 400:
        raise _http_problem(response.status_code, response.headers)
    # Results can be megabytes; an error says so at its beginning.
    if content.lstrip()[:1] == b"{" and b'"error"' not in content[:512] and b'"result"' in content[:512]:
        return
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not ({"result", "error"} & set(answer)):
        raise ChainUnavailable(
            "the RPC node answers, and not in JSON-RPC", code="rpc_answer_malformed", retry=Retry.SOON
        )
    if (error := answer.get("error")) is not None:
        _raise_problem(error if isinstance(error, dict) else {"message": str(error)}, response.headers)


def _http_problem(status: int, headers: Mapping[str, str]) -> ChainUnavailable:
    if status == 429:
        return _too_many(headers)
    retry = Retry.NEVER if status in _NO_USE else Retry.SOON
    hint = "it wants another address or a key: ask another RPC node" if retry is Retry.NEVER else None
    return ChainUnavailable(f"the RPC node answers HTTP {status}", code="rpc_http_error", retry=retry, hint=hint)


def _raise_problem(error: dict[str, Any], headers: Mapping[str, str]) -> None:
    code, message = error.get("code"), str(error.get("message", ""))[:200]
    if code in _ABOUT_THE_REQUEST:
        return
    if code in {429, -32429} or "too many requests" in message.lower() or "rate limit" in message.lower():
        raise _too_many(headers)
    if code == _BEHIND:
        raise ChainBehind("the RPC node is behind: it has not reached yet what was seen before", hint=BEHIND_HINT)
    raise ChainUnavailable(f"the RPC node cannot answer now: {message} ({code})", code="rpc_error", retry=Retry.SOON)


def _too_many(headers: Mapping[str, str]) -> ChainUnavailable:
    asked = headers.get("retry-after", "")
    wait_s = min(float(asked), _LONGEST_WAIT_S) if asked.isdecimal() else None
    return ChainUnavailable(
        "the RPC node says: too many requests",
        code="rpc_rate_limited",
        retry=Retry.LATER,
        retry_after_s=wait_s,
        hint="public RPC nodes allow few requests; name one of your own",
    )
