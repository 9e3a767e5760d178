"""Direct rental with real processes, and no marketplace among them: to the end, either walks away, either is killed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.api_server import WalletAuth
from tests.support.rental import PRICE_PER_HOUR, DirectRental, direct_rental
from tests.support.small_market import TUSD, WAIT_FOR_GO, let_go
from tests.support.waiting import eventually
from torg_chain.rpc import ChainClient
from torg_node.rental.book import RentalEntry
from torg_node.rental.vaults import RentalMoney
from torg_protocol.money import cost
from torg_protocol.rentals import RentalEnd, RentalState

pytestmark = [pytest.mark.sandbox, pytest.mark.root]

LONG = ["python", "-c", "import time; print('once', flush=True); time.sleep(600)"]
SHORT = """
import os, pathlib, sys
print("hello", pathlib.Path("words.txt").read_text())
pathlib.Path(os.environ["TORG_OUTPUT_DIR"], "result.txt").write_text("done")
exec(WAIT_FOR_GO)
sys.exit(7)
""".replace("exec(WAIT_FOR_GO)", WAIT_FOR_GO)


def _price(ms: int) -> int:
    return cost(PRICE_PER_HOUR, 1, ms)


def _one_interval(rental: DirectRental) -> int:
    return _price(rental.interval_s * 1000) + 1


async def _running(rental: DirectRental, *, at_least_ms: int = 0) -> RentalEntry:
    """Waits for it; then lets the first minute of the vault's life pass."""

    async def runs() -> bool:
        entry = rental.entry()
        paid_for = _price(at_least_ms) + _one_interval(rental) - 1
        return entry is not None and entry.state is RentalState.RUNNING and entry.cap.cap >= paid_for

    await eventually(runs)
    async with ChainClient(rental.rpc_url) as chain:
        await chain.localnet("torg_advance_slots", [200])
    entry = rental.entry()
    assert entry is not None
    return entry


async def _ended(rental: DirectRental) -> RentalEntry:
    async def ended() -> bool:
        entry = rental.entry()
        return entry is not None and entry.state is RentalState.ENDED

    await eventually(ended)
    entry = rental.entry()
    assert entry is not None
    return entry


async def _refuses_what_is_malformed(rental: DirectRental) -> None:
    """Each with a stable code, and the node goes on: asked of the real process while it rents."""
    one, signer = f"/v1/rentals/{rental.row().rental_id}", WalletAuth(rental.wallet)
    nobody = WalletAuth(Keypair())
    async with httpx.AsyncClient(base_url=f"http://{rental.address}", trust_env=False, timeout=120) as http:

        async def said(method: str, path: str, auth: httpx.Auth | None = None, **options: Any) -> tuple[int, str]:
            answer = await http.request(method, path, auth=auth, **options)
            assert answer.headers["content-type"].startswith("application/problem+json"), answer.text
            problem = answer.json()
            assert problem["status"] == answer.status_code
            assert problem["type"] == f"urn:torg:error:{problem['code']}"
            return answer.status_code, problem["code"]

        assert await said("GET", one) == (401, "signature_missing")
        assert (await said("GET", one, nobody))[0] in {403, 404}  # somebody else's
        assert (await said("GET", "/v1/rentals/rent_nothing", signer))[0] == 404
        assert await said("GET", "/v1/nothing", signer) == (404, "not_found")
        assert await said("DELETE", one, signer) == (405, "http_error")
        for body in (b"", b"{", b"[]", b'{"terms": 1}', b"\xff\xfe", b'{"cap": null}'):
            for path in (
                "/v1/rentals",
                f"{one}/cap",
                "/v1/rental-question",
                f"/v1/vaults/{rental.row().vault}/closing",
            ):
                assert await said("POST", path, signer, content=body) == (422, "body_invalid"), (path, body)
        for offset in ("-1", "x", "1e3", "9" * 40):
            assert await said("GET", f"{one}/logs/stdout?offset={offset}", signer) == (422, "log_unknown"), offset
        assert await said("GET", f"{one}/logs/nothing", signer) == (422, "log_unknown")
        assert await said("PUT", f"{one}/workspace/sha256:{'0' * 64}", content=b"x") == (404, "workspace_unknown")
        assert await said("GET", f"{one}/outputs/sha256:{'0' * 64}") == (404, "outputs_unknown")
        assert (await said("POST", "/v1/rentals", signer, content=b"x" * (3 << 20)))[0] == 413
        once = http.build_request("GET", f"{one}/logs/stdout")
        next(signer.auth_flow(once))
        assert (await http.send(once)).status_code == 200
        again = await http.send(once)
        assert (again.status_code, again.json()["code"]) == (401, "signature_replayed")


async def test_a_rental_is_paid_by_the_second_and_the_rest_comes_back(tmp_path: Path) -> None:
    workspace, results = tmp_path / "workspace", tmp_path / "results"
    workspace.mkdir()
    (workspace / "words.txt").write_text("world")
    async with direct_rental(tmp_path, interval_s=20) as rental:
        options = [
            "--workspace",
            str(workspace),
            "-o",
            str(results),
            "--max-duration",
            "3m",
        ]  # of which it uses seconds
        client = await rental.renting(*options, command=["python", "-c", SHORT])
        await _running(rental)
        seen_s = time.monotonic()

        # The only slot is taken: a second one is told so before it has opened a vault.
        second = await rental.renting(command=LONG)
        assert await second.process.wait() == 125
        assert "no_room" in second.log.read_text()
        assert len(rental.rows()) == 1
        await _refuses_what_is_malformed(rental)
        ran_ms = int((time.monotonic() - seen_s) * 1000)  # and a moment before and after
        let_go(rental.node_folder)

        code, said = await client.ended()
        assert (code, said["end"], said["exit_code"]) == (7, "failed_exit", 7)
        assert (results / "result.txt").read_text() == "done"
        assert "hello world" in "".join(item["text"] for item in client.events if item.get("event") == "log")
        assert ran_ms <= said["useful_ms"] <= ran_ms + 20_000
        assert said["paid"] == _price(said["useful_ms"]) == await rental.tokens(rental.node_key.pubkey())
        assert said["paid"] + said["returned"] == _price(180_000)
        assert await rental.tokens(rental.wallet.pubkey()) == 20 * TUSD - said["paid"]

        # Ctrl-C ends the next one cleanly: stopped, paid, closed.
        client = await rental.renting(command=LONG)
        await _running(rental)
        client.interrupt()
        code, said = await client.ended()
        assert (code, said["end"]) == (130, "stopped")
        assert said["paid"] == _price(said["useful_ms"])
        assert await rental.tokens(rental.wallet.pubkey()) + await rental.tokens(rental.node_key.pubkey()) == 20 * TUSD


@pytest.mark.slow
async def test_the_client_walks_away_and_the_node_loses_one_interval_at_most(tmp_path: Path) -> None:
    async with direct_rental(tmp_path, interval_s=5) as rental:
        client = await rental.renting(command=LONG)
        await _running(rental, at_least_ms=2_000)
        await client.kill()
        row = rental.row()

        entry = await _ended(rental)
        assert entry.end is RentalEnd.NO_CAP
        assert _price(entry.useful_ms) - entry.cap.cap <= _one_interval(rental)  # all that the node lost

        async def is_paid() -> bool:
            return await rental.tokens(rental.node_key.pubkey()) == min(_price(entry.useful_ms), entry.cap.cap)

        await eventually(is_paid)
        # The client's next process knows what there is to get, and pays what it owes before it asks for the rest.
        _, closing = await rental.torg("rentals", "close", row.rental_id)
        assert closing["paid"] <= _price(entry.useful_ms)
        assert closing["paid"] + closing["returned"] == row.deposit
        assert await rental.tokens(rental.wallet.pubkey()) == 20 * TUSD - closing["paid"]

        # Or it takes its money back by the grace period, and says nothing: the node sees it on chain, stops, captures first.
        client = await rental.renting(command=LONG)
        await _running(rental)
        await rental.start_close(Pubkey.from_string(rental.row().vault))
        code, said = await client.ended()
        assert (code, said["end"]) == (1, "vault_closing")
        assert said["paid"] == _price(said["useful_ms"])
        assert await rental.tokens(rental.node_key.pubkey()) == closing["paid"] + said["paid"]


@pytest.mark.slow
async def test_killed_in_the_middle_both_go_on_and_nothing_runs_twice(tmp_path: Path) -> None:
    async with direct_rental(tmp_path, interval_s=20) as rental:
        code = "import time; print('once', flush=True); time.sleep(12)"
        client = await rental.renting(command=["python", "-c", code])
        await _running(rental)
        assert rental.node is not None
        await rental.node.kill()
        await rental.start_node()
        await client.kill()
        row = rental.row()
        client = await rental.process("rentals", "resume", row.rental_id)
        exit_code, said = await client.ended()

        assert (exit_code, said["end"], said["exit_code"]) == (0, "completed", 0)
        assert "".join(item["text"] for item in client.events if item.get("stream") == "stdout") == "once\n"
        assert said["paid"] == _price(said["useful_ms"]) <= _price(20_000)
        assert await rental.tokens(rental.wallet.pubkey()) == 20 * TUSD - said["paid"]


@pytest.mark.slow
async def test_the_node_walks_away_with_all_it_can_take_and_the_client_loses_one_interval_at_most(
    tmp_path: Path,
) -> None:
    async with direct_rental(tmp_path, interval_s=5) as rental:
        client = await rental.renting(command=LONG)
        entry = await _running(rental, at_least_ms=2_000)
        assert rental.node is not None
        await rental.node.kill()
        entry = rental.entry() or entry
        assert entry.handle is not None
        worked_ms = time.time_ns() // 1_000_000 - entry.handle.started_at_ms
        async with ChainClient(rental.rpc_url) as chain:
            money = await _money(rental, chain)
            await money.capture(entry, entry.cap.cap)  # not what was worked: the whole cap
        code, said = await client.ended()

        assert (code, said["returned"]) == (125, None)
        row = rental.row()
        assert row.cap - _price(worked_ms) <= _one_interval(rental)  # all that the client lost
        async with ChainClient(rental.rpc_url) as chain:
            await chain.localnet("torg_advance_clock", [3_700])
            await chain.localnet("torg_advance_slots", [1_600])
        _, closing = await rental.torg("rentals", "close", row.rental_id)
        assert (closing["paid"], closing["returned"]) == (entry.cap.cap, row.deposit - entry.cap.cap)
        assert await rental.tokens(rental.wallet.pubkey()) == 20 * TUSD - entry.cap.cap


async def _money(rental: DirectRental, chain: ChainClient) -> RentalMoney:
    key = rental.node_key
    return RentalMoney(chain, rental.row().network, key, key.pubkey(), 3_600)
