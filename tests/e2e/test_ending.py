"""A marketplace that is asked to end: it says so first, serves on for a while, and ends by itself with nothing left behind."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx

from tests.support.chaos import signal_to
from tests.support.small_market import SmallMarket
from tests.support.waiting import eventually


async def test_it_is_not_ready_before_it_stops_to_serve(tmp_path: Path) -> None:
    market = SmallMarket(tmp_path, options=("--drain", "2m"))
    try:
        await market.start_localnet()
        await market.start_marketplace()
        assert market.marketplace is not None
        async with httpx.AsyncClient(base_url=market.url, trust_env=False, timeout=30) as http:
            assert (await http.get("/readyz")).status_code == 200
            signal_to(market.marketplace, signal.SIGTERM)

            async def says_no() -> bool:
                return (await http.get("/readyz")).status_code == 503

            await eventually(says_no)
            answer = await http.get("/readyz")
            assert (answer.json()["code"], "retry-after" in answer.headers) == ("shutting_down", True)
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/v1/market")).status_code == 200  # who still comes is served
        await market.marketplace.stop()  # the second SIGTERM: at once
        assert market.marketplace.process.returncode == 0
        assert "Traceback" not in market.marketplace.log.read_text()
    finally:
        await market.stop()
