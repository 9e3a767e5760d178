"""Webhooks, from an event to a verified delivery: signed, tried again, replayed, and never into a private network."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from tests.support.actors import join, spec
from tests.support.api_server import ServedWorld, served_world
from tests.support.scripted_server import Answer, Request, ScriptedServer, scripted_server
from tests.support.waiting import until
from torg_host.addresses import is_public
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.webhooks import PAUSES_S, Room, due_deliveries, enqueue_deliveries, record_answer
from torg_marketplace.rules.policy import MarketPolicy
from torg_marketplace.rules.webhook_targets import check_target, target_of
from torg_marketplace.storage.webhook_models import DeliveryRow
from torg_marketplace.workers import webhooks as webhooks_worker
from torg_marketplace.workers.webhooks import WebhookSender, allowed_address
from torg_protocol.errors import Forbidden, TorgError, Unauthorized
from torg_protocol.webhooks import sign_webhook, verify_webhook

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "webhooks.md"


async def deliver_webhooks(market: Market) -> None:
    await WebhookSender().deliver(market)


async def test_a_look_that_finds_nothing_to_send_reads_no_certificates(tmp_path: Path) -> None:
    """Each second of every marketplace, and everybody waits meanwhile."""
    sender = WebhookSender()
    async with served_world(tmp_path) as served:
        await sender.deliver(served.world.market)
    assert "_http" not in vars(sender)


class Receiver:
    def __init__(self, server: ScriptedServer, statuses: list[int]) -> None:
        self.server, self.statuses = server, statuses

    @property
    def url(self) -> str:
        return f"{self.server.url}/hook?x=1"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """Answers with the next status of `statuses`, 200 when there is none."""
    statuses: list[int] = []

    def script(_: Request) -> Answer:
        return Answer(statuses.pop(0) if statuses else 200, b"x" * 1000)

    async with scripted_server(script) as server:
        yield Receiver(server, statuses)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedWorld]:
    async with served_world(tmp_path, policy=MarketPolicy(webhook_networks=("127.0.0.0/8",))) as served:
        await join(served.world)
        yield served


@asynccontextmanager
async def hooked(
    served: ServedWorld, url: str, **fields: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, Any]]]:
    async with served.bearer((await served.api_key()).secret) as http:
        answer = await http.post("/v1/webhooks", json={"url": url, **fields})
        assert answer.status_code == 201, answer.text
        yield http, answer.json()


async def cancelled_job(http: Any) -> str:
    job = (await http.post("/v1/jobs", json={"spec": spec(limits={"max_duration": "1h", "max_cost": "1"})})).json()
    await http.post(f"/v1/jobs/{job['job_id']}/cancel")
    return str(job["job_id"])


def deliveries(receiver: Receiver, secret: str, now_s: int) -> list[Any]:
    requests = receiver.server.seen("POST", "/hook?x=1")
    return [verify_webhook(secret, request.headers, request.body, now_s=now_s) for request in requests]


async def test_each_move_of_a_job_is_told_once_in_order_and_signed(served: ServedWorld, receiver: Receiver) -> None:
    async with hooked(served, receiver.url) as (http, made):
        job_id = await cancelled_job(http)
        await deliver_webhooks(served.world.market)
        await deliver_webhooks(served.world.market)

        told = deliveries(receiver, made["secret"], served.world.clock.now_ms() // 1000)
        assert sorted((item.event.data["from"] or "", item.event.data["state"]) for item in told) == [
            ("", "queued"),
            ("queued", "cancelled"),
        ]
        assert {item.job_id for item in told} == {job_id}
        listed = (await http.get(f"/v1/webhooks/{made['webhook']['webhook_id']}/deliveries")).json()["deliveries"]
        assert [item["state"] for item in listed] == ["delivered", "delivered"]


async def test_what_is_not_taken_is_tried_again_later_and_later_then_given_up_and_can_be_replayed(
    served: ServedWorld, receiver: Receiver
) -> None:
    async with hooked(served, receiver.url) as (http, made):
        path = f"/v1/webhooks/{made['webhook']['webhook_id']}"
        await http.post("/v1/jobs", json={"spec": spec(limits={"max_duration": "1h", "max_cost": "1"})})
        receiver.statuses.extend([500, 302, *[503] * (len(PAUSES_S) - 1)])
        for pause_s in PAUSES_S:
            await deliver_webhooks(served.world.market)
            served.world.clock.advance(pause_s * 1000 - 1)
            await deliver_webhooks(served.world.market)  # not yet
            served.world.clock.advance(1)
        await deliver_webhooks(served.world.market)
        (given_up,) = (await http.get(f"{path}/deliveries")).json()["deliveries"]
        assert (given_up["state"], given_up["tries"], given_up["answer"]) == ("failed", len(PAUSES_S) + 1, "status 503")
        ids = {request.headers["webhook-id"] for request in receiver.server.seen("POST", "/hook?x=1")}
        assert ids == {given_up["delivery_id"]}

    path = f"/v1/webhooks/{made['webhook']['webhook_id']}"
    async with served.bearer((await served.api_key(name="later", expires_in_s=31_536_000)).secret) as http:
        assert (await http.post(f"{path}/replay", json={})).json() == {"deliveries": 1}
        await deliver_webhooks(served.world.market)
        (again,) = (await http.get(f"{path}/deliveries")).json()["deliveries"]
        assert (again["state"], again["tries"]) == ("delivered", 1)


@asynccontextmanager
async def tarpit() -> AsyncIterator[tuple[str, set[asyncio.StreamWriter]]]:
    """Accepts, reads, and never answers; and the connections that it holds."""
    held: set[asyncio.StreamWriter] = set()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.add(writer)
        try:
            while await reader.read(4096):
                pass
        finally:
            held.discard(writer)
            writer.close()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", held


async def test_receivers_that_never_answer_keep_nobody_elses_messages_waiting(
    served: ServedWorld, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would for ten seconds each: here, for ever, so that whoever waits for them never comes to the other one."""
    monkeypatch.setattr(webhooks_worker, "_TIMEOUT", httpx.Timeout(None))
    monkeypatch.setattr(webhooks_worker, "_WHOLE_TRY_S", 3_600.0)
    sending = None
    async with tarpit() as (url, held), served.bearer((await served.api_key(name="slow")).secret) as slow:
        for number in range(20):
            assert (await slow.post("/v1/webhooks", json={"url": f"{url}/{number}"})).status_code == 201
        for _ in range(3):
            await cancelled_job(slow)
        quick_key = await served.api_key(account="acct_quick")
        async with served.bearer(quick_key.secret) as quick:
            assert (await quick.post("/v1/webhooks", json={"url": receiver.url})).status_code == 201
            sending = asyncio.create_task(WebhookSender().deliver(served.world.market))
            try:
                await until(lambda: len(held) == 8, within_s=60)
                await cancelled_job(quick)  # after the others have begun to wait
                await until(lambda: len(receiver.server.seen("POST", "/hook?x=1")) == 2, within_s=60)
                assert (len(held), sending.done()) == (8, False)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)


async def test_who_let_a_try_time_out_shares_a_few_tries_with_others_like_it(
    served: ServedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks_worker, "_WHOLE_TRY_S", 0.2)
    sender = WebhookSender()
    async with tarpit() as (url, held), served.bearer((await served.api_key(name="slow")).secret) as slow:
        for number in range(6):
            assert (
                await slow.post("/v1/webhooks", json={"url": f"{url}/{number}", "kinds": ["job"]})
            ).status_code == 201
        await cancelled_job(slow)
        await sender.deliver(served.world.market)  # twelve messages, none taken
        await until(lambda: not held, within_s=60)
        monkeypatch.setattr(webhooks_worker, "_WHOLE_TRY_S", 3_600.0)
        monkeypatch.setattr(webhooks_worker, "_TIMEOUT", httpx.Timeout(None))
        served.world.clock.advance(PAUSES_S[0] * 1000)
        sending = asyncio.create_task(sender.deliver(served.world.market))
        try:
            await until(lambda: len(held) == 4, within_s=60)
            async with served.world.market.reading() as unit:
                claimed = [row for row in await unit.session.scalars(select(DeliveryRow)) if row.tries == 2]
            assert len(claimed) == len(held) == 4
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def test_others_events_and_events_from_before_are_not_told(served: ServedWorld, receiver: Receiver) -> None:
    async with served.bearer((await served.api_key(name="before")).secret) as before:
        await cancelled_job(before)
    async with (
        hooked(served, receiver.url, kinds=["receipt"]) as (http, made),
        served.bearer((await served.api_key(account="acct_other")).secret) as other,
    ):
        await cancelled_job(other)
        await cancelled_job(http)
        await deliver_webhooks(served.world.market)
        assert receiver.server.seen("POST", "/hook?x=1") == []
        answer = await other.get(f"/v1/webhooks/{made['webhook']['webhook_id']}/deliveries")
        assert answer.json()["code"] == "webhook_unknown"
        assert (await http.post("/v1/webhooks", json={"url": receiver.url})).json()["code"] == "webhook_exists"
        assert (await http.delete(f"/v1/webhooks/{made['webhook']['webhook_id']}")).status_code == 200
        assert (await http.get("/v1/webhooks")).json()["webhooks"] == []


async def test_a_webhook_made_while_many_events_wait_is_told_none_of_them(
    served: ServedWorld, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torg_marketplace.flow.webhooks._EVENTS_AT_ONCE", 2)
    async with hooked(served, f"{receiver.url}&first", kinds=["job"]) as (
        http,
        _,
    ):  # from now on events are kept for somebody
        for _ in range(3):
            await cancelled_job(http)
        made = (await http.post("/v1/webhooks", json={"url": receiver.url, "kinds": ["job"]})).json()
        page = await http.get(f"/v1/webhooks/{made['webhook']['webhook_id']}/deliveries")
        assert page.json()["deliveries"] == []
        await deliver_webhooks(served.world.market)
        page = await http.get(f"/v1/webhooks/{made['webhook']['webhook_id']}/deliveries")
        assert page.json()["deliveries"] == []


async def test_without_the_operators_leave_nothing_goes_to_a_private_address(
    tmp_path: Path, receiver: Receiver
) -> None:
    """An address is refused at once; a name, which may change what it stands for, at each try."""
    named = receiver.url.replace("http://127.0.0.1", "https://localhost")
    async with served_world(tmp_path) as served:
        await join(served.world)
        async with hooked(served, named) as (http, made):
            refused = await http.post("/v1/webhooks", json={"url": receiver.url.replace("http://", "https://")})
            assert (refused.status_code, refused.json()["code"]) == (403, "webhook_address_private")
            await cancelled_job(http)
            await deliver_webhooks(served.world.market)
            listed = (await http.get(f"/v1/webhooks/{made['webhook']['webhook_id']}/deliveries")).json()["deliveries"]
        assert all("webhook_address_private" in item["answer"] for item in listed)
        assert receiver.server.seen("POST", "/hook?x=1") == []


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://ci.example:99999/", "webhook_url_invalid"),
        ("https://ci.example:0/", "webhook_url_invalid"),
        ("https://ci.example:port/", "webhook_url_invalid"),
        ("https://ci..example/", "webhook_url_invalid"),
        (f"https://{'a' * 64}.example/", "webhook_url_invalid"),
        ("https://[::1/", "webhook_url_invalid"),
        ("https://:443/", "webhook_url_invalid"),
        ("http://ci.example/", "webhook_not_https"),
        ("https://127.0.0.1/", "webhook_address_private"),
        ("https://2130706433/", "webhook_address_private"),
        ("https://0x7f.1/", "webhook_address_private"),
        ("https://017700000001/", "webhook_address_private"),
        ("https://[::ffff:10.0.0.1]/", "webhook_address_private"),
        ("https://[fe80::1%25eth0]/", "webhook_address_private"),
        ("https://169.254.169.254/latest/meta-data", "webhook_address_private"),
    ],
)
def test_what_can_never_be_sent_to_is_refused_when_it_is_written(url: str, code: str) -> None:
    with pytest.raises(TorgError) as refused:
        check_target(target_of(url), ())
    assert (refused.value.code, refused.value.field) == (code, "url")
    assert refused.value.hint


async def test_a_delivery_that_breaks_the_sender_is_tried_again_later_and_holds_up_nobody_elses(
    served: ServedWorld, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """URLs are checked when they are written, so this is what nobody has thought of: it once stopped everybody's webhooks."""
    send = webhooks_worker.target_of

    def broken(url: str) -> Any:
        if "/breaks" in url:
            raise ValueError("Port out of range 0-65535")
        return send(url)

    monkeypatch.setattr(webhooks_worker, "target_of", broken)
    async with hooked(served, receiver.url) as (http, made):
        bad = (await http.post("/v1/webhooks", json={"url": f"{receiver.server.url}/breaks"})).json()["webhook"]
        await cancelled_job(http)
        await deliver_webhooks(served.world.market)
        listed = [
            (await http.get(f"/v1/webhooks/{webhook_id}/deliveries")).json()["deliveries"]
            for webhook_id in (made["webhook"]["webhook_id"], bad["webhook_id"])
        ]
    assert [[item["state"] for item in page] for page in listed] == [["delivered"] * 2, ["pending"] * 2]
    assert {item["answer"] for item in listed[1]} == {"not sent: ValueError"}


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::1",
        "fd00:ec2::254",
    ],
)
def test_these_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_these_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


async def test_one_private_address_of_a_name_is_enough_to_refuse_it_and_plain_http_is_for_opened_networks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answers(*addresses: str) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

    answers("8.8.8.8", "10.0.0.1")
    with pytest.raises(Forbidden) as refused:
        await allowed_address(target_of("https://two.example"), ())
    assert refused.value.code == "webhook_address_private"
    answers("8.8.8.8")
    assert str(await allowed_address(target_of("https://one.example"), ())) == "8.8.8.8"
    with pytest.raises(Forbidden) as refused:
        await allowed_address(target_of("http://one.example"), ())
    assert refused.value.code == "webhook_not_https"


def test_the_signature_is_that_of_the_standard_webhooks_specification() -> None:
    secret, message_id = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signature = sign_webhook(secret, message_id, 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_receiver_refuses_what_is_old_or_changed_and_the_pages_receiver_takes_what_is_sent(
    served: ServedWorld, receiver: Receiver
) -> None:
    async with hooked(served, receiver.url) as (http, made):
        await cancelled_job(http)
    await deliver_webhooks(served.world.market)
    request, now_s = receiver.server.seen("POST", "/hook?x=1")[0], int(time.time())
    for body, late_s, code in (
        (request.body + b" ", 0, "webhook_signature_invalid"),
        (request.body, 301, "webhook_stale"),
    ):
        with pytest.raises(Unauthorized) as refused:
            verify_webhook(made["secret"], request.headers, body, now_s=now_s + late_s)
        assert refused.value.code == code

    (code_of_page,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(code_of_page, names)  # noqa: S102 - the page's own example
    assert names["verified"](made["secret"], request.headers, request.body) == json.loads(request.body)
    assert names["verified"](made["secret"], request.headers, request.body + b" ") is None


async def test_what_is_asked_for_again_while_it_is_sent_waits_no_day(served: ServedWorld, receiver: Receiver) -> None:
    async with hooked(served, receiver.url) as (http, made):
        path, market = f"/v1/webhooks/{made['webhook']['webhook_id']}", served.world.market
        await http.post("/v1/jobs", json={"spec": spec(limits={"max_duration": "1h", "max_cost": "1"})})
        await enqueue_deliveries(market)
        (sending,) = await due_deliveries(
            market, Room(tries=1, of_account=1, under_way={}, of_slow=1, slow=frozenset())
        )
        asked = await http.post(f"{path}/replay", json={"delivery_ids": [sending.delivery_id]})
        assert asked.json() == {"deliveries": 1}
        await record_answer(market, sending.delivery_id, "status 503", delivered=False)
        (waits,) = (await http.get(f"{path}/deliveries")).json()["deliveries"]
        assert waits["next_try_at_ms"] == market.clock.now_ms() + PAUSES_S[0] * 1000
