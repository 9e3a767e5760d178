"""The tree of errors that reach a user, each with a stable `code` that never changes its meaning.

    TorgError
    ├── Invalid            400/422  the request cannot be right: names the field, the value, the way out
    ├── Unauthorized       401      no, bad, expired or replayed signature
    ├── Forbidden          403      signed by somebody who may not
    ├── NotFound           404
    ├── Conflict           409      right request, wrong moment: state, idempotency key, stale cap
    ├── Gone               410      was there, and is not kept any more
    ├── TooLarge           413
    ├── RateLimited        429      too many requests; Retry-After says when
    ├── Unavailable        503      try again later; says when
    └── Infeasible         422      nothing on the market can run this job; says which constraint removed what

On the wire an error is RFC 9457 problem details (`to_problem`), the same for HTTP and for the node channel.
"""

from __future__ import annotations

from typing import Any, ClassVar


class TorgError(Exception):
    """Base of all. `code` is stable and matched by programs; `message` is for people and may change."""

    status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        value: object = None,
        hint: str | None = None,
        **data: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.field = field
        self.value = value
        self.hint = hint
        self.data = data

    def to_problem(self) -> dict[str, Any]:
        """RFC 9457 problem details; extension members carry the field, the value, the hint and the error's data."""
        problem: dict[str, Any] = {
            "type": f"urn:torg:error:{self.code}",
            "title": self.message,
            "status": self.status,
            "code": self.code,
        }
        extras = {"field": self.field, "value": self.value, "hint": self.hint, **self.data}
        problem.update({name: extra for name, extra in extras.items() if extra is not None})
        return problem

    def __str__(self) -> str:
        value = "" if self.value is None else f" = {self.value!r}"
        where = f" ({self.field}{value})" if self.field else ""
        hint = f"\n  {self.hint}" if self.hint else ""
        return f"{self.message}{where} [{self.code}]{hint}"


class Invalid(TorgError):
    status = 422
    default_code = "invalid"


class Unauthorized(TorgError):
    status = 401
    default_code = "unauthorized"


class Forbidden(TorgError):
    status = 403
    default_code = "forbidden"


class NotFound(TorgError):
    status = 404
    default_code = "not_found"


class Conflict(TorgError):
    status = 409
    default_code = "conflict"


class Gone(TorgError):
    status = 410
    default_code = "gone"


class TooLarge(TorgError):
    status = 413
    default_code = "too_large"


class RateLimited(TorgError):
    status = 429
    default_code = "rate_limited"


class Infeasible(TorgError):
    status = 422
    default_code = "infeasible"


class Unavailable(TorgError):
    status = 503
    default_code = "unavailable"


_BY_STATUS: dict[int, type[TorgError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    413: TooLarge,
    422: Invalid,
    429: RateLimited,
    503: Unavailable,
}


def from_problem(problem: dict[str, Any]) -> TorgError:
    """The error that `to_problem` came from, as far as the wire carries it. Unknown members end up in `data`."""
    known = {"type", "title", "status", "code", "field", "value", "hint"}
    code = str(problem.get("code", "internal"))
    error_class = Infeasible if code == "infeasible" else _BY_STATUS.get(int(problem.get("status", 500)), TorgError)
    return error_class(
        str(problem.get("title", "unknown error")),
        code=code,
        field=problem.get("field"),
        value=problem.get("value"),
        hint=problem.get("hint"),
        **{name: extra for name, extra in problem.items() if name not in known},
    )
