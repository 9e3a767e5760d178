"""Check the grant: signatures, price, capacity, and the client's vault, read from the chain by this node itself."""

from __future__ import annotations

import shutil

from torg_chain.errors import ChainUnavailable
from torg_chain.rpc import ChainClient
from torg_node.allocation import NoRoom
from torg_node.grant_check import NodeFacts, why_not, why_not_vault
from torg_node.lease import Declined, Lease
from torg_protocol.errors import TorgError
from torg_protocol.messages import Accepted
from torg_protocol.states import LeaseState

_DISK_RESERVE_BYTES = 512 << 20  # the host keeps this much, whatever a job asks for


class CheckGrant:
    name = "check the grant"

    async def do(self, lease: Lease) -> None:
        """Accepts it, or raises Declined. A lease that was accepted before a restart is not asked about again."""
        node = lease.node
        if node.journal.has_said(lease.id, ["accepted"]):
            return
        facts = NodeFacts(
            node=lease.grant.node,
            marketplace=node.settings.marketplace_key,
            network=node.settings.network,
            offer=node.offer(),
            min_vault_grace_s=node.settings.min_vault_grace_s,
            undecided_amount=node.journal.undecided_amount(),
            now_ms=node.now_ms(),
        )
        if (reason := why_not(lease.signed, facts)) is not None:
            raise Declined(reason)
        free = shutil.disk_usage(node.settings.data).free
        if free < lease.spec.resources.disk + _DISK_RESERVE_BYTES:
            raise Declined(f"this host's disk is nearly full: {free} bytes free")
        if (reason := await _vault_reason(lease, facts)) is not None:
            raise Declined(reason)
        try:
            node.reservations.reserve(lease.id, lease.claim)
        except NoRoom as error:
            raise Declined(str(error)) from error
        await lease.say(Accepted())
        lease.set_state(LeaseState.PREPARING)

    async def undo(self, lease: Lease) -> None:
        """An answer that was given stays given."""


async def _vault_reason(lease: Lease, facts: NodeFacts) -> str | None:
    try:
        async with ChainClient(facts.network.rpc_url) as chain:
            return why_not_vault(lease.grant, await chain.vault(lease.grant.commitment.vault), facts)
    except ChainUnavailable as error:
        return f"the client's vault cannot be checked now: {error.message}"
    except TorgError as error:
        return f"the client's vault: {error.message}"
