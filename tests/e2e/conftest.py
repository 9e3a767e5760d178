"""Every end-to-end test is followed by a look for what it left on this host. Those of a module that asks for `market` share one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.leaks import leaves_nothing, module_leaves_nothing, own_temp
from tests.support.small_market import SmallMarket, running_market
from torg.client import AsyncClient

__all__ = ["leaves_nothing", "module_leaves_nothing", "own_temp"]

_HERE = Path(__file__).parent
_WITHIN_S = 900  # several processes that start, and a machine that others use too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == _HERE and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_WITHIN_S))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def market(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SmallMarket]:
    async with running_market(tmp_path_factory.mktemp("market")) as market:
        yield market


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(market: SmallMarket) -> AsyncIterator[AsyncClient]:
    async with market.client() as client:
        yield client
