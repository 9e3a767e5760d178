"""Words that a newer marketplace answers and this reader does not know: kept and shown as they are.

Enumerations and literals of requests are closed: a word that nobody knows is refused. Those of answers are open: `open_words` takes a model's
validator apart and puts it together again so that an unknown word becomes a member of its enumeration that is none of the known ones, or, for a
literal, the text itself. What is signed keeps every byte either way, so signatures over it still verify.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import SchemaSerializer, SchemaValidator

M = TypeVar("M", bound=BaseModel)
E = TypeVar("E", bound=enum.StrEnum)
_MOST_LEFT_OUT = 20
_TEXT = {"type": "str"}


def is_known(word: enum.StrEnum) -> bool:
    """Whether this release has a name for it. What is not known equals no member: compare, and have an `else`."""
    return word.name in type(word).__members__


def unknown_member(enumeration: type[E], word: str) -> E:
    """Prints, compares and travels as the word that it is."""
    member = str.__new__(enumeration, word)
    member._name_, member._value_ = word, word
    return member


def open_words(model: type[BaseModel]) -> None:
    """From now on `model` reads words that it does not know, at every depth. Its JSON schema stays what it was."""
    schema = _opened(model.__pydantic_core_schema__)
    model.__pydantic_core_schema__ = schema
    # Prebuilt validators of what is inside would be the closed ones.
    model.__pydantic_validator__ = SchemaValidator(schema, _use_prebuilt=False)
    model.__pydantic_serializer__ = SchemaSerializer(schema, _use_prebuilt=False)


def read_openly(model: type[M], raw: object, **how: Any) -> M:
    """An answer's part that is a Wire elsewhere: a spec, a signed receipt, parsed or as JSON text. Raises pydantic's ValidationError."""
    validator = _open_validator(model)
    if isinstance(raw, str | bytes):
        return validator.validate_json(raw, **how)  # type: ignore[no-any-return] # the schema is the model's
    return validator.validate_python(raw, **how)  # type: ignore[no-any-return] # as above


def read_what_is_known(model: type[M], raw: Mapping[str, Any]) -> M:
    """`read_openly`, leaving out members that this reader does not know, and values whose kind it does not know (a new way to verify, a new kind of
    input). Raises ValidationError where without them it would be no `model` any more."""
    for _ in range(_MOST_LEFT_OUT):
        try:
            return read_openly(model, raw, extra="ignore")
        except ValidationError as error:
            places = [item["loc"] for item in error.errors(include_url=False) if item["type"] != "missing"]
            if not places or not places[0]:
                raise
            raw = _without(raw, places[0])
    return read_openly(model, raw, extra="ignore")


def _without(raw: Any, place: tuple[int | str, ...]) -> Any:
    """A copy of `raw` without what stands deepest along `place`; names of union members in between are passed over."""
    if isinstance(raw, Mapping):
        known = [part for part in place if part in raw]
        if known:
            rest = place[place.index(known[0]) + 1 :]
            shorter = _without(raw[known[0]], rest)
            return {
                key: shorter if key == known[0] else value
                for key, value in raw.items()
                if key != known[0] or shorter is not None
            }
    elif isinstance(raw, list | tuple):
        number = next((part for part in place if isinstance(part, int) and part < len(raw)), None)
        if number is not None:
            shorter = _without(raw[number], place[place.index(number) + 1 :])
            return [
                shorter if at == number else value
                for at, value in enumerate(raw)
                if at != number or shorter is not None
            ]
    return None


@functools.cache
def _open_validator(model: type[BaseModel]) -> SchemaValidator:
    return SchemaValidator(_opened(model.__pydantic_core_schema__), _use_prebuilt=False)


def _opened(part: Any) -> Any:
    """A copy of a core schema in which enumerations and literals of text are open."""
    if isinstance(part, list | tuple):
        return type(part)(_opened(item) for item in part)
    if not isinstance(part, Mapping):
        return part
    inner = {key: value if key in {"metadata", "serialization"} else _opened(value) for key, value in part.items()}
    if part.get("type") == "enum" and issubclass(part["cls"], enum.StrEnum):
        member = functools.partial(unknown_member, part["cls"])
        return _or(
            part, {"type": "function-after", "function": {"type": "no-info", "function": member}, "schema": _TEXT}
        )
    if part.get("type") == "literal" and all(isinstance(word, str) for word in part["expected"]):
        return (
            _or(part, _TEXT) if len(part["expected"]) > 1 else inner
        )  # of one word: what tells the members of a union apart
    return inner


def _or(closed: Mapping[str, Any], unknown: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the place of `closed`, its name included; its JSON schema is the closed one's."""

    def as_before(_: Any, of: Callable[[Any], Any]) -> Any:
        return of(known)

    known = {key: value for key, value in closed.items() if key != "ref"}
    named = {"ref": closed["ref"]} if "ref" in closed else {}
    hooks = {"pydantic_js_functions": [as_before]}
    return {"type": "union", "choices": [known, unknown], "mode": "left_to_right", "metadata": hooks, **named}
