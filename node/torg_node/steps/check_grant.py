"""Check the grant: signatures, price, capacity; then the client's vault, read from the chain by this node itself."""

from __future__ import annotations

import asyncio
import shutil

from torg_chain.errors import ChainUnavailable
from torg_host import overlay
from torg_node.allocation import NoRoom
from torg_node.grant_check import NodeFacts, Refusal, overlap_with, why_not, why_not_vault
from torg_node.lease import Declined, Lease
from torg_node.money import exposure
from torg_node.owner import local_time
from torg_node.owner_rules import why_not as why_not_wanted
from torg_node.proofs import publish
from torg_protocol.errors import TorgError
from torg_protocol.messages import Accepted, SignedGrant
from torg_protocol.states import LeaseState

_DISK_RESERVE_BYTES = 512 << 20  # the host keeps this much, whatever a job asks for
_LEAVING_WITHIN_S, _LOOK_AGAIN_S = 20.0, 0.1


class CheckGrant:
    name = "check the grant"

    async def do(self, lease: Lease) -> None:
        """What is known here without asking anybody. Raises Declined."""
        node = lease.node
        if node.journal.has_said(lease.id, ["accepted"]):
            return
        if node.journal.is_paused:
            raise Declined("its owner has paused this node", "paused")
        wanted_for_ms, now = lease.grant.max_duration_ms, local_time(node.now_ms())
        if (unwanted := why_not_wanted(node.settings.rules, lease.spec, wanted_for_ms, now)) is not None:
            raise Declined(unwanted[1], unwanted[0])
        if (reason := why_not(lease.signed, _facts(lease))) is not None:
            raise Declined(reason.detail, reason.code)
        if lease.grant.gang is not None and (lack := overlay.why_not()) is not None:
            raise Declined(f"it cannot join a gang: {lack}", "gang_unavailable")
        if (proof := overlap_with(lease.signed, _running(lease))) is not None:
            kept = publish(proof, node.settings.proofs_path)
            raise Declined(f"its range is promised to another lease already: {kept.name}", "commitment_overlaps")
        free = shutil.disk_usage(node.settings.data).free
        if free < lease.spec.resources.disk + _DISK_RESERVE_BYTES:
            raise Declined(f"this host's disk is nearly full: {free} bytes free", "disk_full")

    async def undo(self, lease: Lease) -> None:
        """Nothing was begun."""


class CheckVault:
    name = "check the client's vault"

    async def do(self, lease: Lease) -> None:
        """Accepts the grant, or raises Declined. A lease that was accepted before a restart is not asked about again."""
        if lease.node.journal.has_said(lease.id, ["accepted"]):
            return
        if (reason := await _vault_reason(lease)) is not None:
            raise Declined(reason.detail, reason.code)
        await _reserve(lease)
        await lease.say(Accepted(), then=LeaseState.PREPARING)

    async def undo(self, lease: Lease) -> None:
        """An answer that was given stays given."""


def _facts(lease: Lease) -> NodeFacts:
    node = lease.node
    return NodeFacts(
        node=lease.grant.node,
        marketplace=node.settings.marketplace_key,
        network=node.settings.network,
        offer=node.offer(),
        min_vault_grace_s=node.settings.min_vault_grace_s,
        exposure=exposure(node.journal),
        now_ms=node.now_ms(),
    )


async def _reserve(lease: Lease) -> None:
    """The marketplace counts a lease's room as free once it has reported; here its container may still be on its way out. A grant that
    comes meanwhile waits for that: to decline it would keep its job from this node for a minute."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _LEAVING_WITHIN_S
    while True:
        try:
            lease.node.reservations.reserve(lease.id, lease.claim)
        except NoRoom as error:
            if loop.time() > until or not _somebody_leaves(lease):
                raise Declined(str(error), "no_room") from error
            await asyncio.sleep(_LOOK_AGAIN_S)
        else:
            return


def _somebody_leaves(lease: Lease) -> bool:
    journal = lease.node.journal
    others = (entry.signed.grant.lease_id for entry in journal.open_leases())
    return any(journal.has_said(other, ["reported", "released"]) for other in others if other != lease.id)


def _running(lease: Lease) -> list[SignedGrant]:
    """Grants whose leases run here now: their ranges are whole."""
    journal, live = lease.node.journal, {LeaseState.PREPARING, LeaseState.RUNNING}
    return [
        entry.signed
        for entry in journal.open_leases()
        if entry.state in live
        and entry.signed.grant.lease_id != lease.id
        and not journal.has_said(entry.signed.grant.lease_id, ["exited"])
    ]


async def _vault_reason(lease: Lease) -> Refusal | None:
    try:
        mint = lease.node.settings.network.mint
        vault = await lease.node.chain.vault(lease.grant.commitment.vault, mint=mint)
        return why_not_vault(lease.grant, vault, _facts(lease))
    except ChainUnavailable as error:
        return Refusal(error.code, f"the client's vault cannot be checked now: {error.message}")
    except TorgError as error:
        return Refusal(error.code, f"the client's vault: {error.message}")
