"""Every error as RFC 9457 problem details with a stable code: ours, the framework's, and the unexpected."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from torg_marketplace.api.request_problems import request_invalid
from torg_protocol.errors import TorgError

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    @app.exception_handler(TorgError)
    async def known(_: Request, error: TorgError) -> JSONResponse:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem_of(request_invalid(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, TorgError):  # what `strict` found in a body
            return problem_of(error.__cause__)
        status = HTTPStatus(error.status_code)
        headers = dict(error.headers or {})
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["allow"] = ", ".join(sorted(_methods(routers, request.url.path)))
        hint = "every path is in /openapi.json, and to read in /docs" if status == HTTPStatus.NOT_FOUND else None
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            hint = f"this path knows: {headers['allow']}"
        return _problem(status, status.name.lower(), status.phrase, headers, hint)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "something here is broken; it was written down")


def problem_of(error: TorgError) -> JSONResponse:
    headers = {}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = "1"
    if isinstance(wait_s := error.data.get("retry_after_s"), int):
        headers["retry-after"] = str(wait_s)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Signature, Bearer"
    return JSONResponse(error.to_problem(), error.status, headers=headers, media_type=MEDIA_TYPE)


def _methods(routers: Sequence[APIRouter], path: str) -> set[str]:
    """Of all handlers of the path; the framework names those of the first one only."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}


def _problem(status: HTTPStatus, code: str, title: str, headers: Any = None, hint: str | None = None) -> JSONResponse:
    body: dict[str, Any] = {"type": f"urn:torg:error:{code}", "title": title, "status": status.value, "code": code}
    body |= {"hint": hint} if hint is not None else {}
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)
