"""This node's standing ask, built from its settings, its inventory and what its executor proved, signed with its key."""

from __future__ import annotations

from typing import Literal

from solders.keypair import Keypair

from torg_node.executors.port import Capabilities
from torg_node.executors.probes import EGRESS_PROBE, OWN_ROOT_PROBE
from torg_node.settings import Settings
from torg_protocol.ids import NodeId
from torg_protocol.offers import Inventory, Offer, SignedOffer

# What a stronger level also satisfies.
_LEVELS = ("sandbox", "container", "gvisor")


def make_offer(
    settings: Settings,
    keypair: Keypair,
    inventory: Inventory,
    capabilities: Capabilities,
    sequence: int,
    collateral: str | None = None,
) -> SignedOffer:
    offer = Offer(
        node=NodeId(str(keypair.pubkey())),
        sequence=sequence,
        marketplace=settings.marketplace_key,
        price_per_gpu_hour=settings.price_per_gpu_hour,
        spot_price_per_gpu_hour=settings.spot_price_per_gpu_hour,
        slots=settings.slots,
        inventory=inventory,
        executor=capabilities.executor,
        isolation=levels(capabilities.isolation),
        verified_probes=capabilities.verified,
        payout_address=settings.payout_address,
        max_unpaid=settings.max_unpaid,
        region=settings.region,
        egress=_egress(settings) if EGRESS_PROBE in capabilities.verified else (),
        own_root=settings.own_root and OWN_ROOT_PROBE in capabilities.verified,
        collateral=collateral,
        gpu_slices=settings.gpu_slices if inventory.gpus else 1,
    )
    return SignedOffer(offer=offer, signature=offer.sign(keypair))


def _egress(settings: Settings) -> tuple[Literal["allow", "open"], ...]:
    match settings.egress:
        case "none":
            return ()
        case "allow":
            return ("allow",)
        case "open":
            return ("allow", "open")


def levels(isolation: str) -> tuple[str, ...]:
    if isolation not in _LEVELS:
        return (isolation,)
    return _LEVELS[: _LEVELS.index(isolation) + 1]
