"""Renting one node directly: its offer, a vault under its own operator config, a cap that rises by the interval, the rest back.

No marketplace is asked for anything. What this client can lose to the node is what its newest cap authorises beyond the work that
was done, one interval; it believes the node's clock only as far as its own allows. After a crash every step goes on from the journal.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg.config import ClientConfig
from torg.rental_journal import CLOSED, OPENING, RentalJournal, RentalRow
from torg.session_key import session_key
from torg.spec_file import SpecFile
from torg.transport import Transport
from torg_chain import vault_operations
from torg_chain.agreed_closing import assemble, closing_message
from torg_chain.errors import TransactionExpired, TransactionRejected
from torg_chain.network import LOCALNET_PROGRAM_ID, Network
from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.vault import SALT_WINDOW_SLOTS, find_config
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict, Forbidden, Invalid, NotFound, TorgError
from torg_protocol.ids import AccountId, NodeId, VaultAddress, new_id
from torg_protocol.jobspec import JobSpec
from torg_protocol.rentals import (
    CloseConsent,
    RentalCap,
    RentalOffer,
    RentalQuestion,
    RentalState,
    RentalTerms,
    RentalView,
    SignedRentalOffer,
    StartRental,
)
from torg_protocol.vault_messages import CapMessage, sign_message

CAP_VALID_S = 7_200  # a node works under a cap that is good for half an hour more, at least
_SALT_AGE_SLOTS = SALT_WINDOW_SLOTS - 150  # the vault can be closed a minute after it is opened, not ten
_FINALITY_SLOTS = 150
_SLOTS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Closing:
    """`returned` None: not yet, `detail` says when and how. Base units."""

    paid: int | None
    returned: int | None
    detail: str = ""


class NodeApi:
    """One node's rental calls. Raises what the node answers, and Unavailable `node_unreachable`."""

    def __init__(self, url: str, keypair: Keypair) -> None:
        self._url, self._transport = url.rstrip("/"), Transport(url.rstrip("/"), keypair, timeout_s=20.0, party="node")

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def offer(self) -> RentalOffer:
        """Signed by the node's key. Raises Forbidden `offer_not_signed`."""
        signed = await self._transport.ask(SignedRentalOffer, "GET", "/v1/rental-offer")
        if not signed.is_valid():
            raise Forbidden(
                "the offer is not signed by its node", code="offer_not_signed", field="node", value=self._url
            )
        return signed.offer

    async def ask(self, spec: JobSpec) -> None:
        """Raises Conflict or Invalid when the node would not take it now."""
        body = RentalQuestion(spec=spec).wire()
        await self._transport.request("POST", "/v1/rental-question", body=body, safe_to_repeat=True)

    async def start(self, request: StartRental) -> RentalView:
        return await self._ask("POST", "/v1/rentals", request.wire())

    async def view(self, rental_id: str) -> RentalView:
        return await self._ask("GET", f"/v1/rentals/{rental_id}", None)

    async def raise_cap(self, rental_id: str, cap: SignedCap) -> RentalView:
        return await self._ask("POST", f"/v1/rentals/{rental_id}/cap", RentalCap(cap=cap).wire())

    async def stop(self, rental_id: str) -> RentalView:
        return await self._ask("POST", f"/v1/rentals/{rental_id}/stop", {})

    async def log(self, rental_id: str, stream: str, offset: int) -> bytes:
        return await self._transport.content(f"/v1/rentals/{rental_id}/logs/{stream}", {"offset": str(offset)})

    async def send_workspace(self, rental_id: str, digest: str, archive: Path) -> None:
        url = f"{self._url}/v1/rentals/{rental_id}/workspace/{digest}"
        await self._transport.upload(url, archive, 0, archive.stat().st_size)

    async def fetch_outputs(self, rental_id: str, digest: str, size_bytes: int, file: IO[bytes]) -> None:
        await self._transport.download(f"{self._url}/v1/rentals/{rental_id}/outputs/{digest}", file, size_bytes)

    async def agree_to_close(self, vault: str, blockhash: str) -> CloseConsent:
        path = f"/v1/vaults/{vault}/closing"
        return await self._transport.ask(CloseConsent, "POST", path, body={"blockhash": blockhash}, safe_to_repeat=True)

    async def _ask(self, method: str, path: str, body: dict[str, object] | None) -> RentalView:
        return await self._transport.ask(RentalView, method, path, body=body, safe_to_repeat=True)


class Renting:
    """What this client does with one rental: a row of its journal, one node. Use it as a context manager."""

    def __init__(self, config: ClientConfig, keypair: Keypair, journal: RentalJournal, row: RentalRow) -> None:
        self.row, self._journal, self._keypair = row, journal, keypair
        self._session_key = session_key(config)
        self.node = NodeApi(row.url, keypair)
        self.chain = ChainClient(row.network.rpc_url)

    async def __aenter__(self) -> Renting:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.node.aclose()
        await self.chain.aclose()

    async def check_wallet(self, deposit_text: str) -> None:
        """Raises Conflict `wallet_too_small` before anything is sent."""
        tokens = await self.chain.token_balance(self._keypair.pubkey(), self.row.network.mint_pubkey)
        if tokens < self.row.deposit or not await self.chain.lamports(self._keypair.pubkey()):
            raise Conflict(
                f"the wallet does not hold the deposit of {deposit_text} and a little SOL for fees and rent",
                code="wallet_too_small",
                field="wallet",
                value=str(self._keypair.pubkey()),
                hint="a shorter --max-duration or a --max-cost makes it smaller; on a localnet: torg wallet faucet --rpc-url URL",
            )

    async def open_vault(self, grace_s: int) -> None:
        """Waits until it is finalized. The row is written before anything is sent."""
        row = self.row

        def write_down(salt: int, address: Pubkey) -> None:
            self.row = replace(row, vault=str(address), salt=salt)
            self._journal.add_rental(self.row)

        try:
            await vault_operations.open_vault(
                self.chain,
                row.network,
                depositor=self._keypair,
                signer=self._session_key.pubkey(),
                grace_s=grace_s,
                deposit=row.deposit,
                before_sending=write_down,
                salt_age_slots=_SALT_AGE_SLOTS,
            )
        except (TransactionRejected, TransactionExpired):
            self._journal.rental_never_opened(row.rental_id)
            raise
        self._journal.rental_opened(row.rental_id)
        self.row = self._journal.rental(row.rental_id)

    async def start(self, offer: RentalOffer, spec: JobSpec) -> RentalView:
        """Agrees to the offer's terms under a first cap of one interval. Raises Forbidden when the node does not sign the same."""
        terms = RentalTerms(
            rental_id=self.row.rental_id,
            node=offer.node,
            client=AccountId(str(self._keypair.pubkey())),
            vault=VaultAddress(self.row.vault),
            spec=spec,
            price_per_gpu_hour=offer.price_per_gpu_hour,
            interval_ms=offer.interval_ms,
            max_amount=self.row.deposit,
            agreed_at_ms=_now_ms(),
        )
        self._journal.rental_agreed(self.row.rental_id, terms)
        self.row = self._journal.rental(self.row.rental_id)
        cap = await self._sign(terms.rate.next_cap(0, 0, terms.max_amount))
        view = await self.node.start(StartRental(terms=terms, signature=terms.sign(self._keypair), cap=cap))
        if not terms.is_signed_by(terms.node, view.node_signature):
            raise Forbidden("the node signed other terms", code="terms_not_signed", field="node", value=terms.node)
        return view

    async def keep_up(self, view: RentalView) -> RentalView:
        """One look at the rental; raises the cap when a quarter of an interval was worked since the last time."""
        terms = self.terms
        wanted = terms.rate.next_cap(view.useful_ms, _now_ms() - terms.agreed_at_ms, terms.max_amount)
        if view.state is not RentalState.RUNNING or wanted < self.row.cap + self._step():
            return await self.node.view(self.row.rental_id)
        try:
            return await self.node.raise_cap(self.row.rental_id, await self._sign(wanted))
        except Conflict:  # the node takes no further cap of this vault, and stops by its own rules
            return await self.node.view(self.row.rental_id)

    async def pay_up(self, view: RentalView) -> RentalView:
        """At the end: what was worked and is not authorised yet, at most an interval, so that the node agrees to the closing."""
        terms = self.terms
        owed = min(terms.rate.amount(view.useful_ms), terms.max_amount)
        lasted_ms = _now_ms() - terms.agreed_at_ms
        if self.row.cap < owed <= terms.rate.next_cap(view.useful_ms, lasted_ms, terms.max_amount):
            return await self.node.raise_cap(self.row.rental_id, await self._sign(owed))
        return view

    @property
    def terms(self) -> RentalTerms:
        if self.row.terms is None:
            raise Conflict(
                "this rental never began",
                code="rental_not_started",
                field="rental",
                value=self.row.rental_id,
                hint=f"its money: torg rentals close {self.row.rental_id}",
            )
        return self.row.terms

    def _step(self) -> int:
        rate = self.terms.rate
        return max(1, rate.amount(rate.interval_ms) // 4)

    async def _sign(self, cap: int) -> SignedCap:
        self._journal.rental_cap(self.row.rental_id, cap)
        self.row = self._journal.rental(self.row.rental_id)
        valid_until_s = await self.chain.unix_time_s() + CAP_VALID_S
        message = CapMessage(self.row.network.chain_id, bytes(Pubkey.from_string(self.row.vault)), cap, valid_until_s)
        return SignedCap(
            vault=VaultAddress(self.row.vault),
            cap=cap,
            valid_until_s=valid_until_s,
            signer=str(self._session_key.pubkey()),
            signature=str(sign_message(self._session_key, message)),
        )

    # --- the end ----------------------------------------------------------------------------------------------------

    async def close(self, *, wait: bool = True) -> Closing:
        """The rest back: at once when the node agrees, else by the grace period, in two calls. Safe to repeat.

        `wait`: for the minute in which no vault closes after its opening.
        """
        row, network = self.row, self.row.network
        if row.state == CLOSED:
            return Closing(row.paid, None, "it is closed already")
        vault = await self.chain.vault(row.vault)
        if vault is None:
            return await self._gone()
        if vault.close_at and await self.chain.unix_time_s() >= vault.close_at:
            await vault_operations.finish_close(self.chain, network, depositor=self._keypair, vault=vault.address)
            self._journal.rental_closed(row.rental_id, vault.settled)
            return Closing(vault.settled, vault.balance)
        while wait and await self.chain.slot() <= vault.salt + SALT_WINDOW_SLOTS:  # noqa: ASYNC110 - slots are asked for
            await asyncio.sleep(_SLOTS_EVERY_S)
        try:
            paid = await self._close_agreed(vault.address)
        except (TorgError, OSError) as error:
            return await self._close_alone(vault.close_at, vault.grace_s, error)
        self._journal.rental_closed(row.rental_id, paid)
        return Closing(paid, row.deposit - paid)

    async def _close_agreed(self, vault: Pubkey) -> int:
        """Both signatures in one transaction. Returns what the node has captured in all."""
        network, admin = self.row.network, Pubkey.from_string(self.row.node)
        blockhash, last_valid = await self.chain.latest_blockhash()
        message = closing_message(
            network, vault=vault, depositor=self._keypair.pubkey(), admin=admin, blockhash=blockhash
        )
        consent = await self.node.agree_to_close(str(vault), str(blockhash))
        transaction = assemble(
            message,
            depositor=self._keypair,
            admin=admin,
            agreement=consent.signature,
            last_valid_block_height=last_valid,
        )
        settled = (await self.chain.existing_vault(vault)).settled
        self._journal.rental_paid(self.row.rental_id, settled)
        await self.chain.send_and_confirm(transaction, until=TransactionStatus.FINALIZED)
        return settled

    async def _close_alone(self, close_at: int, grace_s: int, why: Exception) -> Closing:
        if not close_at:
            await vault_operations.start_close(
                self.chain, self.row.network, depositor=self._keypair, vault=Pubkey.from_string(self.row.vault)
            )
            close_at = await self.chain.unix_time_s() + grace_s
        left_s = max(0, close_at - await self.chain.unix_time_s())
        reason = why.message if isinstance(why, TorgError) else str(why)
        return Closing(
            None, None, f"the node did not agree to close at once ({reason}); the rest can be taken in {left_s} s"
        )

    async def _gone(self) -> Closing:
        if self.row.state == OPENING:
            if await self.chain.slot() <= self.row.salt + SALT_WINDOW_SLOTS + _FINALITY_SLOTS:
                return Closing(None, None, "its opening may still land: try again in ten minutes")
            self._journal.rental_never_opened(self.row.rental_id)
            return Closing(0, 0, "its vault was never opened")
        self._journal.rental_closed(self.row.rental_id, self.row.paid)
        return Closing(self.row.paid, None, "its vault is closed")


def find_node(journal: RentalJournal, text: str) -> tuple[str, str | None]:
    """URL and, when it was given, key of a node: `http://host:port`, `KEY@host:port`, or the KEY of one that was reached before.

    Raises NotFound `node_unknown`; Invalid `node_invalid`.
    """
    if text.startswith(("http://", "https://")):
        return text.rstrip("/"), None
    key, _, address = text.partition("@")
    try:
        Pubkey.from_string(key)
    except ValueError:
        raise Invalid(
            "not a node",
            code="node_invalid",
            field="--node",
            value=text,
            hint="write http://HOST:PORT or KEY@HOST:PORT",
        ) from None
    if address:
        return f"http://{address}", key
    if (url := journal.node_url(key)) is None:
        raise NotFound(
            "this computer does not know where that node is",
            code="node_unknown",
            field="--node",
            value=key,
            hint=f"say it once: --node {key}@HOST:PORT",
        )
    return url, key


async def check_offer(offer: RentalOffer, key: str | None, rpc_url: str, program_id: str | None) -> Network:
    """The node's word against the chain's and the user's: its key, its chain, its program, its token. Raises Forbidden, Invalid.

    The program keeps the deposit: one that a node names is believed only when it is the one that the user means.
    """
    if key is not None and key != offer.node:
        raise Forbidden(
            "another node answers there", code="node_changed", field="--node", value=offer.node, hint=f"not {key}"
        )
    expected = program_id or LOCALNET_PROGRAM_ID
    if offer.program_id != expected:
        raise Forbidden(
            "the node's money is under a program that you did not name",
            code="program_unexpected",
            field="--program",
            value=offer.program_id,
            hint=f"expected {expected}; who names another one trusts it with the deposit",
        )
    async with ChainClient(rpc_url) as chain:
        genesis = await chain.genesis_hash()
        if genesis != offer.genesis_hash:
            raise Invalid(
                "the node is on another chain than your RPC node", code="wrong_chain", field="--rpc-url", value=rpc_url
            )
        decimals = await chain.mint_decimals(Pubkey.from_string(offer.mint))
    config, _ = find_config(Pubkey.from_string(offer.program_id), Pubkey.from_string(offer.node))
    return Network(
        rpc_url=rpc_url,
        genesis_hash=genesis,
        program_id=offer.program_id,
        mint=offer.mint,
        decimals=decimals,
        operator_config=str(config),
    )


def new_row(offer: RentalOffer, url: str, network: Network, deposit: int) -> RentalRow:
    now_ms = _now_ms()
    rental_id = new_id("rent", now_ms, secrets.randbits(80))
    return RentalRow(rental_id, NodeId(offer.node), url, network, "", 0, deposit, None, 0, OPENING, now_ms, None)


def packed(spec_file: SpecFile, folder: Path) -> tuple[JobSpec, Path | None]:
    """The spec as it is signed, and the archive of its workspace where it has one."""
    if spec_file.workspace is None:
        return spec_file.check(), None
    from torg_host.archive import pack, sha256_file

    archive = folder / "workspace.tar.zst"
    made = pack(spec_file.workspace, archive)
    return spec_file.with_workspace(sha256_file(archive), made.size_bytes), archive


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
