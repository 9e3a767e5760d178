"""The OpenAPI document: what FastAPI derives from the handlers, and what only we know: stable operation ids (the handler's name),
security with scopes, problem details as the one error format, examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from torg_marketplace.api.auth import Authenticated
from torg_marketplace.api.examples import EXAMPLES
from torg_marketplace.api.problems import MEDIA_TYPE
from torg_protocol.api import Problem

API_VERSION = "1.0.0"
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "The request cannot be served; `code` says why, `hint` what to do."},
    "5XX": {"model": Problem, "description": "Not the request's fault; safe to try again."},
}
_DESCRIPTION = """\
A GPU compute market: quote, submit, follow and pay for jobs.

Authenticate with an RFC 9421 signature of a wallet (profile in docs/reference/api.md) or with `Authorization: Bearer` and an API key. Errors are
RFC 9457 problem details with a stable `code`. Lists have `limit`, `cursor` and `next_cursor`. Amounts are integers in base units of
the market's token, times integer milliseconds since the epoch. Within /v1 fields are added and never change their meaning: ignore what
you do not know.
"""
_SECURITY = {
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": "RFC 9421, ed25519 key of the account's wallet, with Signature-Input and, for a body, Content-Digest.",
    },
    "apiKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, made by POST /v1/keys or by the operator.",
    },
}


def operation_id(route: APIRoute) -> str:
    """The handler's name. Renaming a handler breaks generated clients: docs/reference/api.md lists them, and a test compares."""
    return route.name


def document(app: FastAPI, routers: Sequence[APIRouter]) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title="Torg marketplace", version=API_VERSION, description=_DESCRIPTION, routes=app.routes)
        schema["components"]["securitySchemes"] = _SECURITY
        operations = {
            operation["operationId"]: operation for path in schema["paths"].values() for operation in path.values()
        }
        scopes = _scopes(routers)
        for name, operation in operations.items():
            _complete(name, operation, scopes.get(name))
        app.openapi_schema = schema
    return app.openapi_schema


def _complete(name: str, operation: dict[str, Any], needs: Authenticated | None) -> None:
    for status, response in operation["responses"].items():
        if status in PROBLEMS:
            response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    if any(parameter["name"] == "if-none-match" for parameter in operation.get("parameters", ())):
        operation["responses"]["304"] = {"description": "What you have is what there is."}
        operation["responses"]["200"]["headers"] = {"ETag": {"schema": {"type": "string"}}}
    if needs is not None:
        operation["security"] = [{"signature": []}] + ([{"apiKey": [needs.scope]}] if needs.scope else [])
        operation["x-torg-scope"] = needs.scope or "wallet"
    for place, example in EXAMPLES.get(name, {}).items():
        target = operation["requestBody"] if place == "request" else operation["responses"][place]
        target["content"]["application/json"]["example"] = example


def _scopes(routers: Sequence[APIRouter]) -> dict[str, Authenticated]:
    """What each operation asks of its caller."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {route.name: call for route in routes for call in _calls(route.dependant) if isinstance(call, Authenticated)}


def _calls(dependant: Dependant) -> list[Any]:
    return [dependant.call, *(call for inner in dependant.dependencies for call in _calls(inner))]
