"""Problems of a document in words: the field as its author wrote it, what is wrong with it, the way out."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from torg_protocol.plain_text import unstorable_text
from torg_protocol.quantities import as_written

_SECRETIVE = (("registries",), ("secrets",))  # what stands below them may be the secret itself, where its name belongs
_FORMS = {
    "name": "small letters, digits, dots, dashes and underscores, 63 at most, a letter or digit first",
    "username": "name a secret, which `secrets:` defines: never the user's name itself",
    "password": "name a secret, which `secrets:` defines: never the password itself",
    "token": "name a secret, which `secrets:` defines: never the token itself",
    "digest": "sha256: and 64 hexadecimal digits, small ones",
}
_EXPECTED = {
    "string_type": "a text",
    "bool_type": "true or false",
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a mapping"),
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "a whole number"),
}
_DISCRIMINATORS = ("policy", "kind", "type")
BETWEEN_FIELDS = "between_fields"  # an error of pydantic's that stands for several: `all` in its context


def problems_of(items: Sequence[Any], raw: object, model: type[BaseModel]) -> list[dict[str, Any]]:
    """Pydantic's list of errors. `raw`: what was validated as `model`."""
    problems = []
    for item in items:
        if item["type"] == BETWEEN_FIELDS:
            found = item["ctx"]["all"]
            problems += [{"field": field, "message": text, "value": None, "hint": None} for field, text in found]
        else:
            problems.append(_problem(item, raw, model))
    return problems


def unkept_problems(raw: object) -> list[dict[str, Any]]:
    """Text that no database and no program's argument can hold, and numbers that JSON has no word for: at most one problem."""
    found = unstorable_text(raw) or _not_finite(raw)
    if found is None:
        return []
    field, message = found
    return [{"field": field, "message": message, "value": None, "hint": "leave it out"}]


def _not_finite(raw: object, place: str = "") -> tuple[str, str] | None:
    if isinstance(raw, float) and not math.isfinite(raw):
        return place or "$", f"a finite number is expected, not {raw}"
    pairs = raw.items() if isinstance(raw, Mapping) else enumerate(raw) if isinstance(raw, list | tuple) else ()
    found = (_not_finite(value, f"{place}.{key}" if place else str(key)) for key, value in pairs)
    return next((one for one in found if one is not None), None)


def _problem(item: Any, raw: object, model: type[BaseModel]) -> dict[str, Any]:
    location = _written(item["loc"], raw)
    is_shown = isinstance(item["input"], str | int | float | bool) and location[:1] not in _SECRETIVE
    message, hint, value = _words(item, location, item["input"] if is_shown else None, raw, model)
    return {"field": ".".join(str(part) for part in location) or "$", "message": message, "value": value, "hint": hint}


def _words(
    item: Any, location: tuple[int | str, ...], value: Any, raw: object, model: type[BaseModel]
) -> tuple[str, str | None, Any]:
    """Message, hint, and the value as its author wrote it."""
    message, hint = item["msg"].removeprefix("Value error, "), None
    match item["type"]:
        case "extra_forbidden":
            known = _siblings(item["loc"], model)
            close = difflib.get_close_matches(str(location[-1]), known, n=1)
            message = "unknown key"
            hint = f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(known)}"
        case "missing":
            return "is missing", None, None
        case "string_type" if isinstance(value, bool | int | float):
            message, hint = "a text is expected", f'put it in quotes: "{value}"'
        case kind if kind in _EXPECTED:
            message = f"{_EXPECTED[kind]} is expected"
        case "tuple_type" | "list_type":
            message = "a list is expected"
            hint = f"write it like [{', '.join(value.split())}]" if isinstance(value, str) and value.strip() else None
        case "string_pattern_mismatch":
            message = "not of the form that is expected here"
            hint = _FORMS.get(str(location[-1]), str(item["ctx"].get("pattern")))
        case "literal_error" | "union_tag_invalid":
            message = f"not one of: {item['ctx'].get('expected') or item['ctx'].get('expected_tags')}"
        case "less_than_equal" | "greater_than_equal":
            written, (bound,) = _value_at(item["loc"], raw), item["ctx"].values()
            in_units = as_written(bound, written) if isinstance(written, str) and isinstance(bound, int) else None
            value = value if in_units is None else str(written)
            message = f"{'at most' if item['type'] == 'less_than_equal' else 'at least'} {in_units or bound}"
        case "too_long" | "too_short" as kind:
            bound = item["ctx"]["max_length" if kind == "too_long" else "min_length"]
            message = (
                f"{'at most' if kind == 'too_long' else 'at least'} {bound} items, not {item['ctx']['actual_length']}"
            )
            value = None
        case "union_tag_not_found":
            word = str(item["ctx"].get("discriminator", "policy")).strip("'")
            example = "policy: none, metric or replay" if word == "policy" else f"{word}: and what it is"
            message, hint = f"says no {word}", f"write {example}"
        case _:
            message = message[:1].lower() + message[1:]
    return message, hint, value


def _value_at(location: tuple[int | str, ...], raw: object) -> object:
    """What its author wrote there, with the unit that the value had."""
    for part in _written(location, raw):
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
    return raw


def _written(location: tuple[int | str, ...], raw: object) -> tuple[int | str, ...]:
    """The place as its author wrote it: without the names of union members that pydantic puts in between."""
    found: list[int | str] = []
    tag_seen = False
    for number, part in enumerate(location):
        is_last = number == len(location) - 1
        if isinstance(raw, Mapping):
            if not is_last and not tag_seen and part in [raw.get(name) for name in _DISCRIMINATORS]:
                tag_seen = True
                continue
            if part not in raw and not is_last:
                continue
            raw, tag_seen = raw.get(part), False
        elif isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw):
            raw, tag_seen = raw[part], False
        elif found and (isinstance(part, str) or isinstance(raw, str | int | float)):
            continue  # what has no keys: this names a member of a union, or is the place in a list of which it is a short form
        found.append(part)
    return tuple(found)


def _siblings(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The keys that the model at this place knows."""
    annotations: list[Any] = [model]
    for part in location[:-1]:
        annotations = [inner for annotation in annotations for inner in _inside(annotation, part)] or annotations
    models = [one for annotation in annotations for one in _models(annotation)]
    return list(dict.fromkeys(field.alias or name for one in models for name, field in one.model_fields.items()))


def _inside(annotation: Any, part: int | str) -> list[Any]:
    """What may stand at `part` of a value of this type; for a member of a union its tag is such a part."""
    if get_origin(annotation) in {tuple, list} and isinstance(part, int):
        return [get_args(annotation)[0]]
    if get_origin(annotation) is dict:
        return [get_args(annotation)[1]]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [field.annotation for name, field in annotation.model_fields.items() if part in (name, field.alias)]
    models = _models(annotation)
    if len(models) == 1 and part == "list":
        return list(models)  # the one member of a union with plain words that is a mapping
    if members := [one for one in models if len(models) > 1 and part in _tags(one)]:
        return list(members)
    return [inner for argument in get_args(annotation) for inner in _inside(argument, part)]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation may stand for: itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    fields = [model.model_fields[name] for name in _DISCRIMINATORS if name in model.model_fields]
    return tuple(tag for field in fields for tag in get_args(field.annotation))
