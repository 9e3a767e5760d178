"""Requests are read strictly: no query parameter that the operation does not know, no precondition that nothing checks, and no JSON but
that of RFC 8259."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.responses import Response

from torg_protocol.errors import Invalid
from torg_protocol.plain_text import unstorable_text

_PRECONDITIONS = ("if-match", "if-unmodified-since")


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        known = sorted(_query_parameters(self.dependant))

        async def strictly(request: Request) -> Response:
            if request.url.path.startswith("/v1/"):
                _refuse_preconditions(request)
                if request.scope["query_string"]:
                    _refuse_unknown(request, known)
            return await handle(_StrictRequest(request.scope, request.receive))

        return strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        """The framework makes its own error of whatever is raised here; `problems` finds ours as its cause."""
        return read_json(await self.body())


def read_json(body: bytes) -> Any:
    """Raises json.JSONDecodeError, or Invalid `request_invalid` for what Python's reader takes and other programs do not: NaN, Infinity, numbers
    beyond a double, half of a surrogate pair, and text with a NUL, which databases and programs' arguments cannot hold."""
    try:
        document = json.loads(body, parse_constant=_refuse_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise _refused("the body is not UTF-8", hint="send JSON as UTF-8") from error
    except RecursionError as error:
        raise _refused("the body is nested too deeply", hint="nothing here needs more than a few levels") from error
    if b"\\u" in body and (found := unstorable_text(document)) is not None:
        place, why = found
        raise _refused(f"{place}: {why}", field=place, hint="leave that character out")
    return document


def _query_parameters(dependant: Dependant) -> set[str]:
    inner = (_query_parameters(dependency) for dependency in dependant.dependencies)
    return {field.alias for field in dependant.query_params}.union(*inner)


def _refuse_preconditions(request: Request) -> None:
    """To read over one would do what its author asked not to do."""
    for name in _PRECONDITIONS:
        if (value := request.headers.get(name)) is not None:
            raise Invalid(
                f"{name} is not supported: nothing was done",
                code="precondition_unsupported",
                field=f"header.{name}",
                value=value[:200],
                hint="leave it out: cancel, extend and delete are safe to repeat, and refuse by state; If-None-Match works on reads",
            )


def _refuse_unknown(request: Request, known: list[str]) -> None:
    for name, value in request.query_params.multi_items():
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        names = f"known here: {', '.join(known)}" if known else "this operation takes none"
        raise Invalid(
            f"query.{name}: unknown parameter",
            code="request_invalid",
            field=f"query.{name}",
            value=value[:200],
            hint=f'did you mean "{close[0]}"?' if close else names,
        )


def _finite(text: str) -> float:
    number = float(text)
    return number if number - number == 0 else _refuse_number(text)


def _refuse_number(text: str) -> NoReturn:
    raise _refused(f"the body is not JSON: {text[:40]} is no number of it", hint="write a finite number")


def _refused(message: str, *, field: str = "body", hint: str) -> Invalid:
    return Invalid(message, code="request_invalid", field=field, hint=hint)
