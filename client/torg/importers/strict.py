"""Checking a foreign document against its schema: all problems at once, each with its place and a way out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from torg_protocol.errors import Invalid

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Unknown keys are errors, as in the platforms' own validators."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def checked(model: type[M], raw: object, title: str) -> M:
    """Raises Invalid (code "spec_invalid"), with all problems."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        found = [_problem(item, raw, model) for item in error.errors(include_url=False)]
    raise refusal(title, found)


def problem(field: str, message: str, value: object = None, hint: str | None = None) -> dict[str, Any]:
    return {"field": field, "message": message, "value": value, "hint": hint}


def refusal(title: str, problems: Sequence[dict[str, Any]]) -> Invalid:
    first = problems[0]
    return Invalid(
        f"{title}: {first['field']}: {first['message']}",
        code="spec_invalid",
        field=first["field"],
        value=first["value"],
        hint=first["hint"],
        problems=list(problems),
    )


def _problem(item: Any, raw: object, model: type[BaseModel]) -> dict[str, Any]:
    location = _written(item["loc"], raw)
    value = item["input"] if isinstance(item["input"], str | int | float | bool) else None
    message, hint = item["msg"].removeprefix("Value error, "), None
    match item["type"]:
        case "extra_forbidden":
            known = _siblings(item["loc"], model)
            close = difflib.get_close_matches(str(location[-1]), known, n=1)
            message = "unknown key"
            hint = f'did you mean "{close[0]}"?' if close else "known here: " + ", ".join(known)
        case "missing":
            message, value = "is missing", None
        case "string_type":
            message = "a text is expected"
            hint = f'put it in quotes: "{value}"' if isinstance(value, int | float) else None
        case "bool_type":
            message = "true or false is expected"
        case "int_type" | "int_from_float" | "int_parsing":
            message = "a whole number is expected"
        case "tuple_type" | "list_type":
            message = "a list is expected"
        case "dict_type" | "model_type" | "model_attributes_type":
            message = "a mapping is expected"
        case "literal_error" | "union_tag_invalid":
            message = f"not one of: {item['ctx'].get('expected') or item['ctx'].get('expected_tags')}"
        case "union_tag_not_found":
            message = "its type is missing"
        case _:
            message = message[:1].lower() + message[1:]
    return problem(".".join(str(part) for part in location) or "$", message, value, hint)


def _written(location: tuple[int | str, ...], raw: object) -> tuple[int | str, ...]:
    """The place as its author wrote it, without the tags of unions that pydantic puts in between."""
    found: list[int | str] = []
    for number, part in enumerate(location):
        is_last = number == len(location) - 1
        if isinstance(raw, Mapping):
            if part not in raw and not is_last:
                continue
            raw = raw.get(part)
        elif isinstance(raw, Sequence) and not isinstance(raw, str):
            if not isinstance(part, int) or part >= len(raw):
                continue
            raw = raw[part]
        else:
            continue
        found.append(part)
    return tuple(found)


def _siblings(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The keys that are known at this place."""
    at: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        named = [_field(owner, part) for owner in at]
        inner = [found for annotation in named if annotation is not None for found in _models(annotation)]
        tagged = [owner for owner in at if _tag(owner) == part]
        at = inner or tagged or at
    return list(dict.fromkeys(info.alias or name for owner in at for name, info in owner.model_fields.items()))


def _field(owner: type[BaseModel], part: int | str) -> Any:
    for name, info in owner.model_fields.items():
        if part in (name, info.alias):
            return info.annotation
    return None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models(argument)]


def _tag(owner: type[BaseModel]) -> str | None:
    kind = owner.model_fields.get("type")
    return None if kind is None else next(iter(get_args(kind.annotation)), None)
