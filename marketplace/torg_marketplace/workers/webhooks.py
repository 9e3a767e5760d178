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
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from urllib.parse import urlsplit

import httpx

from torg_host.addresses import Address
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.webhooks import Due, Room, due_deliveries, enqueue_deliveries, record_answer
from torg_marketplace.rules.webhook_targets import Target, check_addresses, check_target, target_of
from torg_protocol.errors import TorgError
from torg_protocol.webhooks import sign_webhook

log = logging.getLogger(__name__)
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
_WHOLE_TRY_S = 20.0
_AT_ONCE, _OF_ONE_ACCOUNT, _SLOW_AT_ONCE = 64, 8, 4
_LIMITS = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=0)
_SLOW_FOR_S = 600.0
_LOOK_AGAIN_S = 1.0


class WebhookSender:
    """Sends what is due, many at once, and waits for no receiver before it sends to others. One that accepts and never answers costs time, which
    is its owner's alone: an account has so many tries under way at once, and all receivers that let one time out lately share a few.
    Knows these for as long as the process lives. One call of `deliver` at a time."""

    def __init__(self) -> None:
        self._under_way: dict[asyncio.Task[None], Due] = {}
        self._slow_until_s: dict[str, float] = {}  # by webhook

    async def deliver(self, market: Market) -> None:
        """Until nothing is due and nothing under way; looks for new events meanwhile."""
        try:
            while True:
                while await enqueue_deliveries(market):
                    pass
                await self._begin(market)
                if not self._under_way:
                    return
                ended, _ = await asyncio.wait(self._under_way, timeout=_LOOK_AGAIN_S, return_when="FIRST_COMPLETED")
                self._forget(ended)
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
            self._under_way.clear()

    @cached_property
    def _http(self) -> httpx.AsyncClient:
        """With the first delivery: to read the machine's certificates holds everybody up, for longer than many looks for something due take. It
        keeps no connection, so that nothing of it has to be closed."""
        return httpx.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS, trust_env=False)

    async def _begin(self, market: Market) -> None:
        while len(self._under_way) < _AT_ONCE and (due := await due_deliveries(market, self._room())):
            for item in due:
                self._under_way[asyncio.create_task(self._try(market, item))] = item

    def _room(self) -> Room:
        now_s = asyncio.get_running_loop().time()
        self._slow_until_s = {hook: until_s for hook, until_s in self._slow_until_s.items() if until_s > now_s}
        sent = self._under_way.values()
        return Room(
            tries=_AT_ONCE - len(sent),
            of_account=_OF_ONE_ACCOUNT,
            under_way=Counter(item.account for item in sent),
            of_slow=max(0, _SLOW_AT_ONCE - sum(item.webhook_id in self._slow_until_s for item in sent)),
            slow=frozenset(self._slow_until_s),
        )

    def _forget(self, ended: set[asyncio.Task[None]]) -> None:
        for task in ended:
            del self._under_way[task]
            task.result()  # whatever fails here, a database that is away, is the loop's to try again

    async def _try(self, market: Market, due: Due) -> None:
        """Whatever goes wrong with one delivery is its answer: the others are other people's."""
        try:
            async with asyncio.timeout(_WHOLE_TRY_S):
                status = await _send(self._http, due, market.policy.webhook_networks, market.clock.now_ms() // 1000)
            answer, delivered = f"status {status}", 200 <= status < 300
        except (httpx.HTTPError, TorgError, OSError, TimeoutError) as error:
            answer, delivered = str(error) or type(error).__name__, False
            if isinstance(error, httpx.TimeoutException | TimeoutError):
                self._slow_until_s[due.webhook_id] = asyncio.get_running_loop().time() + _SLOW_FOR_S
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
