"""The OpenAPI document: what it promises to generated clients, and that the page that describes it says the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from torg_marketplace.api.examples import EXAMPLES
from torg_marketplace.app import make_app

DOCUMENT: dict[str, Any] = make_app(None).openapi()
OPERATIONS = {
    operation["operationId"]: (f"{method.upper()} {path}", operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
PAGE = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "api.md").read_text()


def test_the_page_lists_every_operation_with_its_id_and_scope() -> None:
    listed = {
        row[1]: (row[0], row[2])
        for row in re.findall(r"^\| `([A-Z]+ /\S*)` \| `(\w+)` \| ([\w:]*) *\|", PAGE, re.MULTILINE)
    }
    assert listed == {
        name: (request, operation.get("x-torg-scope", "")) for name, (request, operation) in OPERATIONS.items()
    }


def test_the_document_is_openapi_3_1_and_every_error_a_problem() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    for name, (_, operation) in OPERATIONS.items():
        for status in ("4XX", "5XX"):
            assert list(operation["responses"][status]["content"]) == ["application/problem+json"], name
        assert operation["description"], name


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_what_their_schemas_say(name: str) -> None:
    _, operation = OPERATIONS[name]
    for place in EXAMPLES[name]:
        holder = operation["requestBody"] if place == "request" else operation["responses"][place]
        content = holder["content"]["application/json"]
        schema = {**content["schema"], "components": DOCUMENT["components"]}
        jsonschema_rs.validator_for(schema).validate(content["example"])


def test_no_two_schemas_have_the_same_name() -> None:
    """FastAPI tells them apart by their modules' names; generators of clients drop one of them, and all that refers to it."""
    assert [name for name in DOCUMENT["components"]["schemas"] if "__" in name] == []
