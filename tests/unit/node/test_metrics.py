"""Metrics as Prometheus scrapes them, and the log as a collector reads it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx
import pytest

from tests.support.node_settings import settings_in
from torg_node.allocation import Capacity, Claim, Cpu
from torg_node.journal import Journal
from torg_node.logs import JsonFormatter
from torg_node.metrics import serve_metrics
from torg_node.reservation import Reservations
from torg_node.settings import Settings
from torg_protocol.ids import LeaseId

CAPACITY = Capacity((), (Cpu(0), Cpu(1)), 2000, 1 << 30, 1 << 30, 4)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    Journal(tmp_path / "journal.sqlite").close()
    return settings_in(tmp_path)


def test_what_is_reserved_is_scraped_as_it_is_now(settings: Settings) -> None:
    port, stop = serve_metrics(settings, "node-a", CAPACITY, lambda: True, 0)
    ledger = Reservations(settings.host_ledger_path, "node-a", CAPACITY)
    try:
        before = scrape(port)
        ledger.reserve(LeaseId("lease_1"), Claim("anna", 0, 500, 64, 64))
        ledger.cordon("GPU-1", "Xid 79")
        after = scrape(port)
    finally:
        ledger.close()
        stop()

    assert before['torg_node_reserved{resource="cpu_millis"}'] == 0
    assert after['torg_node_reserved{resource="cpu_millis"}'] == 500
    assert after['torg_node_capacity{resource="cpu_millis"}'] == 2000
    assert after['torg_node_gpu_out_of_service{gpu="GPU-1",reason="Xid 79"}'] == 1
    assert (after["torg_node_connected"], after["torg_node_exposure_base_units"]) == (1, 0)
    with pytest.raises(httpx.ConnectError):
        scrape(port)


def test_a_taken_port_is_said(settings: Settings) -> None:
    port, stop = serve_metrics(settings, "node-a", CAPACITY, lambda: True, 0)
    try:
        with pytest.raises(OSError, match="in use"):
            serve_metrics(settings, "node-a", CAPACITY, lambda: True, port)
    finally:
        stop()


def scrape(port: int) -> dict[str, float]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_a_json_line_names_its_lease_and_keeps_the_exception() -> None:
    try:
        raise ValueError("boom")
    except ValueError as error:
        failure = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("torg_node.execute", logging.ERROR, "", 0, "%s: a step failed", ("lease_x1",), failure)
    line = json.loads(JsonFormatter().format(record))

    assert (line["level"], line["lease"], line["message"]) == ("error", "lease_x1", "lease_x1: a step failed")
    assert line["exception"].endswith("ValueError: boom")
    plain = logging.LogRecord("torg_node.link", logging.INFO, "", 0, "refused: two\nlines", (), None)
    assert "lease" not in json.loads(JsonFormatter().format(plain))
    assert "\n" not in JsonFormatter().format(plain)
