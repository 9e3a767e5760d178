"""All that a grant, and the job file in it, can say. Recorded per version of the protocol, for the next one to be compared with:

python -m tests.support.grant_shape > tests/unit/protocol/recorded/grant-of-version-N.txt
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from torg_protocol.messages import Grant


def shape(model: type[BaseModel]) -> set[str]:
    """All that a document can say, one line each: a field's type, each value that is one of several, each limit. What two releases differ
    in is what the older one may refuse."""
    document = model.model_json_schema()
    parts = {model.__name__: document, **document.get("$defs", {})}
    return {
        f"{name}.{field} {line}"
        for name, part in parts.items()
        for field, schema in part.get("properties", {}).items()
        for line in _lines(schema)
    }


def _lines(schema: Mapping[str, Any]) -> Iterator[str]:
    for key, value in schema.items():
        match key:
            case "$ref":
                yield f"of {value.rpartition('/')[2]}"
            case "const":
                yield f"is {value!r}"
            case "enum":
                yield from (f"is {each!r}" for each in value)
            case "anyOf" | "oneOf":
                for each in value:
                    yield from _lines(each)
            case "items" | "additionalProperties" if isinstance(value, Mapping):
                yield from _lines(value)
            case "patternProperties":
                for pattern, each in value.items():
                    yield f"named {pattern}"
                    yield from _lines(each)
            case "title" | "description" | "default" | "examples" | "discriminator":
                pass
            case _:
                yield f"{key} {value}"


if __name__ == "__main__":
    print(*sorted(shape(Grant)), sep="\n")
