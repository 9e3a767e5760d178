"""Every error as RFC 9457 problem details with a stable code: ours, the framework's, and the unexpected."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from torg_protocol.errors import TorgError

log = logging.getLogger(__name__)
_MEDIA_TYPE = "application/problem+json"


def install(app: FastAPI) -> None:
    @app.exception_handler(TorgError)
    async def known(_: Request, error: TorgError) -> JSONResponse:
        headers = {"retry-after": "1"} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else None
        return JSONResponse(error.to_problem(), error.status, headers=headers, media_type=_MEDIA_TYPE)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body")
        shown = first["input"] if isinstance(first["input"], str | int | bool) else None
        return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, "request_invalid", first["msg"], field=field, value=shown)

    @app.exception_handler(HTTPException)
    async def framework(_: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        return _problem(status, status.name.lower(), status.phrase)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "something here is broken; it was written down")


def _problem(status: HTTPStatus, code: str, title: str, **extras: object) -> JSONResponse:
    body = {"type": f"urn:torg:error:{code}", "title": title, "status": status.value, "code": code}
    return JSONResponse(
        {**body, **{name: value for name, value in extras.items() if value is not None}}, status, media_type=_MEDIA_TYPE
    )
