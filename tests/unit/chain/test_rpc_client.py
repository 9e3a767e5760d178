"""The client of the chain starts wherever torg does."""

from __future__ import annotations

import sys

import pytest

from torg_chain.rpc import ChainClient


async def test_it_does_without_http_2_where_that_is_declared_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line declares it."""
    monkeypatch.setitem(sys.modules, "h2", None)
    async with ChainClient("http://127.0.0.1:9") as chain:
        assert chain.rpc_url == "http://127.0.0.1:9"
