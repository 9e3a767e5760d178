"""Sign-In with Solana over the real API: what a wallet signs opens a session, and nothing else does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solders.keypair import Keypair

from tests.support.actors import join, spec
from tests.support.api_server import ServedWorld, served_world
from torg_marketplace.flow.sign_in import SignIn
from torg_protocol.accounts import Scope
from torg_protocol.errors import Invalid
from torg_protocol.sign_in import CHALLENGE_LIFETIME_S, SignInMessage


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedWorld]:
    async with served_world(tmp_path) as opened:
        yield opened


async def a_message(http: httpx.AsyncClient, key: Keypair, **wanted: Any) -> str:
    answer = await http.post("/v1/siws/messages", json={"address": str(key.pubkey()), **wanted})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["message"])


async def signed_in(http: httpx.AsyncClient, key: Keypair, message: str) -> httpx.Response:
    signature = str(key.sign_message(message.encode()))
    return await http.post("/v1/siws/sessions", json={"message": message, "signature": signature})


async def test_a_wallet_signs_in_and_its_page_acts_for_the_account(served: ServedWorld) -> None:
    await join(served.world)
    key = served.client.key
    async with served.http() as http:
        message = await a_message(http, key, scopes=["jobs:read", "jobs:write"], session_s=600)
        session = (await signed_in(http, key, message)).json()

    assert message.splitlines()[:5] == [
        "localhost wants you to sign in with your Solana account:",
        str(key.pubkey()),
        "",
        "Sign in to Torg. This moves no money and signs no job.",
        "",
    ]
    assert message.splitlines()[-3:] == [
        "- urn:torg:session:600",
        "- urn:torg:scope:jobs:read",
        "- urn:torg:scope:jobs:write",
    ]
    assert (session["account"], session["scopes"]) == (str(key.pubkey()), ["jobs:read", "jobs:write"])
    job = await served.client.submit(spec())
    async with served.bearer(session["token"]) as page:
        assert (await page.get("/v1/jobs")).json()["jobs"][0]["job_id"] == job.job_id
        assert (await page.get("/v1/data")).json()["code"] == "api_key_scope"
        assert (await page.post("/v1/keys", json={})).json()["code"] == "wallet_needed"
        unpaid = await page.post("/v1/jobs", json={"spec": spec()})  # it can spend nothing by itself
        assert unpaid.status_code == 409, unpaid.text
        served.world.clock.time_ms += 601_000
        assert (await page.get("/v1/jobs")).json()["code"] == "api_key_expired"


async def test_a_message_is_good_once_also_after_its_session_was_ended(served: ServedWorld) -> None:
    key = served.client.key
    async with served.http() as http, served.wallet() as wallet:
        message = await a_message(http, key)
        session = (await signed_in(http, key, message)).json()
        assert (await signed_in(http, key, message)).json()["code"] == "sign_in_replayed"
        assert (await wallet.delete(f"/v1/keys/{session['key_id']}")).status_code == 200
        again = await signed_in(http, key, message)
        assert (again.status_code, again.json()["code"]) == (401, "sign_in_replayed")
    async with served.bearer(session["token"]) as page:
        assert (await page.get("/v1/jobs")).json()["code"] == "api_key_revoked"


async def test_a_message_expires(served: ServedWorld) -> None:
    async with served.http() as http:
        message = await a_message(http, served.client.key)
        served.world.clock.time_ms += CHALLENGE_LIFETIME_S * 1000
        late = await signed_in(http, served.client.key, message)
    assert (late.status_code, late.json()["code"]) == (401, "sign_in_expired")


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("localhost wants", "evil.example wants", "sign_in_not_issued"),
        ("Chain ID: localnet", "Chain ID: mainnet", "sign_in_not_issued"),
        ("session:3600", "session:86400", "sign_in_not_issued"),
        ("scope:jobs:read", "scope:jobs:write", "sign_in_not_issued"),
        ("URI: http://localhost", "URI: http://localhost/x", "sign_in_not_issued"),
        ("scope:jobs:read", "scope:jobs:all", "sign_in_malformed"),
        ("Version: 1", "Version: 2", "sign_in_malformed"),
        ("moves no money", "moves all money", "sign_in_malformed"),
        ("Nonce: ", "Nonce: 0", "sign_in_malformed"),
        ("\nURI", "\n\nURI", "sign_in_malformed"),
        ("Issued At: 20", "Issued At: 2099-99-99T00:00:00Z20", "sign_in_malformed"),
    ],
)
async def test_a_changed_message_opens_nothing_although_the_wallet_signed_it(
    served: ServedWorld, old: str, new: str, code: str
) -> None:
    async with served.http() as http:
        message = await a_message(http, served.client.key)
        assert old in message
        refused = await signed_in(http, served.client.key, message.replace(old, new, 1))
    assert refused.json()["code"] == code


async def test_only_the_wallet_of_the_message_signs_in(served: ServedWorld) -> None:
    async with served.http() as http:
        message = await a_message(http, served.client.key)
        stranger = await signed_in(http, Keypair(), message)
        other = await http.post("/v1/siws/sessions", json={"message": message, "signature": "1" * 64})
        wrong = await http.post("/v1/siws/sessions", json={"message": message, "signature": "O" * 64})
        nobody = await http.post("/v1/siws/messages", json={"address": "1" * 40})
        phished = await http.post("/v1/siws/messages", json={"address": "1" * 32, "domain": "evil.example"})
    assert stranger.json()["code"] == other.json()["code"] == "sign_in_signature_invalid"
    assert (wrong.status_code, nobody.json()["code"]) == (422, "address_invalid")
    assert (phished.status_code, phished.json()["code"]) == (422, "sign_in_domain_unknown")


def test_pages_elsewhere_are_named_by_the_operator() -> None:
    office = SignIn.at("https://Market.example:8443/", ("app.example", "localhost:3000"), b"secret")
    assert office.domains == ("market.example:8443", "app.example", "localhost:3000")
    assert office.origins == ["https://app.example", "http://localhost:3000"]


MESSAGE = SignInMessage(
    domain="app.example",
    address="1" * 32,
    uri="https://app.example",
    chain_id="mainnet",
    nonce="0" * 64,
    issued_s=1_800_000_000,
    expires_s=1_800_000_300,
    session_s=3_600,
    scopes=(Scope.JOBS_READ,),
)


@given(st.text(max_size=40), st.integers(0, len(MESSAGE.text)), st.integers(0, 40))
def test_what_is_read_is_what_was_written_and_anything_else_is_refused(text: str, at: int, dropped: int) -> None:
    assert SignInMessage.parse(MESSAGE.text) == MESSAGE
    changed = MESSAGE.text[:at] + text + MESSAGE.text[at + dropped :]
    parsed = None
    with contextlib.suppress(Invalid):
        parsed = SignInMessage.parse(changed)
    assert parsed is None or parsed.text == changed
