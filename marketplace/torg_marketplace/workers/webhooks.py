"""Sends what the webhooks' outbox holds, to addresses on the public internet only.

A URL is somebody else's choice, and this process may reach what its author may not. So: names are resolved here, every address that a name
has must be public, the connection goes to the very address that was checked (a second answer of the name server changes nothing),
redirects are not followed, and nothing of an answer is kept but its status. The operator may open networks (for tests, or an
integrator next door): `TORG_MARKETPLACE_WEBHOOK_NETWORKS`, which also allows plain http to them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from torg_host.addresses import Address
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.webhooks import Due, due_deliveries, enqueue_deliveries, record_answer
from torg_marketplace.rules.webhook_targets import Target, check_addresses, check_target, target_of
from torg_protocol.errors import TorgError
from torg_protocol.webhooks import sign_webhook

log = logging.getLogger(__name__)
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
_WHOLE_TRY_S = 20.0


async def deliver_webhooks(market: Market) -> None:
    while await enqueue_deliveries(market):
        pass
    while due := await due_deliveries(market):
        async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, follow_redirects=False) as http:
            await asyncio.gather(*(_deliver(market, http, item) for item in due))


async def _deliver(market: Market, http: httpx.AsyncClient, due: Due) -> None:
    """Whatever goes wrong with one delivery is its answer: the others of its batch are other people's."""
    try:
        async with asyncio.timeout(_WHOLE_TRY_S):
            status = await _send(http, due, market.policy.webhook_networks, market.clock.now_ms() // 1000)
        answer, delivered = f"status {status}", 200 <= status < 300
    except (httpx.HTTPError, TorgError, OSError, TimeoutError) as error:
        answer, delivered = str(error) or type(error).__name__, False
    except Exception as error:
        log.exception("webhook delivery %s", due.delivery_id)
        answer, delivered = f"not sent: {type(error).__name__}", False
    await record_answer(market, due.delivery_id, answer, delivered=delivered)


async def _send(http: httpx.AsyncClient, due: Due, networks: Sequence[str], now_s: int) -> int:
    target = target_of(due.url)
    check_target(target, networks)
    address = await allowed_address(target, networks)
    pinned = f"[{address}]" if address.version == 6 else str(address)
    headers = {
        "host": target.authority,
        "content-type": "application/json",
        "user-agent": "torg-webhooks/1",
        "webhook-id": due.delivery_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": sign_webhook(due.secret, due.delivery_id, now_s, due.body),
    }
    url = urlsplit(due.url)._replace(netloc=f"{pinned}:{target.port}").geturl()
    request = http.build_request("POST", url, content=due.body, headers=headers)
    request.extensions["sni_hostname"] = target.host  # the certificate must be the name's, not the address's
    response = await http.send(request, stream=True)
    await response.aclose()
    return response.status_code


async def allowed_address(target: Target, networks: Sequence[str]) -> Address:
    """Where to connect. Raises Forbidden as `check_addresses` does; OSError for a name that nobody knows."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]
    check_addresses(target, addresses, networks)
    return addresses[0]
