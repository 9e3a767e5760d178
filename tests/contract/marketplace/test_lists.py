"""Every list of the API, as the OpenAPI document has them: who writes a new one is asked for its promises here."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.actors import join
from tests.support.api_server import ServedWorld, served_world
from torg_marketplace.app import make_app

DOCUMENT: dict[str, Any] = make_app(None).openapi()
GETS = {path: methods["get"] for path, methods in DOCUMENT["paths"].items() if "get" in methods}
LISTS = sorted(
    path for path, get in GETS.items() if any(given["name"] == "cursor" for given in get.get("parameters", ()))
)
MANGLED = [
    "half_a_cursor",
    "0",
    "7",
    "00",
    "job_0000000000000000000000000",  # cut off
    "zzz_00000000000000000000000000",
    "6a6f6",  # half a character
    "nobody-s cursor\u2014",
    "x" * 2000,
]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedWorld]:
    async with served_world(tmp_path) as served:
        await join(served.world)
        yield served


def test_what_says_where_the_next_page_begins_can_be_asked_for_it() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    with_pages = {
        path for path, get in GETS.items() if "next_cursor" in schemas.get(_answer(get), {}).get("properties", {})
    }
    assert with_pages == set(LISTS)
    assert len(LISTS) >= 10


async def test_no_list_takes_a_mangled_cursor_for_a_page(served: ServedWorld) -> None:
    async with served.wallet() as http:
        made = await http.post("/v1/webhooks", json={"url": "https://example.com/hook"})
        own = {"address": served.client.vault, "webhook_id": made.json()["webhook"]["webhook_id"]}
        for path in LISTS:
            url = re.sub(r"{(\w+)}", lambda name: own[name[1]], path)
            assert (await http.get(url)).status_code == 200, url
            for cursor in MANGLED:
                answer = await http.get(url, params={"cursor": cursor})
                problem = answer.json()
                assert (answer.status_code, problem.get("code")) == (422, "cursor_invalid"), f"{url} took {cursor}"
                assert (problem["field"], problem["value"]) == ("cursor", cursor[:100])
                assert "next_cursor" in problem["hint"]


def _answer(get: dict[str, Any]) -> str:
    schema = get["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).rpartition("/")[2]
