"""What all reads share: `limit` and `cursor` of lists, entity tags, waiting for a change."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Header, Query
from pydantic import BaseModel
from starlette.responses import Response

from torg_marketplace.flow.views import MAX_PAGE

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="entries of a page")]
Cursor = Annotated[
    str | None,
    # Each list looks at its own cursors (`flow/cursors.py`), so that one that is none is `cursor_invalid` whatever it looks like.
    Query(
        description="`next_cursor` of the page before; absent: the first page",
        json_schema_extra={"pattern": "^[A-Za-z0-9_]{1,320}$"},
    ),
]
IfNoneMatch = Annotated[
    str | None, Header(description="an ETag that you have: 304 without a body as long as nothing has changed")
]
Wait = Annotated[
    int,
    Query(
        ge=0,
        le=60,
        description="seconds to wait: with If-None-Match until the job differs from that, else until it is closed",
    ),
]


def answer(model: BaseModel, if_none_match: str | None) -> Response:
    """The model as JSON with a strong ETag, or 304 when the caller has just this."""
    body = model.model_dump_json().encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"etag": etag, "cache-control": "private, no-cache"}
    if if_none_match is not None and _names(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _names(if_none_match: str, etag: str) -> bool:
    """Weak comparison (RFC 9110, 13.1.2)."""
    given = {part.strip().removeprefix("W/") for part in if_none_match.split(",")}
    return "*" in given or etag in given
