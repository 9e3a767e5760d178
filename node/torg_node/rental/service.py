"""Every rental of this node: accepted, watched, stopped, paid, closed.

A task per running rental watches container and cap; one loop watches the chain for all: a closing vault, a cap that ends, what is
to be captured. Both go on from the book after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from torg_node.allocation import Claim, NoRoom
from torg_node.executors.errors import ExecutorError
from torg_node.executors.port import Handle
from torg_node.rental.book import RentalEntry
from torg_node.rental.container import CannotRun, RentalContainer, RentalHost, container_name, why_ended
from torg_node.rental.terms import check_spec, check_terms
from torg_node.rental.vaults import CAPTURE_BEFORE_EXPIRY_S, RentalMoney
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict, Forbidden, Invalid, NotFound, TorgError, Unavailable
from torg_protocol.ids import LeaseId
from torg_protocol.jobspec import JobSpec
from torg_protocol.rentals import (
    RENTAL_ID_PATTERN,
    CloseConsent,
    RentalEnd,
    RentalState,
    RentalTerms,
    RentalView,
    SignedRentalOffer,
    StartRental,
)

log = logging.getLogger(__name__)
_FILES_WITHIN_MS = 600_000  # for the client's files to come
_KEEP_FILES_MS = 7 * 86_400_000
_LONGEST_GRACE_MS = 10_000
_LOOK_EVERY_S = 10.0
_TICK_S = 0.5
_END_HEARD_MS = 1_000


@dataclass
class _Live:
    """A rental that needs this host. The first reason to stop counts."""

    container: RentalContainer
    files_came: asyncio.Event = field(default_factory=asyncio.Event)
    stop_requested: asyncio.Event = field(default_factory=asyncio.Event)
    stop_reason: RentalEnd | None = None
    ran_ms: int = 0  # useful time at which the container was last seen running
    task: asyncio.Task[None] | None = None

    def request_stop(self, reason: RentalEnd) -> None:
        if self.stop_reason is None:
            self.stop_reason = reason
            self.stop_requested.set()


class Rentals:
    """`run` it beside the agent, in its event loop. What clients may call raises TorgErrors for them."""

    def __init__(
        self,
        host: RentalHost,
        money: RentalMoney,
        offer: Callable[[], SignedRentalOffer],
        *,
        max_unpaid: int,
        is_paused: Callable[[], bool],
        now_ms: Callable[[], int],
    ) -> None:
        self._host, self._book, self._money, self._offer = host, host.book, money, offer
        self._max_unpaid, self._is_paused, self._now_ms = max_unpaid, is_paused, now_ms
        self._live: dict[str, _Live] = {}
        self._is_operator = False
        self._accepting = asyncio.Lock()
        self._vault_locks: dict[str, asyncio.Lock] = {}

    # --- for the agent ----------------------------------------------------------------------------------------------

    def held(self) -> tuple[frozenset[LeaseId], frozenset[str]]:
        """Reservations and containers that belong to rentals: not to be cleared away at start."""
        live = self._book.live()
        containers = (container_name(entry.id) for entry in live if entry.handle is not None)
        return frozenset(LeaseId(entry.id) for entry in live), frozenset(containers)

    def stop(self, rental_id: str, reason: RentalEnd) -> None:
        """For what is not a live rental this does nothing."""
        if rental_id in self._live:
            self._live[rental_id].request_stop(reason)

    async def stop_all(self) -> None:
        for live in self._live.values():
            live.request_stop(RentalEnd.HOST)
        await asyncio.gather(*(live.task for live in self._live.values() if live.task), return_exceptions=True)

    async def run(self) -> None:
        """Until cancelled; then detaches: containers go on, and the next agent on this folder takes them over."""
        for entry in self._book.live():
            self._spawn(entry)
        try:
            while True:
                await self._look_at_money()
                await asyncio.sleep(min(_LOOK_EVERY_S, self._offer().offer.interval_ms / 2000))
        finally:
            tasks = [live.task for live in self._live.values() if live.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- for clients ------------------------------------------------------------------------------------------------

    def offer(self) -> SignedRentalOffer:
        """Raises Unavailable `rental_not_ready` until this node is an operator on chain."""
        if not self._is_operator:
            raise Unavailable(
                "this node has no operator config on chain yet; its log says why",
                code="rental_not_ready",
                hint="try again in a minute; its owner may have to send its key a little SOL",
            )
        return self._offer()

    def check_room(self, spec: JobSpec, client: str) -> None:
        """Whether this could start now. Raises Conflict `no_room`, `node_paused`; Invalid `rental_unsupported`."""
        offer = self.offer().offer
        check_spec(spec, offer.isolation, own_root=offer.own_root)
        if self._is_paused():
            raise Conflict("the node's owner takes no further work now", code="node_paused", hint="try again later")
        try:
            self._host.reservations.check_room(Claim.of(client, spec))
        except NoRoom as error:
            raise _no_room(error) from error

    async def start(self, request: StartRental, client: str) -> RentalView:
        """Safe to repeat. Raises Conflict, Invalid, Forbidden with the reason not to."""
        terms = request.terms
        if client != terms.client or not terms.is_signed_by(client, request.signature):
            raise Forbidden("the terms are not signed by who sends them", code="terms_not_signed", field="signature")
        if re.fullmatch(RENTAL_ID_PATTERN, terms.rental_id) is None:
            raise Invalid("not a rental's id", code="rental_id_invalid", field="rental_id", value=terms.rental_id)
        async with self._accepting:
            known = self._book.entry(terms.rental_id)
            if known is None:
                await self._accept(request)
            elif known.terms != terms:
                raise Conflict(
                    "another rental has this id", code="rental_exists", field="rental_id", value=terms.rental_id
                )
        return self.view(terms.rental_id, client)

    def view(self, rental_id: str, client: str) -> RentalView:
        entry = self._of(rental_id, client)
        needs = entry.state is RentalState.PREPARING and entry.terms.spec.workspace is not None
        live = self._live.get(rental_id)
        return RentalView(
            rental_id=entry.id,
            state=entry.state,
            node_signature=entry.terms.sign(self._money.key),
            needs_workspace=needs and live is not None and not live.files_came.is_set(),
            started_at_ms=entry.handle.started_at_ms if entry.handle else None,
            useful_ms=self._useful_ms(entry),
            cap=entry.cap.cap,
            captured=entry.captured,
            end=entry.end,
            exit_code=entry.exit_code,
            detail=entry.detail,
            outputs=entry.outputs,
        )

    async def raise_cap(self, rental_id: str, cap: SignedCap, client: str) -> RentalView:
        """A lower cap than the one held changes nothing: messages may overtake each other."""
        entry = self._of(rental_id, client)
        if cap.cap > entry.cap.cap or (cap.cap == entry.cap.cap and cap.valid_until_s > entry.cap.valid_until_s):
            await self._money.check(entry.terms, cap, known=True)
            self._book.raise_cap(rental_id, cap)
        return self.view(rental_id, client)

    def stop_for(self, rental_id: str, client: str) -> RentalView:
        self._of(rental_id, client)
        self.stop(rental_id, RentalEnd.STOPPED)
        return self.view(rental_id, client)

    def container(self, rental_id: str, client: str | None = None) -> RentalContainer:
        """Where its logs and outputs are. Without `client`, for those who name a digest that only the client was told."""
        entry = self._book.entry(rental_id) if client is None else self._of(rental_id, client)
        if entry is None:
            raise _unknown(rental_id)
        return RentalContainer(self._host, entry.terms)

    def entry(self, rental_id: str) -> RentalEntry:
        found = self._book.entry(rental_id)
        if found is None:
            raise _unknown(rental_id)
        return found

    def files_came(self, rental_id: str) -> None:
        if rental_id in self._live:
            self._live[rental_id].files_came.set()

    async def agree_to_close(self, vault: str, blockhash: str, client: str) -> CloseConsent:
        """Captures what is due, then lets the client take the rest at once. Raises Conflict `rental_running`, `rental_unpaid`."""
        state = await self._money.chain.existing_vault(vault)
        if str(state.depositor) != client:
            raise Forbidden("this vault is somebody else's", code="vault_not_yours", field="vault", value=vault)
        async with self._accepting:
            entry = self._book.by_vault(vault)
            captured = state.settled if entry is None else await self._settle(entry)
            signature = await self._money.agree_to_close(vault, blockhash)
            self._book.agreed_to_close(vault)
        return CloseConsent(signature=signature, captured=captured)

    # --- accepting --------------------------------------------------------------------------------------------------

    async def _accept(self, request: StartRental) -> None:
        terms = request.terms
        check_terms(terms, request.cap, self.offer().offer, self._now_ms())
        if self._book.has_agreed_to_close(terms.vault):
            raise Conflict(
                "this node has agreed to the vault's closing",
                code="vault_closing",
                field="vault",
                value=terms.vault,
                hint="open another one",
            )
        self.check_room(terms.spec, terms.client)
        await self._money.check(terms, request.cap)
        rental = LeaseId(terms.rental_id)
        try:
            self._host.reservations.reserve(rental, Claim.of(terms.client, terms.spec))
        except NoRoom as error:
            raise _no_room(error) from error
        try:
            self._book.add(terms, request.signature, request.cap)
        except TorgError:
            self._host.reservations.release(rental)
            raise
        self._spawn(self.entry(terms.rental_id))

    def _of(self, rental_id: str, client: str) -> RentalEntry:
        entry = self._book.entry(rental_id)
        if entry is None or entry.terms.client != client:
            raise _unknown(rental_id)
        return entry

    # --- running ----------------------------------------------------------------------------------------------------

    def _spawn(self, entry: RentalEntry) -> None:
        container = RentalContainer(self._host, entry.terms)
        container.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        live = self._live[entry.id] = _Live(container)
        if entry.terms.spec.workspace is None or container.workspace.exists():
            live.files_came.set()
        live.task = asyncio.create_task(self._serve(entry.id, live), name=entry.id)
        live.task.add_done_callback(lambda _: self._live.pop(entry.id, None))

    async def _serve(self, rental_id: str, live: _Live) -> None:
        """From the book's state to the end. Only cancellation (the agent detaches) leaves it open."""
        entry = self.entry(rental_id)
        handle = entry.handle
        try:
            if handle is None:
                handle = await self._begin(entry, live)
            elif not await self._host.executor.reattach(handle):
                raise CannotRun("the container is gone")
            live.container.follow(handle)
            await self._watch(rental_id, handle, live)
        except asyncio.CancelledError:
            await live.container.detach()
            raise
        except (CannotRun, ExecutorError) as error:
            log.warning("%s: %s", rental_id, error)
            self._end(rental_id, live.stop_reason or RentalEnd.START_FAILED, detail=str(error))
        except Exception as error:
            log.exception("%s failed", rental_id)
            self._end(rental_id, RentalEnd.HOST, detail=type(error).__name__)
        await live.container.clean_up(handle)

    async def _begin(self, entry: RentalEntry, live: _Live) -> Handle:
        waiting = [asyncio.create_task(event.wait()) for event in (live.files_came, live.stop_requested)]
        try:
            await asyncio.wait(waiting, timeout=_FILES_WITHIN_MS / 1000, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if live.stop_reason is not None:
            raise CannotRun("stopped before it ran")
        if not live.files_came.is_set():
            raise CannotRun("the client's files did not come")
        image = await live.container.prepare()
        return await live.container.start(self.entry(entry.id), image)

    async def _watch(self, rental_id: str, handle: Handle, live: _Live) -> None:
        """Until the container has ended: by itself, because somebody asked, or because the cap covers no more."""
        ending = asyncio.create_task(self._host.executor.wait(handle))
        try:
            while not ending.done():
                live.ran_ms = self._now_ms() - handle.started_at_ms
                left_ms = self._left_ms(self.entry(rental_id))
                if left_ms <= 0:
                    live.request_stop(self._why_at_end(self.entry(rental_id)))
                if live.stop_reason is not None:
                    await self._host.executor.stop(handle, self._grace_ms(self.entry(rental_id).terms))
                    break
                stopping = asyncio.create_task(live.stop_requested.wait())
                await asyncio.wait(
                    {ending, stopping}, timeout=min(_TICK_S, left_ms / 1000), return_when=asyncio.FIRST_COMPLETED
                )
                stopping.cancel()
            ended = await ending
        finally:
            ending.cancel()
        entry = self.entry(rental_id)
        useful_ms = min(ended.finished_at_ms - ended.started_at_ms, self._until_ms(entry))
        outputs = await live.container.collect()
        self._end(
            rental_id,
            why_ended(ended, live.stop_reason),
            useful_ms=max(0, useful_ms),
            exit_code=ended.code,
            detail=ended.detail,
            outputs=outputs,
        )

    def _end(self, rental_id: str, end: RentalEnd, *, useful_ms: int = 0, detail: str = "", **more: object) -> None:
        log.info("%s: ended (%s) after %d ms", rental_id, end, useful_ms)
        values = {"exit_code": None, "outputs": None, **more}
        self._book.ended(rental_id, end=end, useful_ms=useful_ms, detail=detail, now_ms=self._now_ms(), **values)  # type: ignore[arg-type]

    def _until_ms(self, entry: RentalEntry) -> int:
        return entry.terms.rate.works_until_ms(entry.cap.cap, entry.terms.max_amount)

    def _left_ms(self, entry: RentalEntry) -> int:
        """Until it must be asked to stop: its grace is within what is covered."""
        if entry.handle is None:
            return 1
        return self._until_ms(entry) - self._grace_ms(entry.terms) - (self._now_ms() - entry.handle.started_at_ms)

    def _grace_ms(self, terms: RentalTerms) -> int:
        return min(_LONGEST_GRACE_MS, terms.interval_ms // 4)

    def _why_at_end(self, entry: RentalEntry) -> RentalEnd:
        at_budget = self._until_ms(entry) >= entry.terms.rate.covered_ms(entry.terms.max_amount)
        return RentalEnd.BUDGET if at_budget else RentalEnd.NO_CAP

    def _useful_ms(self, entry: RentalEntry) -> int:
        """Never more than what this node would work for: what ran on while the agent was dead is given away."""
        if entry.state is not RentalState.RUNNING:
            return entry.useful_ms
        live = self._live.get(entry.id)
        return max(0, min(live.ran_ms, self._until_ms(entry))) if live else 0

    def _earned_ms(self, entry: RentalEntry) -> int:
        """What can be captured without taking a moment too much: the end of a container is heard of a little later than it is."""
        return max(0, self._useful_ms(entry) - (_END_HEARD_MS if entry.state is RentalState.RUNNING else 0))

    # --- money ------------------------------------------------------------------------------------------------------

    async def _look_at_money(self) -> None:
        if not self._is_operator:
            self._is_operator = await _tried(self._money.become_operator())
        if self._is_operator:
            for entry in self._book.unclosed():
                await _tried(self._look_at(entry))

    async def _look_at(self, entry: RentalEntry) -> None:
        vault = await self._money.chain.vault(entry.terms.vault)
        is_live = entry.state in {RentalState.PREPARING, RentalState.RUNNING}
        if is_live and (vault is None or vault.close_at != 0):
            self.stop(entry.id, RentalEnd.VAULT_CLOSING)
            return  # what is due is captured when it has ended, which is a moment off; the grace is an hour at least
        if vault is None:
            self._book.closed(entry.id)
            RentalContainer(self._host, entry.terms).delete_files()
            return
        self._book.captured(entry.id, vault.settled)
        rate, useful_ms = entry.terms.rate, self._earned_ms(entry)
        earned, due = rate.amount(useful_ms), rate.due(useful_ms, entry.cap.cap)
        if earned - vault.settled >= self._max_unpaid:
            self.stop(entry.id, RentalEnd.UNPAID)
        expires_soon = entry.cap.valid_until_s < await self._money.chain.unix_time_s() + CAPTURE_BEFORE_EXPIRY_S
        is_over = entry.ended_at_ms is not None and (
            due == earned or self._now_ms() - entry.ended_at_ms > 2 * entry.terms.interval_ms
        )
        if due > vault.settled and (
            due - vault.settled >= self._max_unpaid // 2 or vault.close_at or expires_soon or is_over
        ):
            await self._capture(entry)
        if entry.ended_at_ms is not None and self._now_ms() - entry.ended_at_ms > _KEEP_FILES_MS:
            RentalContainer(self._host, entry.terms).delete_files()

    async def _capture(self, entry: RentalEntry) -> int:
        """One at a time per vault: two at once would be harmless, and one of the fees wasted."""
        async with self._vault_locks.setdefault(entry.terms.vault, asyncio.Lock()):
            entry = self.entry(entry.id)
            due = entry.terms.rate.due(self._earned_ms(entry), entry.cap.cap)
            settled = await self._money.capture(entry, due)
            self._book.captured(entry.id, settled)
        return settled

    async def _settle(self, entry: RentalEntry) -> int:
        if entry.ended_at_ms is None:
            raise Conflict(
                "the rental runs", code="rental_running", field="rental_id", value=entry.id, hint="stop it first"
            )
        earned = entry.terms.rate.amount(entry.useful_ms)
        if entry.cap.cap < earned:
            raise Conflict(
                "what was worked is more than the cap covers",
                code="rental_unpaid",
                field="cap",
                value=entry.cap.cap,
                hint=f"raise it to {earned}, or wait for the vault's grace period",
            )
        return await self._capture(entry)


def _no_room(error: NoRoom) -> Conflict:
    return Conflict(
        f"the node has no room now: {error}", code="no_room", field="spec.resources", hint="try again later"
    )


async def _tried(work: Awaitable[object]) -> bool:
    """Whether it was done. What one rental meets holds up no other, and whatever an RPC node answers, the agent lives on."""
    try:
        await work
    except TorgError as error:
        log.warning("rentals: %s", error)
    except Exception:
        log.exception("rentals could not be looked at; trying again")
    else:
        return True
    return False


def _unknown(rental_id: str) -> NotFound:
    return NotFound("there is no such rental of yours here", code="rental_unknown", field="rental_id", value=rental_id)
