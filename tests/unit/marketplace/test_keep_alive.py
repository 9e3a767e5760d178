"""Who keeps an idle connection for longer must be the server: else a client sends its next request into a line that is being closed."""

from __future__ import annotations

from fastapi import FastAPI

from torg_marketplace.app import _uvicorn_config

CLIENTS_S, PROXIES_S = 15, 60  # what is usual


def test_the_server_closes_idle_connections_later_than_clients_and_proxies() -> None:
    assert _uvicorn_config(FastAPI()).timeout_keep_alive > max(CLIENTS_S, PROXIES_S)
