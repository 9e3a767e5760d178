"""The agent: one connection, one journal, and a task per lease.

Survives its own death: containers outlive it, the journal knows them, and everything that nobody acknowledged is said again.
Survives the marketplace's: leased work goes on, and results are delivered when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from typing import TYPE_CHECKING, assert_never

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_chain.rpc import ChainClient
from torg_node import __version__
from torg_node.blob_transfer import BlobTransfer
from torg_node.cache import Cache, forget_private_marks, names_in_use, trim, warm_names
from torg_node.clock import SteadyClock, wall_ms
from torg_node.execute import clean_up, execute
from torg_node.executors.port import Capabilities, Executor
from torg_node.hardware.sensors import Sensors
from torg_node.journal import Journal, LeaseEntry
from torg_node.kept import keep
from torg_node.lease import Lease, Node
from torg_node.link import Link
from torg_node.money import FEE_FACT, accruing, closes_too_soon, exposure, land_orders, look_at_captures
from torg_node.offer import make_offer
from torg_node.owner import OwnerWatch
from torg_node.proving import Proving
from torg_node.reservation import Reservations
from torg_node.settings import Settings
from torg_node.stake import COLLATERAL_FACT
from torg_node.standing import Standing
from torg_node.steps.open_secrets import forget_secrets
from torg_node.sweep import Sweeper
from torg_protocol.errors import TorgError
from torg_protocol.ids import LeaseId
from torg_protocol.messages import (
    Abandon,
    Acknowledge,
    GangMembersLeft,
    Granted,
    Heartbeat,
    HeldLease,
    Hello,
    OpenTunnel,
    OrderIssued,
    ReceiptIssued,
    ReceiptSigned,
    RefundIssued,
    Refused,
    SignedGrant,
    Stop,
    ToNode,
    UsageCountersigned,
    Welcome,
)
from torg_protocol.offers import Inventory, SignedOffer
from torg_protocol.proofs import ProofAsked, ProofChallenge, ProofJudged, ProofWanted
from torg_protocol.rentals import RentalEnd
from torg_protocol.states import EndReason, LeaseState
from torg_protocol.suspensions import NodeSuspended
from torg_protocol.usage import verify_receipt

if TYPE_CHECKING:
    from torg_node.rental.server import RentalServer
    from torg_node.tunnels import Tunnels

log = logging.getLogger(__name__)
_RESEND_EVERY_S = 5.0
_LOOK_AT_GPUS_EVERY_S, _LOOKS_IN_A_WINDOW = 10.0, 6
_MONEY_EVERY_S = 10.0
_EXPOSURE_EVERY_S = 1.0
_TRIM_EVERY_S = 60.0
_DAY_MS, _FORGET_EVERY_MS = 86_400_000, 3_600_000


class Agent:
    """Build it, then `run`. All methods belong to one event loop."""

    def __init__(
        self,
        settings: Settings,
        keypair: Keypair,
        journal: Journal,
        executor: Executor,
        capabilities: Capabilities,
        inventory: Inventory,
        reservations: Reservations,
        sensors: Sensors,
        clock: SteadyClock,
    ) -> None:
        self._settings, self._keypair, self._journal, self._executor = settings, keypair, journal, executor
        self._clock = clock
        self._inventory, self._capabilities, self._sensors = inventory, capabilities, sensors
        self._offer = self._new_offer()
        self._link = Link(
            settings.marketplace_url, keypair, self._hello, self._on_welcome, self._on_message, self._on_refused
        )
        self._blobs = BlobTransfer(settings.marketplace_url, keypair)
        self._chain = ChainClient(settings.network.rpc_url)
        self._node = Node(
            settings=settings,
            keypair=keypair,
            journal=journal,
            executor=executor,
            isolation=capabilities.isolation,
            blobs=self._blobs,
            cache=Cache(settings.cache_path, settings.cache_bytes),
            chain=self._chain,
            reservations=reservations,
            gpu_energy_mj=sensors.gpu_energy_mj,
            cpu_energy=sensors.cpu_energy,
            offer=lambda: self._offer.offer,
            send=self._link.send,
            now_ms=wall_ms,
            steady_ms=clock.now_ms,
        )
        self._standing = Standing(journal)
        self._proving = Proving(self._offer.offer.node, inventory, journal, self._link.send)
        self.rental = self._rental_server() if settings.rental_address is not None else None
        self._leases: dict[LeaseId, tuple[Lease, asyncio.Task[None]]] = {}
        self._tunnels: Tunnels | None = None  # with the first: SSH takes a sixth of an idle agent's memory
        self._heartbeat_s, self._heartbeats = 10.0, asyncio.Event()
        # To a marketplace; for a node without one: to whoever wants to rent it.
        self.connected = asyncio.Event()
        if self.rental is not None and not settings.marketplace_url:
            self.connected = self.rental.listening
        wake = self._heartbeats.set
        self._owner = OwnerWatch(settings.rules, journal, self._with_container, sensors.gpu_pids, wall_ms, wake)
        self.draining = False
        self._gpus_out = reservations.gpus_out()

    def _open_tunnel(self, message: OpenTunnel) -> None:
        if self._tunnels is None:
            from torg_node.tunnels import Tunnels

            self._tunnels = Tunnels(self._settings.marketplace_url, self._keypair, self._executor, self._lease)
        self._tunnels.open(message)

    def _rental_server(self) -> RentalServer:
        from torg_node.rental.server import make_rental_server  # a web server, for those who are rented directly

        node = self._node
        return make_rental_server(
            node.settings,
            node.keypair,
            node.executor,
            self._capabilities,
            self._inventory,
            node.reservations,
            node.chain,
            lambda: self._takes_no_work,
        )

    def _sweeper(self) -> Sweeper:
        settings = self._settings
        return Sweeper(self._chain, settings.network, self._keypair, self._journal, settings.data, wall_ms)

    async def run(self) -> None:
        """Until cancelled; then detaches: containers go on, and the next agent on this folder takes them over."""
        await self._take_over()
        try:
            async with asyncio.TaskGroup() as group:
                if self._settings.marketplace_url:
                    group.create_task(self._link.run(), name="link")
                    group.create_task(self._beat(), name="heartbeat")
                if self.rental is not None:
                    group.create_task(self.rental.run(), name="rentals")
                group.create_task(self._owner.run(), name="owner")
                group.create_task(self._watch_gpus(), name="gpus")
                group.create_task(self._resend(), name="resend")
                group.create_task(self._trim_cache(), name="cache")
                group.create_task(self._watch_money(), name="money")
                group.create_task(self._watch_exposure(), name="exposure")
                if self._settings.sweep is not None:
                    group.create_task(self._sweeper().run(self._settings.sweep), name="sweep")
        finally:
            tasks = [task for _, task in self._leases.values()]
            for task in tasks:
                task.cancel()
            closing = [self._tunnels.close()] if self._tunnels is not None else []
            await asyncio.gather(*tasks, *closing, return_exceptions=True)
            await self._proving.aclose()
            await self._blobs.aclose()
            await self._chain.aclose()

    @property
    def _takes_no_work(self) -> bool:
        is_unfit = 0 < len(self._gpus_out) == len(self._inventory.gpus)
        return self.draining or is_unfit or self._journal.is_paused or self._owner.reason is not None

    @property
    def is_connected(self) -> bool:
        return self._link.connected

    async def stop_leases(self) -> None:
        """Ends all leases (reason drained) and waits for their reports to be journalled."""
        self.draining = True
        for lease, _ in self._leases.values():
            lease.request_stop(EndReason.DRAINED, lease.stop_grace_ms)
        if self.rental is not None:
            await self.rental.rentals.stop_all()
        await asyncio.gather(*(task for _, task in self._leases.values()), return_exceptions=True)

    # --- leases -----------------------------------------------------------------------------------------------------

    async def _take_over(self) -> None:
        """Reaps what the journal does not know as running, then goes on with what it does. What was reserved for the reaped is free only when they
        are gone: another node of this host would give the same GPU away."""
        entries = self._journal.open_leases()
        held = {entry.signed.grant.lease_id for entry in entries}
        rented, rented_containers = self.rental.rentals.held() if self.rental else (frozenset(), frozenset())
        for name in await self._executor.reap(self._containers_of(entries) | rented_containers):
            log.warning("removed %s: no lease of this node knows it", name)
        self._node.reservations.keep_only(held | rented)
        forget_secrets(self._settings.data, frozenset(held))
        for entry in entries:
            self._spawn(entry.signed, entry)

    def _containers_of(self, entries: list[LeaseEntry]) -> frozenset[str]:
        """Names of those that the journal knows."""
        runs = [run for entry in entries for run in self._journal.tasks.runs(entry.signed.grant.lease_id)]
        handles = [entry.handle for entry in entries] + [run.handle for run in runs]
        return frozenset(handle.name for handle in handles if handle is not None)

    def _spawn(self, signed: SignedGrant, entry: LeaseEntry | None = None) -> None:
        if entry is None and not self._leases:
            self._clock.set()
        lease = Lease(self._node, signed)
        if entry is not None:
            lease.handle = entry.handle
            lease.stored_checkpoints = self._journal.checkpoints(lease.id)
            if entry.state is LeaseState.STOPPING and entry.reason is not None:
                lease.request_stop(entry.reason, lease.stop_grace_ms)
        task = asyncio.create_task(execute(lease), name=lease.id)
        self._leases[lease.id] = (lease, task)
        task.add_done_callback(lambda _: self._leases.pop(lease.id, None))

    def _with_container(self) -> list[Lease]:
        return [lease for lease, _ in self._leases.values() if lease.handle is not None]

    def _lease(self, lease_id: LeaseId) -> Lease | None:
        running = self._leases.get(lease_id)
        return None if running is None else running[0]

    async def _abandon(self, lease_id: LeaseId) -> None:
        """Everything of this lease goes from this host; nothing is said about it any more."""
        running = self._leases.get(lease_id)
        if running is not None:
            lease, task = running
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await clean_up(lease)
        self._journal.set_state(lease_id, LeaseState.REVOKED, EndReason.STALE)
        self._journal.forget_undecided(lease_id)
        self._journal.finish(lease_id)

    # --- the channel ------------------------------------------------------------------------------------------------

    def _new_offer(self) -> SignedOffer:
        sequence = self._journal.next_offer_sequence()
        collateral = self._journal.fact(COLLATERAL_FACT) or None
        return make_offer(self._settings, self._keypair, self._inventory, self._capabilities, sequence, collateral)

    def _hello(self, version: int) -> Hello:
        return Hello(
            protocol_version=version,
            node_version=__version__,
            offer=self._offer,
            draining=self._takes_no_work,
            leases=self._held(),
            warm=warm_names(self._node.cache),
            gpus_out=self._gpus_out,
        )

    def _held(self) -> tuple[HeldLease, ...]:
        return tuple(
            HeldLease(
                lease_id=entry.signed.grant.lease_id,
                fence=entry.signed.grant.fence,
                state=entry.state,
                reason=entry.reason,
            )
            for entry in self._journal.undecided_leases()
        )

    async def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.marketplace != self._settings.marketplace_key:
            log.error("somebody else answers at the marketplace's address: %s", welcome.marketplace)
            return
        for directive in welcome.leases:
            if directive.directive == "abandon":
                await self._abandon(directive.lease_id)
            else:
                self._journal.acknowledge(directive.lease_id, directive.acknowledged)
        with contextlib.suppress(sqlite3.OperationalError):  # on a full disk the fee of before will do
            self._journal.set_fact(FEE_FACT, str(welcome.fee_basis_points))
        self._heartbeat_s = welcome.heartbeat_ms / 1000
        self._heartbeats.set()
        self.connected.set()
        await self._send_unacknowledged()

    async def _on_message(self, message: ToNode) -> None:
        match message:
            case Granted():
                if self._journal.add_lease(message.signed):
                    self._spawn(message.signed)
            case Stop() | GangMembersLeft():
                _tell(self._lease(message.lease_id), message)
            case Abandon():
                await self._abandon(message.lease_id)
            case Acknowledge() | UsageCountersigned() | OrderIssued() | RefundIssued():
                keep(message, self._journal, self._settings, self._node.now_ms())
            case NodeSuspended():
                self._standing.take(message)
            case ReceiptIssued():
                await self._on_receipt(message)
            case OpenTunnel():
                self._open_tunnel(message)
            case Refused():
                await self._on_refused(message)
            case ProofWanted() | ProofChallenge() | ProofAsked() | ProofJudged():
                self._proving.take(message)
            case Welcome():
                log.warning("a second welcome on one connection")
            case _:
                assert_never(message)

    async def _on_receipt(self, message: ReceiptIssued) -> None:
        """Kept as the proof of what is owed; signed by this node too when it holds."""
        receipt = message.receipt.receipt
        if problems := verify_receipt(message.receipt, marketplace=self._settings.marketplace_key):
            log.error("%s: the receipt does not hold: %s", receipt.lease_id, "; ".join(problems))
            return
        self._journal.set_receipt(receipt.lease_id, message.receipt)
        await self._link.send(
            ReceiptSigned(
                lease_id=receipt.lease_id, receipt_digest=receipt.digest, signature=receipt.sign(self._keypair)
            )
        )

    async def _on_refused(self, refused: Refused) -> None:
        problem = refused.problem
        log.warning("refused: %s (%s) %s", problem.get("title"), problem.get("code"), problem.get("hint", ""))
        if problem.get("code") == "offer_stale":
            # The journal was lost or restored from a backup: go on above what the marketplace has seen.
            self._journal.set_offer_sequence(int(problem.get("offer_sequence", 0)))
            self._offer = self._new_offer()

    async def _beat(self) -> None:
        while True:
            self._heartbeats.clear()  # before: what changes while this one is sent asks for the next
            beat = Heartbeat(
                at_ms=wall_ms(),
                leases=self._held(),
                draining=self._takes_no_work,
                gpus_out=self._gpus_out,
                suspensions=self._standing.suspensions,
            )
            await self._link.send(beat)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await self._heartbeats.wait()

    async def _watch_gpus(self) -> None:
        """Takes broken GPUs out of service and sends their leases elsewhere; hot ones rest, and what runs there goes on. The
        marketplace is told at once; a node without a fit GPU asks for no work."""
        reservations = self._node.reservations
        every_s = min(_LOOK_AT_GPUS_EVERY_S, self._settings.heat_rest_after_s / _LOOKS_IN_A_WINDOW)
        while True:
            found = await asyncio.to_thread(self._sensors.look, frozenset(reservations.resting()))
            for uuid, reason in found.hot.items():
                if reservations.rest(uuid, reason):
                    log.error("%s takes no new lease: it %s", uuid, reason)
            for uuid in found.back:
                if reservations.back(uuid):
                    log.info("%s takes leases again: it has not been hot for a while", uuid)
            for uuid, reason in found.broken.items():
                if reservations.cordon(uuid, reason):
                    log.error("%s is out of service: %s", uuid, reason)
                self._stop_leases_on(uuid)
            if (out := reservations.gpus_out()) != self._gpus_out:
                self._gpus_out = out
                self._heartbeats.set()
            await asyncio.sleep(every_s)

    def _stop_leases_on(self, gpu_uuid: str) -> None:
        for lease_id in self._node.reservations.leases_on(gpu_uuid):
            if lease_id in self._leases:
                lease = self._leases[lease_id][0]
                lease.request_stop(EndReason.HOST_PROTECTION, lease.stop_grace_ms)
            elif self.rental is not None:
                self.rental.rentals.stop(lease_id, RentalEnd.HOST)

    async def _resend(self) -> None:
        """What was refused for now (a blob still on its way) or got lost is said again, in order."""
        while True:
            await asyncio.sleep(_RESEND_EVERY_S)
            await self._send_unacknowledged()

    async def _trim_cache(self) -> None:
        forgot_ms = 0
        while True:
            in_use = names_in_use(self._settings.journal_path)
            try:
                await trim(self._node.cache, self._executor.forget_image, in_use)
                await forget_private_marks(self._node.cache, self._executor.must_pull)
                if (days := self._settings.keep_history_days) and wall_ms() - forgot_ms > _FORGET_EVERY_MS:
                    forgot_ms = wall_ms()
                    self._journal.forget_old(forgot_ms - days * _DAY_MS)
            except (OSError, TorgError, sqlite3.OperationalError) as error:
                log.warning("more is kept than should be, for now: %s", error)
            await asyncio.sleep(_TRIM_EVERY_S)

    async def _watch_money(self) -> None:
        """What was captured is owed no more; overdue orders are landed."""
        while True:
            try:
                await self._look_at_money()
            except TorgError as problem:
                log.warning("money: %s", problem.message)
            except Exception:  # whatever an RPC node answers, the agent lives on
                log.exception("money could not be looked at; trying again")
            await asyncio.sleep(_MONEY_EVERY_S)

    async def _look_at_money(self) -> None:
        running = [lease for lease, _ in self._leases.values() if lease.started_at_ms is not None]
        if not running and not self._journal.orders() and not exposure(self._journal):
            return
        for lease in running:
            if await closes_too_soon(self._chain, lease.grant.commitment.vault):
                log.warning("%s: its client takes the vault back: it stops while it can still be paid", lease.id)
                lease.request_stop(EndReason.EXPOSURE_LIMIT, lease.stop_grace_ms)
        await look_at_captures(self._chain, self._settings, self._journal, now_ms=wall_ms())
        payout = Pubkey.from_string(self._settings.payout_address)
        overdue = wall_ms() - self._settings.land_orders_after_s * 1000
        network, key = self._settings.network, self._keypair
        for landing in await land_orders(
            self._chain, network, self._journal, payout=payout, fee_payer=key, older_than_ms=overdue
        ):
            if landing.signature is None:
                log.error("an order of vault %s was not landed: %s", landing.vault, landing.detail)
            else:
                log.warning("landed an order of vault %s: %s", landing.vault, landing.signature)

    async def _watch_exposure(self) -> None:
        """At the limit running leases stop, with their grace to write a checkpoint; new ones are declined while it lasts."""
        while True:
            await asyncio.sleep(_EXPOSURE_EVERY_S)
            running = [lease for lease, _ in self._leases.values() if lease.started_at_ms is not None]
            if not running:
                continue
            at_stake = exposure(self._journal) + sum(accruing(lease, self._clock.now_ms()) for lease in running)
            if at_stake < self._settings.max_unpaid:
                continue
            for lease in running:
                if lease.stop_reason is None and lease.exit is None:
                    log.warning("%s: %s base units are owed to this node: it stops working", lease.id, at_stake)
                    lease.request_stop(EndReason.EXPOSURE_LIMIT, lease.stop_grace_ms)

    async def _send_unacknowledged(self) -> None:
        for event in self._journal.unacknowledged():
            if not await self._link.send(event):
                return


def _tell(lease: Lease | None, message: Stop | GangMembersLeft) -> None:
    if lease is None:
        return
    match message:
        case Stop():
            lease.request_stop(message.reason, message.grace_ms)
        case GangMembersLeft():
            lease.go_on_without(message.ranks)
        case _:
            assert_never(message)
