"""A rental's money on chain: what this node checks before it works, how it captures, and when it agrees to a closing.

The vault is this node's alone and serves one rental, so its `settled` on chain is the truth of what was paid. A capture names the
`settled` that it starts from: sent twice, or rebuilt after a crash, it pays once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

from torg_chain.agreed_closing import agree, closing_message
from torg_chain.network import Network
from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.vault import VaultState, token_account_of
from torg_chain.vault_operations import build_capture, ensure_operator_config
from torg_node.rental.book import RentalEntry
from torg_protocol.caps import SignedCap
from torg_protocol.errors import Conflict, Invalid, Unavailable
from torg_protocol.money import format_amount
from torg_protocol.rentals import RentalTerms
from torg_protocol.vault_messages import CapMessage, verify_message

log = logging.getLogger(__name__)
CAP_OUTLIVES_S = 1_800  # how long a cap must be good for: to work under it and to capture by it, with time to spare
CAPTURE_BEFORE_EXPIRY_S = 900


@dataclass(frozen=True, slots=True)
class RentalMoney:
    """`network`: the node's own, under the operator config of `key`, which is admin and capture key of it."""

    chain: ChainClient
    network: Network
    key: Keypair
    payout: Pubkey
    min_grace_s: int

    async def become_operator(self) -> None:
        """Makes the operator config where there is none: once, some 0.002 SOL. Safe to repeat.

        Raises Unavailable `node_has_no_sol`; ChainUnavailable.
        """
        key = self.key.pubkey()
        if await self.chain.operator_config(self.network.operator_pubkey) is None and not await self.chain.lamports(
            key
        ):
            raise Unavailable(
                "the node's key holds no SOL for the fees of its captures",
                code="node_has_no_sol",
                field="node",
                value=str(key),
                hint="send it a little; 0.01 SOL last for about 800 captures",
            )
        await ensure_operator_config(
            self.chain, self.network.program_pubkey, admin=self.key, capture_key=key, fee_owner=self.payout
        )

    async def check(self, terms: RentalTerms, cap: SignedCap, *, known: bool = False) -> VaultState:
        """Raises Conflict with what is wrong with the vault or the cap. `known`: the rental was accepted before."""
        vault = await self.chain.existing_vault(terms.vault)
        now_s = await self.chain.unix_time_s()
        network = self.network
        for is_wrong, code, detail in (
            (str(vault.config) != network.operator_config, "vault_wrong_operator", "it is under another operator"),
            (str(vault.mint) != network.mint, "vault_wrong_mint", "it holds another token"),
            (vault.chain_id != network.chain_id, "vault_wrong_chain", "it was opened for another chain"),
            (vault.kind != 0, "vault_kind", "it is not a client's vault"),
            (vault.grace_s < self.min_grace_s, "vault_grace_too_short", f"its grace is only {vault.grace_s} s"),
            (vault.close_at != 0, "vault_closing", "it is being closed"),
            (not known and vault.settled != 0, "vault_used", "it has paid before: caps of that time still count"),
            (
                vault.settled + vault.balance < cap.cap,
                "vault_underfunded",
                f"it holds {format_amount(vault.balance, network.decimals)} tokens, which do not cover the cap",
            ),
            (cap.vault != terms.vault, "cap_wrong_vault", "the cap is of another vault"),
            (str(vault.signer_at(now_s)) != cap.signer, "cap_wrong_signer", "the cap is not by the vault's signer"),
            (
                cap.valid_until_s < now_s + CAP_OUTLIVES_S,
                "cap_expires_too_soon",
                f"the cap must be good for {CAP_OUTLIVES_S} s more",
            ),
            (
                not verify_message(_message(network, cap), cap.signature, cap.signer),
                "cap_signature_invalid",
                "the cap's signature does not verify",
            ),
        ):
            if is_wrong:
                raise Conflict(f"the vault does not do: {detail}", code=code, field="vault", value=terms.vault)
        return vault

    async def capture(self, entry: RentalEntry, due: int) -> int:
        """Brings what this vault has paid up to `due` (at most the cap). Returns what it has paid then, finalized. Safe to repeat."""
        vault = await self.chain.existing_vault(entry.terms.vault)
        amount = min(due - vault.settled, vault.balance)
        if amount <= 0:
            return vault.settled
        exists = await self.chain.accounts_exist([token_account_of(self.payout, self.network.mint_pubkey)])
        blockhash, last_valid = await self.chain.latest_blockhash()
        transaction = build_capture(
            self.network,
            vault,
            payees=[(self.payout, amount)],
            cap=_message(self.network, entry.cap),
            cap_signer=Pubkey.from_string(entry.cap.signer),
            cap_signature=Signature.from_string(entry.cap.signature),
            root=bytes.fromhex(entry.terms.digest.removeprefix("sha256:")),
            capture_key=self.key,
            fee_payer=self.key,
            blockhash=blockhash,
            last_valid_block_height=last_valid,
            create_accounts_of=[] if all(exists) else [self.payout],
        )
        await self.chain.send_and_confirm(transaction, until=TransactionStatus.FINALIZED)
        log.info("%s: captured %d base units: %s", entry.id, amount, transaction.signature)
        return (await self.chain.existing_vault(entry.terms.vault)).settled

    async def agree_to_close(self, vault: str, blockhash: str) -> str:
        """The operator's signature under the closing of a vault that owes nothing. The caller has captured."""
        state = await self.chain.existing_vault(vault)
        try:
            recent = Hash.from_string(blockhash)
        except ValueError:
            raise Invalid("not a blockhash", code="blockhash_invalid", field="blockhash", value=blockhash) from None
        if str(state.config) != self.network.operator_config:
            raise Conflict("the vault is another operator's", code="vault_wrong_operator", field="vault", value=vault)
        message = closing_message(
            self.network, vault=state.address, depositor=state.depositor, admin=self.key.pubkey(), blockhash=recent
        )
        return agree(message, self.key)


def _message(network: Network, cap: SignedCap) -> CapMessage:
    return CapMessage(network.chain_id, bytes(Pubkey.from_string(cap.vault)), cap.cap, cap.valid_until_s)
