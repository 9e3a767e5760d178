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

from torg_protocol.errors import Invalid, TorgError

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
_SHOWN_CHARACTERS = 200
_NO_MAPPING = {"model_attributes_type", "model_type", "dict_type"}


def install(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    @app.exception_handler(TorgError)
    async def known(_: Request, error: TorgError) -> JSONResponse:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem_of(_request_invalid(error))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        headers = dict(error.headers or {})
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["allow"] = ", ".join(sorted(_methods(routers, request.url.path)))
        hint = "every path is in /openapi.json, and to read in /docs" if status == HTTPStatus.NOT_FOUND else None
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


def _request_invalid(error: RequestValidationError) -> Invalid:
    """The first problem in front, all of them in `problems`. Long values are cut: they are the caller's, and it has them."""
    problems = [_part(item) for item in error.errors()]
    first = problems[0]
    return Invalid(
        first["message"],
        code="request_invalid",
        field=first["field"],
        value=first.get("value"),
        hint=first.get("hint"),
        problems=problems,
    )


def _part(item: Any) -> dict[str, Any]:
    """Where it is ("query.limit", "header.idempotency-key", "spec"), what is wrong, what was there."""
    if item["type"] == "json_invalid":  # its place is a character
        message = f"the body is not JSON, from character {item['loc'][-1]} on: {item['ctx']['error']}"
        return {"field": "body", "message": message}
    if item["loc"] == ("body",) and item["type"] in _NO_MAPPING:
        return {
            "field": "body",
            "message": "the body is no JSON object",
            "hint": "send one, and with it Content-Type: application/json",
        }
    place = [str(part) for part in item["loc"] if part != "body"] or ["body"]
    part: dict[str, Any] = {"field": ".".join(place), "message": item["msg"].removeprefix("Value error, ")}
    value = item.get("input")
    if isinstance(value, str | int | bool):
        part["value"] = value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value
    if item["type"] == "string_pattern_mismatch" and place[-1].endswith("_id"):
        part["message"] = f"this is no {place[-1].removesuffix('_id')} id"
        part["hint"] = "an id is a word and 26 characters, whole, as the lists of `GET /v1` and `torg ps` show it"
    return part


def _problem(status: HTTPStatus, code: str, title: str, headers: Any = None, hint: str | None = None) -> JSONResponse:
    body: dict[str, Any] = {"type": f"urn:torg:error:{code}", "title": title, "status": status.value, "code": code}
    body |= {"hint": hint} if hint is not None else {}
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)
