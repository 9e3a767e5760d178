"""The HTTP calls by which a client rents this node: signed requests, answers in JSON, errors as problem details.

Files need no signature: they are named by digests that the signed terms, or a signed answer, have told.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from torg_node.rental.container import STREAMS
from torg_node.rental.service import Rentals
from torg_protocol.errors import Invalid, NotFound, TooLarge, TorgError, Unauthorized
from torg_protocol.httpsig import MAX_CLOCK_SKEW_S, RequestParts, verify_request
from torg_protocol.rentals import CloseRequest, RentalCap, RentalQuestion, StartRental

M = TypeVar("M", bound=BaseModel)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_MAX_BODY_BYTES = 2 << 20
_MAX_LOG_PIECE_BYTES = 1 << 20


class RentalApi:
    def __init__(self, rentals: Rentals) -> None:
        self._rentals, self._nonces = rentals, Nonces()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_explained])
        one = "/v1/rentals/{rental_id}"
        app.add_routes(
            [
                web.get("/v1/rental-offer", self._offer),
                web.post("/v1/rental-question", self._question),
                web.post("/v1/rentals", self._start),
                web.get(one, self._show),
                web.post(f"{one}/cap", self._cap),
                web.post(f"{one}/stop", self._stop),
                web.get(f"{one}/logs/{{stream}}", self._log),
                web.put(f"{one}/workspace/{{digest}}", self._take_workspace),
                web.get(f"{one}/outputs/{{digest}}", self._give_outputs),
                web.post("/v1/vaults/{vault}/closing", self._close),
            ]
        )
        return app

    async def _offer(self, request: web.Request) -> web.Response:
        del request
        return _answer(self._rentals.offer())

    async def _question(self, request: web.Request) -> web.Response:
        client, body = await self._signed(request)
        self._rentals.check_room(_parse(RentalQuestion, body).spec, client)
        return web.json_response({})

    async def _start(self, request: web.Request) -> web.Response:
        client, body = await self._signed(request)
        return _answer(await self._rentals.start(_parse(StartRental, body), client))

    async def _show(self, request: web.Request) -> web.Response:
        client, _ = await self._signed(request)
        return _answer(self._rentals.view(request.match_info["rental_id"], client))

    async def _cap(self, request: web.Request) -> web.Response:
        client, body = await self._signed(request)
        cap = _parse(RentalCap, body).cap
        return _answer(await self._rentals.raise_cap(request.match_info["rental_id"], cap, client))

    async def _stop(self, request: web.Request) -> web.Response:
        client, _ = await self._signed(request)
        return _answer(self._rentals.stop_for(request.match_info["rental_id"], client))

    async def _log(self, request: web.Request) -> web.Response:
        """Bytes of one stream from `offset` on, as many as there are and one answer carries."""
        client, _ = await self._signed(request)
        container, stream = (
            self._rentals.container(request.match_info["rental_id"], client),
            request.match_info["stream"],
        )
        offset = request.query.get("offset", "0")
        if stream not in STREAMS or re.fullmatch(r"[0-9]{1,18}", offset) is None:
            raise Invalid("no such log", code="log_unknown", field="stream", value=stream, hint="stdout or stderr")
        try:
            with container.log(stream).open("rb") as file:
                file.seek(int(offset))
                data = file.read(_MAX_LOG_PIECE_BYTES)
        except FileNotFoundError:
            data = b""
        return web.Response(body=data, content_type="application/octet-stream")

    async def _take_workspace(self, request: web.Request) -> web.Response:
        entry = self._rentals.entry(request.match_info["rental_id"])
        blob, container = entry.terms.spec.workspace, self._rentals.container(entry.id)
        if blob is None or blob.digest != request.match_info["digest"]:
            raise NotFound("the terms name no such workspace", code="workspace_unknown", field="digest")
        if not container.workspace.exists():
            partial, digest, size = container.workspace.with_suffix(f".{time.monotonic_ns()}"), hashlib.sha256(), 0
            try:
                with partial.open("wb") as file:
                    async for piece in request.content.iter_chunked(1 << 20):
                        digest.update(piece)
                        size += len(piece)
                        if size > blob.size_bytes:
                            raise TooLarge("more than the terms say", field="size_bytes", value=blob.size_bytes)
                        file.write(piece)
                if f"sha256:{digest.hexdigest()}" != blob.digest:
                    raise Invalid("these are other bytes", code="blob_digest_mismatch", field="digest")
                partial.replace(container.workspace)
            finally:
                partial.unlink(missing_ok=True)
        self._rentals.files_came(entry.id)
        return web.json_response({})

    async def _give_outputs(self, request: web.Request) -> web.StreamResponse:
        entry = self._rentals.entry(request.match_info["rental_id"])
        container = self._rentals.container(entry.id)
        if (
            entry.outputs is None
            or entry.outputs.digest != request.match_info["digest"]
            or not container.outputs.exists()
        ):
            raise NotFound("there are no such outputs here", code="outputs_unknown", field="digest")
        return web.FileResponse(container.outputs, headers={"content-type": "application/zstd"})

    async def _close(self, request: web.Request) -> web.Response:
        client, body = await self._signed(request)
        blockhash = _parse(CloseRequest, body).blockhash
        return _answer(await self._rentals.agree_to_close(request.match_info["vault"], blockhash, client))

    async def _signed(self, request: web.Request) -> tuple[str, bytes]:
        """Who signed the request, and its body. Raises Unauthorized."""
        body, now_s = await request.read(), int(time.time())
        parts = RequestParts(
            method=request.method,
            authority=request.host,
            path=request.rel_url.raw_path,
            query=f"?{request.rel_url.raw_query_string}",
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
        )
        verified = verify_request(parts, now_s=now_s)
        if not self._nonces.is_fresh(verified.key, verified.nonce, now_s):
            raise Unauthorized("this request was made before", code="signature_replayed", field="nonce")
        return verified.key, body


class Nonces:
    """Those of the time in which a signature counts. A restart forgets them: whatever is called twice then is safe to repeat."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], int] = {}
        self._swept_s = 0

    def is_fresh(self, key: str, nonce: str, now_s: int) -> bool:
        if now_s - self._swept_s > MAX_CLOCK_SKEW_S:
            self._seen = {item: at_s for item, at_s in self._seen.items() if now_s - at_s <= 2 * MAX_CLOCK_SKEW_S}
            self._swept_s = now_s
        is_new = (key, nonce) not in self._seen
        self._seen[key, nonce] = now_s
        return is_new


@web.middleware
async def _explained(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error of ours as problem details (RFC 9457)."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        problem = TorgError(error.reason, code="not_found" if error.status == 404 else "http_error").to_problem()
        return _problem({**problem, "status": error.status}, error.status)
    except TorgError as error:
        return _problem(error.to_problem(), error.status)


def _problem(problem: dict[str, object], status: int) -> web.Response:
    return web.Response(text=json.dumps(problem), status=status, content_type="application/problem+json")


def _parse(model: type[M], body: bytes) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "$"
        raise Invalid(f"{field}: {first['msg']}", code="body_invalid", field=field) from error


def _answer(value: BaseModel) -> web.Response:
    return web.json_response(value.model_dump(mode="json"))
