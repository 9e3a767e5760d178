"""Puts the parts of direct rental together for one node, and listens on the address that its owner chose."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from aiohttp import web
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_chain.rpc import ChainClient
from torg_chain.vault import find_config
from torg_node.executors.port import Capabilities, Executor
from torg_node.executors.probes import OWN_ROOT_PROBE
from torg_node.offer import levels
from torg_node.rental.api import RentalApi
from torg_node.rental.book import RentalBook
from torg_node.rental.container import RentalHost
from torg_node.rental.service import Rentals
from torg_node.rental.vaults import RentalMoney
from torg_node.reservation import Reservations
from torg_node.settings import Settings
from torg_protocol.errors import Unavailable
from torg_protocol.ids import NodeId
from torg_protocol.offers import Inventory
from torg_protocol.rentals import RentalOffer, SignedRentalOffer

log = logging.getLogger(__name__)


class RentalServer:
    """`address` is host and port as bound, once `listening` is set."""

    def __init__(self, settings: Settings, rentals: Rentals, book: RentalBook) -> None:
        self._settings, self.rentals, self._book = settings, rentals, book
        self.listening = asyncio.Event()
        self.address = ""

    async def run(self) -> None:
        """Until cancelled. Raises Unavailable `rental_address_taken`."""
        host, _, port = (self._settings.rental_address or "").rpartition(":")
        runner = web.AppRunner(RentalApi(self.rentals).application(), access_log=None)
        await runner.setup()
        try:
            await self._listen(web.TCPSite(runner, host, int(port)))
            if self.listening.is_set():
                self.address = "{}:{}".format(*runner.addresses[0][:2])
                log.info("rentals: http://%s", self.address)
            await self.rentals.run()
        finally:
            await runner.cleanup()
            self._book.close()

    async def _listen(self, site: web.TCPSite) -> None:
        """An address that is taken costs a node of a marketplace the rentals only: those that run are still watched."""
        try:
            await site.start()
            self.listening.set()
        except OSError as error:
            problem = Unavailable(
                f"cannot listen for rentals: {error.strerror}",
                code="rental_address_taken",
                field="rental_address",
                value=self._settings.rental_address,
            )
            if not self._settings.marketplace_url:
                raise problem from error
            log.error("%s", problem)  # noqa: TRY400 - it is said, and the node lives on


def make_rental_server(
    settings: Settings,
    keypair: Keypair,
    executor: Executor,
    capabilities: Capabilities,
    inventory: Inventory,
    reservations: Reservations,
    chain: ChainClient,
    is_paused: Callable[[], bool],
) -> RentalServer:
    """The node's own operator config takes the place of the marketplace's; all else of the network is as it is pinned."""
    config, _ = find_config(settings.network.program_pubkey, keypair.pubkey())
    network = settings.network.model_copy(update={"operator_config": str(config)})
    book = RentalBook(settings.journal_path)
    host = RentalHost(settings.data / "rentals", executor, reservations, book, settings)
    money = RentalMoney(
        chain, network, keypair, Pubkey.from_string(settings.payout_address), settings.min_vault_grace_s
    )

    def offer() -> SignedRentalOffer:
        made = RentalOffer(
            node=NodeId(str(keypair.pubkey())),
            genesis_hash=network.genesis_hash,
            program_id=network.program_id,
            mint=network.mint,
            decimals=network.decimals,
            price_per_gpu_hour=settings.price_per_gpu_hour,
            interval_ms=settings.rental_interval_s * 1000,
            min_grace_s=settings.min_vault_grace_s,
            isolation=levels(capabilities.isolation),
            own_root=settings.own_root and OWN_ROOT_PROBE in capabilities.verified,
            executor=capabilities.executor,
            gpu_class=inventory.gpu_class,
            gpus=len(inventory.gpus),
            slots=settings.slots,
            issued_at_ms=_now_ms(),
        )
        return SignedRentalOffer(offer=made, signature=made.sign(keypair))

    rentals = Rentals(host, money, offer, max_unpaid=settings.max_unpaid, is_paused=is_paused, now_ms=_now_ms)
    return RentalServer(settings, rentals, book)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
