"""What the framework found wrong with a request, in words: the place, what was there, what is wanted, the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torg_protocol.errors import Invalid

_SHOWN_CHARACTERS = 200
_NO_MAPPING = {"model_attributes_type", "model_type", "dict_type"}
_ID_HINT = "an id is a word and 26 characters, whole, as the lists of `GET /v1` and `torg ps` show it"
_SEE = "what this takes is in /openapi.json, and to read in /docs"
_KEY_HINT = "a public key in base58: 32 to 44 letters and digits, without 0, O, I and l"
_FORMS = {
    "digest": "sha256: and 64 hexadecimal digits, small ones",
    "name": "up to 32 of a-z 0-9 . _ - and a letter or digit to begin with",
    "address": _KEY_HINT,
    "node_id": _KEY_HINT,
    "signature": "a signature in base58: 64 to 88 letters and digits",
    "url": "write it like https://ci.example/torg, without a user, a password or a #fragment",
    "cursor": "take next_cursor of the page before, as it is",
}


def request_invalid(items: list[Any]) -> Invalid:
    """The first problem in front, all of them in `problems`. Long values are cut: they are the caller's, and it has them."""
    problems = [_part(item) for item in items]
    first = problems[0]
    plain = first["field"] == "body" or first["message"].startswith("this is no")
    return Invalid(
        first["message"] if plain else f"{first['field']}: {first['message']}",
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
        return {"field": "body", "message": message, "hint": "send one JSON object (RFC 8259)"}
    if item["loc"] == ("body",) and item["type"] in {*_NO_MAPPING, "missing"}:
        return {
            "field": "body",
            "message": "the body is no JSON object",
            "hint": "send one, and with it Content-Type: application/json",
        }
    place = [str(part) for part in item["loc"] if part != "body"] or ["body"]
    message, hint = _words(item, place)
    part: dict[str, Any] = {"field": ".".join(place), "message": message}
    value = item.get("input")
    if isinstance(value, str | int | bool) and item["type"] != "missing":
        part["value"] = value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value
    part["hint"] = hint or _SEE
    return part


def _words(item: Any, place: list[str]) -> tuple[str, str | None]:
    context: Mapping[str, Any] = item.get("ctx") or {}
    match item["type"]:
        case "missing":
            return "is missing", None
        case "extra_forbidden":
            return "unknown member", f"requests are read strictly: {_SEE}"
        case "int_parsing" | "int_type" | "int_from_float":
            return "a whole number is expected", None
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            (bound,) = context.values()
            return f"{item['type'].replace('_', ' ').replace('equal', 'or equal')} {bound} is expected", None
        case "string_too_short" | "string_too_long":
            least, most = context.get("min_length"), context.get("max_length")
            return (f"at least {least} character(s)" if most is None else f"at most {most} characters"), None
        case "enum" | "literal_error":
            return "not one of the words that are known here", f"one of: {context.get('expected')}"
        case kind if kind in _NO_MAPPING:
            return "a JSON object is expected", None
        case "string_pattern_mismatch" if place[-1].endswith("_id"):
            return f"this is no {place[-1].removesuffix('_id')} id", _FORMS.get(place[-1], _ID_HINT)
        case "string_pattern_mismatch":
            return "not of the form that is expected here", _FORMS.get(place[-1], str(context.get("pattern")))
        case _:
            return str(item["msg"]).removeprefix("Value error, "), None
