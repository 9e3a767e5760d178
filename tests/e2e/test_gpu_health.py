"""A node whose GPU breaks: a real agent in a real market, with a SIMULATED NVML under it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.market_processes import call, script
from tests.support import simulated_nvml
from tests.support.small_market import SmallMarket

pytestmark = [pytest.mark.sandbox, pytest.mark.root]


async def test_a_broken_gpu_goes_out_of_service_with_its_reason_and_its_owner_puts_it_back(tmp_path: Path) -> None:
    (tmp_path / "nvml").mkdir()
    environment = {
        "LD_LIBRARY_PATH": str(simulated_nvml.build(tmp_path / "nvml")),
        "TORG_SIMULATED_GPUS": "2",
        "TORG_SIMULATED_ECC": "1:2",
    }
    market, data = SmallMarket(tmp_path), ["--data", str(tmp_path / "node")]
    try:
        await market.start_localnet()
        await market.start_marketplace()
        await market.start_node(environment)
        async with asyncio.timeout(150):
            found = await _doctor(data, environment)
            while not found["cordons"]:
                found = await _doctor(data, environment)
        async with market.client() as client:
            (offered,) = await client.offers()
    finally:
        await market.stop()

    assert found["cordons"] == {"GPU-SIMULATED-1": "2 uncorrected ECC errors since boot"}
    assert "GPU-SIMULATED-0: the kernel knows no NVIDIA device at 0000:3b:00.0" in found["disagreements"]
    assert offered.gpu_class == "cpu", "the sandbox could not give it to a job"
    assert any(line.startswith("GPUs: the sandbox executor cannot pass them on") for line in found["not_offered"])
    uncordon = [script("torg-node"), "uncordon", *data, "GPU-SIMULATED-1"]
    assert (await call(uncordon))[1] == "GPU-SIMULATED-1 is back in service\n"
    assert await call(uncordon, check=False) == (1, "GPU-SIMULATED-1 was not out of service\n")
    assert (await _doctor(data, environment))["cordons"] == {}


async def test_a_hot_gpu_rests_with_its_reason_and_comes_back_by_itself(tmp_path: Path) -> None:
    (tmp_path / "nvml").mkdir()
    hot = tmp_path / "hot"
    hot.write_text("1")
    environment = {
        "LD_LIBRARY_PATH": str(simulated_nvml.build(tmp_path / "nvml")),
        "TORG_SIMULATED_GPUS": "2",
        "TORG_SIMULATED_HOT": str(hot),
    }
    market = SmallMarket(tmp_path, node_settings={"heat_rest_after_s": 1, "heat_back_after_s": 2})
    data = ["--data", str(tmp_path / "node")]
    try:
        await market.start_localnet()
        await market.start_marketplace()
        await market.start_node(environment)
        async with asyncio.timeout(150):
            while not (status := await _status(data))["out_of_service"]:
                pass
        _, shown = await call([script("torg-node"), "status", *data])
        _, top = await call([script("torg-node"), "top", *data, "--once"], env=environment)
        found = await _doctor(data, environment)
        hot.write_text("")
        async with asyncio.timeout(150):
            while (await _status(data))["out_of_service"]:
                pass
    finally:
        await market.stop()

    (reason,) = status["out_of_service"].values()
    assert re.fullmatch(r"slows itself down by heat since [-0-9]{10} [0-9:]{5} UTC, 94 C", reason)
    assert list(status["out_of_service"]) == status["resting"] == found["resting"] == ["GPU-SIMULATED-1"]
    assert found["cordons"] == {"GPU-SIMULATED-1": reason}
    assert f"out of service  GPU-SIMULATED-1: {reason} (back by itself when it stays cool)" in shown
    assert "94 C, slowed" in top
    log = (tmp_path / "node.log").read_text()
    assert f"GPU-SIMULATED-1 takes no new lease: it {reason}" in log
    assert "GPU-SIMULATED-1 takes leases again" in log


async def _status(data: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await call([script("torg-node"), "status", *data, "--json"]))[1])
    return found


async def _doctor(data: list[str], environment: dict[str, str]) -> dict[str, Any]:
    code, text = await call([script("torg-node"), "doctor", *data, "--json"], env=environment, check=False)
    assert code == 1  # something deserves attention
    found: dict[str, Any] = json.loads(text)
    return found
