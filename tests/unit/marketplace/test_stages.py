"""Processor time is told apart although everything shares one event loop, and measuring changes nothing."""

from __future__ import annotations

import asyncio
import time
import urllib.request

import pytest

from torg_marketplace.metrics import serve_metrics
from torg_marketplace.stages import STAGES, measured


async def busy(ms: float) -> str:
    for _ in range(4):  # in steps, with others in between
        until = time.thread_time() + ms / 4_000
        while time.thread_time() < until:
            pass
        await asyncio.sleep(0.001)
    return "done"


async def test_each_stage_pays_for_its_own_steps_only() -> None:
    answers = await asyncio.gather(measured("test busy", busy(80)), measured("test idle", busy(0)))
    assert answers == ["done", "done"]
    used, idle = STAGES["test busy"], STAGES["test idle"]
    assert (used.calls, used.failed, idle.calls) == (1, 0, 1)
    assert used.processor_ns >= 80e6
    assert idle.processor_ns < used.processor_ns / 2
    assert idle.elapsed_ns >= 4e6


async def test_a_stage_inside_another_is_counted_once() -> None:
    async def outer() -> str:
        await busy(20)
        return await measured("test inner", busy(80))

    assert await measured("test outer", outer()) == "done"
    inner, outside = STAGES["test inner"].processor_ns, STAGES["test outer"].processor_ns
    assert inner >= 80e6
    assert 20e6 <= outside < inner


async def test_errors_and_cancellations_go_through() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("as it should")

    with pytest.raises(LookupError, match="as it should"):
        await measured("test failing", fails())
    handled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            handled.set()
            raise

    task = asyncio.create_task(measured("test cancelled", waits()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handled.is_set()
    assert (STAGES["test failing"].failed, STAGES["test cancelled"].failed) == (1, 1)


async def test_metrics_tell_stages_and_nodes() -> None:
    await measured('test "quoted"', busy(1))
    port, stop = serve_metrics(0, lambda: 7, lambda: 5_000)
    try:
        url = f"http://127.0.0.1:{port}/metrics"
        text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=60).read())).decode()
    finally:
        stop()
    assert "torg_connected_nodes 7.0" in text
    assert "torg_fee_payer_lamports 5000.0" in text
    assert 'torg_stage_calls_total{stage="test \\"quoted\\""} 1.0' in text
    assert 'torg_stage_processor_seconds_total{stage="test \\"quoted\\""}' in text
    assert "process_resident_memory_bytes" in text
