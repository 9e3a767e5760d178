"""Sends what the webhooks' outbox holds, to addresses on the public internet only.

A URL is somebody else's choice, and this process may reach what its author may not. So: names are resolved here, every address that a name
has must be public, the connection goes to the very address that was checked (a second answer of the name server changes nothing),
redirects are not followed, and nothing of an answer is kept but its status. The operator may open networks (for tests, or an
integrator next door): `TORG_MARKETPLACE_WEBHOOK_NETWORKS`, which also allows plain http to them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from torg_host.addresses import Address, is_public
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.webhooks import Due, due_deliveries, enqueue_deliveries, record_answer
from torg_protocol.errors import Forbidden, TorgError
from torg_protocol.webhooks import sign_webhook

_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
_WHOLE_TRY_S = 20.0
_PORTS = {"http": 80, "https": 443}


async def deliver_webhooks(market: Market) -> None:
    while await enqueue_deliveries(market):
        pass
    while due := await due_deliveries(market):
        async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, follow_redirects=False) as http:
            await asyncio.gather(*(_deliver(market, http, item) for item in due))


async def _deliver(market: Market, http: httpx.AsyncClient, due: Due) -> None:
    try:
        async with asyncio.timeout(_WHOLE_TRY_S):
            status = await _send(http, due, market.policy.webhook_networks, market.clock.now_ms() // 1000)
        answer, delivered = f"status {status}", 200 <= status < 300
    except (httpx.HTTPError, TorgError, OSError, TimeoutError) as error:
        answer, delivered = str(error) or type(error).__name__, False
    await record_answer(market, due.delivery_id, answer, delivered=delivered)


async def _send(http: httpx.AsyncClient, due: Due, networks: Sequence[str], now_s: int) -> int:
    parts = urlsplit(due.url)
    host = parts.hostname or ""
    port = parts.port or _PORTS[parts.scheme]
    address = await allowed_address(host, port, networks, plain=parts.scheme == "http")
    pinned = f"[{address}]" if address.version == 6 else str(address)
    headers = {
        "host": parts.netloc,
        "content-type": "application/json",
        "user-agent": "torg-webhooks/1",
        "webhook-id": due.delivery_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": sign_webhook(due.secret, due.delivery_id, now_s, due.body),
    }
    url = parts._replace(netloc=f"{pinned}:{port}").geturl()
    request = http.build_request("POST", url, content=due.body, headers=headers)
    request.extensions["sni_hostname"] = host  # the certificate must be the name's, not the address's
    response = await http.send(request, stream=True)
    await response.aclose()
    return response.status_code


async def allowed_address(host: str, port: int, networks: Sequence[str], *, plain: bool) -> Address:
    """Where to connect. Raises Forbidden `webhook_address_private`, `webhook_not_https`; OSError for a name that nobody knows."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]
    opened = [ipaddress.ip_network(name) for name in networks]
    for address in addresses:
        is_opened = any(address in network for network in opened)
        if not (is_opened or is_public(address)):
            raise Forbidden(
                "not an address on the public internet", code="webhook_address_private", field="url", value=host
            )
        if plain and not is_opened:
            raise Forbidden("webhooks are sent by https", code="webhook_not_https", field="url", value=host)
    return addresses[0]
