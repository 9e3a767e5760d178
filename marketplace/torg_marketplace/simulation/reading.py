"""What parties read, asked as the API asks: a node what its grant names before it starts, a client in the end what became of its jobs and its money."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from torg_marketplace.flow.blobs import may_read_blob
from torg_marketplace.flow.statements import statement
from torg_marketplace.flow.unit import Unit
from torg_marketplace.flow.vaults import refresh_vault, vault_view
from torg_marketplace.flow.views import job_view
from torg_marketplace.simulation.client import SimulatedClient
from torg_marketplace.simulation.promises import Parties
from torg_marketplace.simulation.world import World
from torg_protocol.api import JobView, Statement, StatementFigures
from torg_protocol.ids import Digest, LeaseId
from torg_protocol.states import JobState, LeaseState

_PAGE = 7  # lines of a statement, so that it has several pages
_FIGURES = ("free", "held", "owed", "credit", "in_vault")


async def seen_in_the_end(parties: Parties) -> list[str]:
    """When all is decided and paid."""
    found = []
    for client in parties.clients:
        await refresh_vault(parties.world.market, client.vault)  # deposits that nobody has looked for yet
    async with parties.world.market.reading() as unit:
        for client in parties.clients:
            for job_id in client.jobs:
                view = await job_view(unit, client.account, job_id)
                found += [*_job(parties, view), *[problem async for problem in _results(parties, unit, client, view)]]
            found += [problem async for problem in _money(parties.world, unit, client)]
    return found


def _job(parties: Parties, view: JobView) -> Iterator[str]:
    """The client is shown what its nodes said, and what it paid."""
    if view.final_amount != sum(lease.amount for lease in view.leases):
        yield f"{view.job_id} cost {view.final_amount}, by its leases {[lease.amount for lease in view.leases]}"
    for lease in view.leases:
        truth = parties.node(lease.node).truth.get(lease.lease_id)
        if truth is not None and (lease.exit_code, lease.newest_checkpoint) != (truth.exit_code, truth.checkpoint):
            yield f"{lease.lease_id} ended with {truth.exit_code} after {truth.checkpoint}, its client is shown {lease}"


async def _results(parties: Parties, unit: Unit, client: SimulatedClient, view: JobView) -> AsyncIterator[str]:
    """Whoever paid has what was made for it, nobody else has; what was not paid for stays sealed."""
    paid = [lease for lease in view.leases if lease.state is LeaseState.VERIFIED and not lease.rank]
    made = {lease.lease_id: _output_of(parties, lease.node, lease.lease_id) for lease in view.leases}
    shown = [output.digest for output in view.outputs]
    if view.state is JobState.SUCCEEDED and (not paid or shown != [made[paid[-1].lease_id]]):
        yield f"{view.job_id} succeeded, its node made {[made[lease.lease_id] for lease in paid]}, its client is shown {shown}"
    if parties.world.keeps_house:
        return  # it may be thrown away by now
    others = [other.account for other in parties.clients if other is not client]
    given = [blob.digest for _, blob in view.spec.blobs()]
    for node_id in dict.fromkeys(lease.node for lease in view.leases):
        for digest in dict.fromkeys([*given, *shown]):
            is_its_own = (digest, node_id) in parties.world.blobs.sent_at_ms
            if not is_its_own and await may_read_blob(unit, node_id, digest):
                yield f"{view.job_id} is over, and {node_id} may still read {digest}"
    for digest in shown:
        if not await may_read_blob(unit, client.account, digest):
            yield f"{view.job_id}: its client has paid for {digest}, and may not read it"
        for other in others:
            if await may_read_blob(unit, other, digest):
                yield f"{view.job_id}: {other} may read {digest}"
    for lease in view.leases:
        digest_made = made[lease.lease_id]
        is_sealed = lease.state in {LeaseState.REJECTED, LeaseState.INCONCLUSIVE} and digest_made not in shown
        if is_sealed and digest_made is not None and await may_read_blob(unit, client.account, digest_made):
            yield f"{lease.lease_id} is {lease.state}, and its client may read what it made"


def _output_of(parties: Parties, node_id: str, lease_id: LeaseId) -> Digest | None:
    truth = parties.node(node_id).truth.get(lease_id)
    return None if truth is None else truth.output


async def _money(world: World, unit: Unit, client: SimulatedClient) -> AsyncIterator[str]:
    """Its vault as its owner is shown it, and the statement of it, in two halves and by pages: neither loses a line, nor has one twice."""
    view, on_chain = await vault_view(unit, client.account, client.vault), world.chain.finalized[client.vault]
    if (view.chain_balance, view.chain_settled, view.unsettled) != (on_chain.balance, on_chain.settled, 0):
        yield f"{client.vault} is shown as {view}, on the chain it is {on_chain.balance}, {on_chain.settled} settled"
    until_ms = world.clock.time_ms + 1
    query = "SELECT at_ms FROM postings ORDER BY at_ms"
    moments = [int(at_ms) for (at_ms,) in world.database.execute(query)]
    half_ms = moments[len(moments) // 2] if moments else until_ms
    before = await _pages(unit, client, 0, half_ms)
    after = await _pages(unit, client, half_ms, until_ms)
    if before[-1].closing != after[0].opening:
        yield f"{client.vault} closes with {before[-1].closing}, and opens with {after[0].opening}"
    for pages in (before, after):
        moved = [line.moved for page in pages for line in page.lines]
        for name in _FIGURES:
            opening, closing = getattr(pages[0].opening, name), getattr(pages[-1].closing, name)
            if opening + sum(getattr(each, name) for each in moved) != closing:
                yield f"{client.vault}: {name} was {opening}, is {closing}, and its lines say {[getattr(each, name) for each in moved]}"
    last: StatementFigures = after[-1].closing
    if last.in_vault != on_chain.balance or last.owed or last.held:
        yield f"{client.vault} holds {on_chain.balance}, and its statement says {last}"


async def _pages(unit: Unit, client: SimulatedClient, since_ms: int, until_ms: int) -> list[Statement]:
    pages, cursor = list[Statement](), None
    while not pages or cursor is not None:
        page = await statement(
            unit, client.account, client.vault, since_ms=since_ms, until_ms=until_ms, cursor=cursor, limit=_PAGE
        )
        pages.append(page)
        cursor = page.next_cursor
    return pages
