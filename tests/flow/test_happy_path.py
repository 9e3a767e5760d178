"""The whole story of a job: quoted, submitted, matched, executed, reported, paid, receipt in hand."""

from __future__ import annotations

from tests.support.actors import TUSD, join, make_client, spec
from tests.support.market import World
from torg_marketplace.flow.match import match_pending
from torg_marketplace.flow.settle import advance_settlements, settle_due
from torg_marketplace.flow.vaults import refresh_vault
from torg_protocol.states import JobState, LeaseState
from torg_protocol.usage import verify_receipt

MINUTE_MS = 60_000
STORY = [
    ("job", "queued"),
    ("job", "leased"),
    ("lease", "granted"),
    ("lease", "preparing"),
    ("lease", "running"),
    ("lease", "reported"),
    ("job", "verifying"),
    ("lease", "verified"),
    ("receipt", "verified"),
    ("job", "succeeded"),
]


async def test_a_job_from_quote_to_receipt(world: World) -> None:
    node = await join(world, price=3 * TUSD)
    client = await make_client(world, deposit=10 * TUSD)
    job_spec = spec(outputs=["model.bin"], limits={"max_duration": "1h"})

    # Quote: where, for how much.
    quote = await client.quote(job_spec)
    assert quote.feasible
    assert not quote.waiting
    assert quote.max_amount == 3 * TUSD

    # Submit: the job is queued, its maximum is held.
    job = await client.submit(job_spec, quote=quote)
    assert job.state is JobState.QUEUED

    # Match: one lease, signed; the node accepts, prepares and starts.
    assert await match_pending(world.market) == 1
    await node.accept()
    world.advance(seconds=5)  # the image is pulled; nobody pays for this
    await node.start()
    assert (await client.job(job.job_id)).leases[0].state is LeaseState.RUNNING

    # The container runs for 20 minutes, then outputs and report follow.
    world.advance(ms=20 * MINUTE_MS)
    await node.exit()
    world.advance(seconds=3)  # uploading: not billed either
    await node.ok(node.report(outputs={"model.bin": b"weights"}))

    # Done: 20 minutes of 3 tUSD per hour are 1 tUSD.
    job = await client.job(job.job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.final_amount == TUSD
    assert [output.path for output in job.outputs] == ["model.bin"]

    # The receipt holds by itself; the node adds its signature.
    node.read()
    (receipt,) = node.receipts
    assert verify_receipt(receipt, marketplace=world.market.public_key) == []
    assert (receipt.receipt.billed_ms, receipt.receipt.unbilled_ms) == (20 * MINUTE_MS, 0)
    await node.sign_receipt(receipt)
    (signed,) = await client.receipts(job.job_id)
    assert signed.node_signature is not None
    assert verify_receipt(signed, marketplace=world.market.public_key) == []

    # Settled: one capture on chain pays the node and the marketplace's fee of 2 %; the rest is the client's again.
    await settle_due(world.market, hurry=True)
    await advance_settlements(world.market)  # sent
    await advance_settlements(world.market)  # final
    assert sorted(world.chain.paid.values()) == [TUSD * 2 // 100, TUSD * 98 // 100]
    vault = await refresh_vault(world.market, client.vault)
    assert (vault.chain_balance, vault.chain_settled, vault.open_maximum) == (9 * TUSD, TUSD, 0)

    # What the client could follow live.
    assert [(event.kind, event.data.get("state")) for event in await client.events(job.job_id)] == STORY
