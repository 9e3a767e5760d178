"""One cluster through one RPC node: reading vaults, sending bytes, learning what became of them.

Thin over solana-py's AsyncClient, so that the localnet, devnet and mainnet are the same code. Amounts are base units; times are the
chain's own seconds and slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import struct
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import httpx
from solana.exceptions import SolanaRpcException
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Commitment, Confirmed, Finalized, Processed
from solana.rpc.core import RPCException
from solana.rpc.models import TxOpts
from solders.errors import SerdeJSONError
from solders.hash import Hash
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from spl.token.constants import TOKEN_PROGRAM_ID

from torg_chain.answers import check_answer
from torg_chain.captures import LandedCapture, captures_in, skipped_in
from torg_chain.errors import (
    BEHIND_HINT,
    PROGRAM_ERRORS,
    ChainBehind,
    ChainUnavailable,
    Retry,
    TransactionExpired,
    TransactionRejected,
    VaultNotFound,
)
from torg_chain.transactions import SignedTransaction
from torg_chain.vault import OperatorConfig, VaultState, parse_config, parse_vault, token_account_of
from torg_protocol.errors import Invalid

CLOCK_SYSVAR = Pubkey.from_string("SysvarC1ock11111111111111111111111111111111")
_RESEND_EVERY_S = 1.0
_POLL_EVERY_S = 0.1
_AFTER_SILENCE_S = 1.0
_MINT_SIZE, _MINT_DECIMALS_AT, _MINT_INITIALIZED_AT = 82, 44, 45
_HISTORY_PAGE, _HISTORY_PAGES = 1000, 20


class TransactionStatus(enum.StrEnum):
    NOT_FOUND = "not_found"
    PROCESSED = "processed"
    CONFIRMED = "confirmed"
    FINALIZED = "finalized"
    FAILED = "failed"  # landed, and its program refused: fee paid, nothing else happened


@dataclass(frozen=True, slots=True)
class SignatureStatus:
    status: TransactionStatus
    error: str | None = None
    slot: int = 0  # that it landed in, where it did


class ChainClient:
    """Close it, or use it as a context manager. Every call may raise ChainUnavailable; reads are safe to repeat."""

    def __init__(self, rpc_url: str, *, timeout_s: float = 10.0) -> None:
        self.rpc_url = rpc_url
        self._rpc = AsyncClient(rpc_url, commitment=Confirmed, timeout=timeout_s)
        self._rpc._provider.session.event_hooks = {"response": [check_answer]}  # noqa: SLF001 - it has no other way in

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._rpc.close()

    # --- reading ----------------------------------------------------------------------------------------------------

    async def genesis_hash(self) -> str:
        return str((await self._call(self._rpc.get_genesis_hash())).value)

    async def slot(self, commitment: Commitment = Confirmed) -> int:
        return int((await self._call(self._rpc.get_slot(commitment))).value)

    async def block_height(self, commitment: Commitment = Finalized) -> int:
        return int((await self._call(self._rpc.get_block_height(commitment))).value)

    async def latest_blockhash(self) -> tuple[Hash, int]:
        """A recent blockhash and the last block height at which a transaction with it can land."""
        value = (await self._call(self._rpc.get_latest_blockhash(Confirmed))).value
        return value.blockhash, int(value.last_valid_block_height)

    async def unix_time_s(self) -> int:
        """The chain's clock, which decides about valid_until and close_at."""
        data = await self._account_data(CLOCK_SYSVAR, Confirmed)
        if data is None:
            raise ChainUnavailable("the cluster has no clock sysvar", field="rpc_url", value=self.rpc_url)
        return int(struct.unpack_from("<q", data, 32)[0])

    async def rent(self, size_bytes: int) -> int:
        return int((await self._call(self._rpc.get_minimum_balance_for_rent_exemption(size_bytes))).value)

    async def lamports(self, address: Pubkey) -> int:
        return int((await self._call(self._rpc.get_balance(address))).value)

    async def vault(
        self,
        address: Pubkey | str,
        commitment: Commitment = Finalized,
        *,
        mint: Pubkey | str | None = None,
        min_slot: int = 0,
    ) -> VaultState | None:
        """A vault with its token balance, both from one answer. None when there is no such account; Invalid `not_a_vault`. `mint`: which token
        it should hold; when it does, one question is enough, else there are two. ChainBehind for an answer from before `min_slot`: behind one
        address there may be many nodes, and some lag."""
        pubkey = Pubkey.from_string(address) if isinstance(address, str) else address
        if mint is not None:
            token = Pubkey.from_string(mint) if isinstance(mint, str) else mint
            guessed = token_account_of(pubkey, token)
            state = await self._vault(pubkey, guessed, commitment, min_slot)
            if state is None or state.token_account == guessed:
                return state
        answer = self._not_behind(await self._call(self._rpc.get_account_info(pubkey, commitment)), min_slot)
        if answer.value is None:
            return None
        token_account = parse_vault(pubkey, bytes(answer.value.data), 0).token_account
        return await self._vault(pubkey, token_account, commitment, min_slot)

    async def existing_vault(self, address: Pubkey | str, commitment: Commitment = Finalized) -> VaultState:
        state = await self.vault(address, commitment)
        if state is None:
            raise VaultNotFound(
                "there is no such vault on this chain",
                field="vault",
                value=str(address),
                hint="wait until its opening is finalized",
            )
        return state

    async def operator_config(self, address: Pubkey, commitment: Commitment = Finalized) -> OperatorConfig | None:
        data = await self._account_data(address, commitment)
        return None if data is None else parse_config(address, data)

    async def token_balance(self, owner: Pubkey, mint: Pubkey, commitment: Commitment = Confirmed) -> int:
        """Of the owner's associated token account; 0 when there is none."""
        answer = await self._call(self._rpc.get_account_info(token_account_of(owner, mint), commitment))
        return _token_amount(answer.value)

    async def mint_decimals(self, mint: Pubkey) -> int:
        """Of a mint of the classic SPL Token program, the only one whose tokens vaults hold. Raises Invalid `mint_unknown`,
        `mint_unsupported`."""
        answer = await self._call(self._rpc.get_account_info(mint, Finalized))
        account = answer.value
        if account is None:
            raise Invalid("there is no such mint on this chain", code="mint_unknown", field="mint", value=str(mint))
        data = bytes(account.data)
        if account.owner != TOKEN_PROGRAM_ID or len(data) != _MINT_SIZE or not data[_MINT_INITIALIZED_AT]:
            raise Invalid(
                "not a mint of the classic SPL Token program",
                code="mint_unsupported",
                field="mint",
                value=str(mint),
                hint="Token-2022 mints, with their fees and hooks, are not taken",
            )
        return data[_MINT_DECIMALS_AT]

    async def account_owner(self, address: Pubkey, commitment: Commitment = Confirmed) -> Pubkey | None:
        """The program that an account belongs to; None when there is no such account."""
        account = (await self._call(self._rpc.get_account_info(address, commitment))).value
        return None if account is None else account.owner

    async def accounts_exist(self, addresses: list[Pubkey]) -> list[bool]:
        answer = await self._call(self._rpc.get_multiple_accounts(addresses, Confirmed))
        return [account is not None for account in answer.value]

    # --- sending ----------------------------------------------------------------------------------------------------

    async def send(self, raw: bytes) -> str:
        """Submits bytes; returns the signature. Safe to repeat with the same bytes: they can land only once.

        Raises TransactionRejected when preflight refuses, TransactionExpired when the blockhash is dead. A transaction that
        was processed already is not an error.
        """
        try:
            sending = self._rpc.send_raw_transaction(raw, opts=TxOpts(preflight_commitment=Processed))
            answer = await self._answered(sending)
        except RPCException as error:
            return _rejected(error, raw)
        return str(answer.value)

    async def signature_status(self, signature: str) -> SignatureStatus:
        answer = await self._call(
            self._rpc.get_signature_statuses([Signature.from_string(signature)], search_transaction_history=True)
        )
        found = answer.value[0]
        if found is None:
            return SignatureStatus(TransactionStatus.NOT_FOUND)
        if found.err is not None:
            return SignatureStatus(TransactionStatus.FAILED, _program_error(str(found.err)) or str(found.err))
        level = str(found.confirmation_status).rsplit(".", 1)[-1].lower()
        return SignatureStatus(TransactionStatus(level), slot=found.slot)

    async def send_and_confirm(
        self,
        transaction: SignedTransaction,
        *,
        until: TransactionStatus = TransactionStatus.CONFIRMED,
        timeout_s: float = 60.0,
    ) -> None:
        """Sends, and resends the same bytes, until the wanted level. Raises TransactionRejected, TransactionExpired (provably
        dead), or ChainUnavailable when time ran out without an answer."""
        levels = [TransactionStatus.PROCESSED, TransactionStatus.CONFIRMED, TransactionStatus.FINALIZED]
        wanted = levels[levels.index(until) :]
        loop = asyncio.get_running_loop()
        deadline, resend_at, was_sent = loop.time() + timeout_s, 0.0, False
        while loop.time() < deadline:
            try:
                state = await self.signature_status(transaction.signature)
            except ChainUnavailable as error:
                if not was_sent or error.retry is Retry.NEVER:
                    raise
                await asyncio.sleep(error.retry_after_s or _AFTER_SILENCE_S)
                continue
            if state.status is TransactionStatus.FAILED:
                raise TransactionRejected(f"the transaction failed: {state.error}", error_name=state.error)
            if state.status in wanted:
                return
            if state.status is TransactionStatus.NOT_FOUND and loop.time() >= resend_at:
                if await self.block_height() > transaction.last_valid_block_height:
                    if (await self.signature_status(transaction.signature)).status is not TransactionStatus.NOT_FOUND:
                        continue  # it landed between the two questions, however long that was
                    raise TransactionExpired(
                        "the transaction did not land in time", field="signature", value=transaction.signature
                    )
                # An RPC node that lags, or is on another fork, may not know the blockhash: only the height proves it dead.
                was_sent = True
                with contextlib.suppress(TransactionExpired):
                    await self.send(transaction.raw)
                resend_at = loop.time() + _RESEND_EVERY_S
            await asyncio.sleep(_POLL_EVERY_S)
        raise ChainUnavailable(
            f"no answer about the transaction within {timeout_s} s",
            code="transaction_unknown",
            field="signature",
            value=transaction.signature,
        )

    async def skipped_payees(self, signature: str) -> frozenset[int] | None:
        """Which payees (by index) a landed capture left out; None while the transaction is not found."""
        answer = await self._call(
            self._rpc.get_transaction(
                Signature.from_string(signature), commitment=Confirmed, max_supported_transaction_version=0
            )
        )
        if answer.value is None or answer.value.transaction.meta is None:
            return None
        returned = answer.value.transaction.meta.return_data
        return skipped_in(bytes(returned.data) if returned is not None else b"")

    async def landed_captures(
        self, program_id: Pubkey, vault: str, *, from_settled: int, min_slot: int = 0
    ) -> list[LandedCapture]:
        """Finalized captures of a vault that began at or above `from_settled`, oldest first, whoever submitted them: all up to `min_slot` at
        least, else ChainBehind.

        Looks through the vault's own transactions from the newest back. A capture inside another program's call is not seen.
        Raises ChainUnavailable `vault_in_motion` while there is one that may still be rolled back; Invalid
        `vault_history_too_long` rather than miss one among thousands.
        """
        found: list[LandedCapture] = []
        before: Signature | None = None
        for _ in range(_HISTORY_PAGES):
            answer = await self._call(
                self._rpc.get_signatures_for_address(
                    Pubkey.from_string(vault),
                    before=before,
                    limit=_HISTORY_PAGE,
                    commitment=Finalized,
                    min_context_slot=min_slot or None,
                )
            )
            for item in answer.value:
                if not str(item.confirmation_status).lower().endswith("finalized"):
                    raise ChainUnavailable(
                        "a transaction of this vault is not final yet",
                        code="vault_in_motion",
                        field="vault",
                        value=vault,
                    )
                captures = [] if item.err is not None else await self._captures(program_id, vault, item.signature)
                found += [capture for capture in captures if capture.arguments.expected_settled >= from_settled]
                if any(capture.arguments.expected_settled <= from_settled for capture in captures):
                    return found[::-1]
            if len(answer.value) < _HISTORY_PAGE:
                return found[::-1]
            before = answer.value[-1].signature
        raise Invalid(
            "too many transactions name this vault", code="vault_history_too_long", field="vault", value=vault
        )

    async def _captures(self, program_id: Pubkey, vault: str, signature: Signature) -> list[LandedCapture]:
        answer = await self._call(
            self._rpc.get_transaction(
                signature, encoding="base64", commitment=Finalized, max_supported_transaction_version=0
            )
        )
        if answer.value is None or answer.value.transaction.meta is None:
            raise ChainUnavailable("the RPC node does not know a transaction that it listed", field="signature")
        meta = answer.value.transaction.meta
        loaded = meta.loaded_addresses
        more = [*loaded.writable, *loaded.readonly] if loaded is not None else []
        raw = bytes(answer.value.transaction.transaction)
        skipped = skipped_in(bytes(meta.return_data.data) if meta.return_data is not None else b"")
        return [
            LandedCapture(str(signature), found, skipped, answer.value.slot)
            for found in captures_in(raw, program_id, vault, more)
        ]

    async def received_by_reference(self, reference: Pubkey, account: Pubkey, mint: Pubkey) -> list[int]:
        """What each finalized transaction that names `reference` has brought to a token account, base units; the newest 1,000."""
        answer = await self._call(
            self._rpc.get_signatures_for_address(reference, limit=_HISTORY_PAGE, commitment=Finalized)
        )
        amounts = []
        for item in answer.value:
            if item.err is not None or not str(item.confirmation_status).lower().endswith("finalized"):
                continue
            found = await self._call(
                self._rpc.get_transaction(
                    item.signature, encoding="base64", commitment=Finalized, max_supported_transaction_version=0
                )
            )
            if found.value is not None and found.value.transaction.meta is not None:
                amounts.append(_brought(found.value.transaction, account, mint))
        return amounts

    async def priority_fee(self, accounts: list[Pubkey]) -> int:
        """Micro-lamports per compute unit that three of four recent blocks took for writing these accounts."""
        fees = sorted(
            item.prioritization_fee
            for item in (await self._call(self._rpc.get_recent_prioritization_fees(accounts))).value
        )
        return int(fees[len(fees) * 3 // 4]) if fees else 0

    # --- localnet only ----------------------------------------------------------------------------------------------

    async def faucet(self, owner: Pubkey, amount: int) -> None:
        """Test tokens and lamports for fees. Raises TransactionRejected where there is no faucet (any real cluster)."""
        await self.localnet("torg_faucet", [str(owner), amount])

    async def localnet(self, method: str, params: list[Any]) -> Any:
        """Calls one of the localnet's own methods."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
                answer = (await http.post(self.rpc_url, json=body)).json()
        except (httpx.HTTPError, ValueError) as error:
            raise self._unavailable(error) from error
        if "error" in answer:
            raise TransactionRejected(f"{method}: {answer['error'].get('message')}", error_name=None)
        return answer["result"]

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _vault(
        self, address: Pubkey, token_account: Pubkey, commitment: Commitment, min_slot: int
    ) -> VaultState | None:
        asking = self._rpc.get_multiple_accounts([address, token_account], commitment)
        answer = self._not_behind(await self._call(asking), min_slot)
        vault, tokens = answer.value
        if vault is None:
            return None
        state = parse_vault(address, bytes(vault.data), _token_amount(tokens))
        return replace(state, slot=answer.context.slot)

    def _not_behind(self, answer: Any, min_slot: int) -> Any:
        if answer.context.slot < min_slot:
            raise ChainBehind(
                f"the RPC node is behind: it is at slot {answer.context.slot}, and slot {min_slot} was seen before",
                field="rpc_url",
                value=self.rpc_url,
                hint=BEHIND_HINT,
            )
        return answer

    async def _account_data(self, address: Pubkey, commitment: Commitment) -> bytes | None:
        answer = await self._call(self._rpc.get_account_info(address, commitment))
        return None if answer.value is None else bytes(answer.value.data)

    async def _call(self, awaitable: Any) -> Any:
        try:
            return await self._answered(awaitable)
        except RPCException as error:
            message = getattr(error.args[0] if error.args else error, "message", str(error))
            raise ChainUnavailable(
                f"the RPC node refuses the request: {message}",
                code="rpc_refused",
                field="rpc_url",
                value=self.rpc_url,
                retry=Retry.NEVER,
                hint="it does not offer what is asked of it: name another RPC node",
            ) from error

    async def _answered(self, awaitable: Any) -> Any:
        try:
            return await awaitable
        except ChainUnavailable as error:
            error.field, error.value = "rpc_url", self.rpc_url
            raise
        except SerdeJSONError as error:
            raise self._unavailable(error) from error
        except SolanaRpcException as error:
            raise self._unavailable(error.__cause__ or error) from error
        except (OSError, TimeoutError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: BaseException) -> ChainUnavailable:
        return ChainUnavailable(
            f"the chain's RPC node does not answer ({type(error).__name__})",
            field="rpc_url",
            value=self.rpc_url,
            hint="nothing is lost: what was sent is sent again, the same bytes, when it answers",
        )


def _brought(transaction: Any, account: Pubkey, mint: Pubkey) -> int:
    """By how much a transaction raised a token account's balance."""
    meta = transaction.meta
    keys = list(VersionedTransaction.from_bytes(bytes(transaction.transaction)).message.account_keys)
    if meta.loaded_addresses is not None:
        keys += [*meta.loaded_addresses.writable, *meta.loaded_addresses.readonly]

    def balance(entries: Any) -> int:
        return sum(
            int(entry.ui_token_amount.amount)
            for entry in entries or []
            if keys[entry.account_index] == account and entry.mint == mint
        )

    return max(0, balance(meta.post_token_balances) - balance(meta.pre_token_balances))


def _token_amount(account: Any) -> int:
    if account is None or len(bytes(account.data)) != 165:
        return 0
    return int(struct.unpack_from("<Q", bytes(account.data), 64)[0])


def _program_error(text: str) -> str | None:
    """The vault program's error name, from an InstructionError with a custom code."""
    import re

    match = re.search(r"Custom\D{0,20}(\d+)", text)
    return PROGRAM_ERRORS.get(int(match.group(1))) if match else None


def _rejected(error: RPCException, raw: bytes) -> str:
    """Turns a preflight refusal into our errors; a transaction that is in already just gets its signature back."""
    detail = error.args[0] if error.args else error
    text = str(detail)
    if "AlreadyProcessed" in text or "already been processed" in text:
        return str(VersionedTransaction.from_bytes(raw).signatures[0])
    if "BlockhashNotFound" in text or "Blockhash not found" in text:
        raise TransactionExpired("the transaction's blockhash is dead") from error
    data = getattr(detail, "data", None)
    name = _program_error(str(getattr(data, "err", None) or text))
    logs = list(getattr(data, "logs", None) or [])
    message = getattr(detail, "message", text)
    raise TransactionRejected(f"{message}" + (f" ({name})" if name else ""), error_name=name, logs=logs) from error
