"""Tokens of one's own on a localnet: a classic SPL mint with any decimals, and a wallet app that pays a Solana Pay request."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from urllib.parse import parse_qs, urlsplit

from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import CreateAccountParams, create_account
from spl.token import models as token_models
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    initialize_mint,
    mint_to,
    transfer_checked,
)

from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.transactions import sign_transaction
from torg_chain.vault import token_account_of

MINT_BYTES = 82


@dataclass
class OwnMint:
    decimals: int
    authority: Keypair = field(default_factory=Keypair)
    key: Keypair = field(default_factory=Keypair)

    @property
    def address(self) -> Pubkey:
        return self.key.pubkey()

    @property
    def token(self) -> int:
        """Base units of one."""
        return int(10**self.decimals)

    async def make(self, chain: ChainClient) -> None:
        await chain.faucet(self.authority.pubkey(), 1)
        creating = create_account(
            CreateAccountParams(
                from_pubkey=self.authority.pubkey(),
                to_pubkey=self.address,
                lamports=await chain.rent(MINT_BYTES),
                space=MINT_BYTES,
                owner=TOKEN_PROGRAM_ID,
            )
        )
        params = token_models.InitializeMintParams(
            program_id=TOKEN_PROGRAM_ID,
            mint=self.address,
            decimals=self.decimals,
            mint_authority=self.authority.pubkey(),
        )
        await send(chain, [creating, initialize_mint(params)], self.authority, self.key)

    async def give(self, chain: ChainClient, owner: Pubkey, amount: int) -> None:
        payer = self.authority.pubkey()
        params = token_models.MintToParams(
            program_id=TOKEN_PROGRAM_ID,
            mint=self.address,
            dest=token_account_of(owner, self.address),
            mint_authority=payer,
            amount=amount,
        )
        account = create_idempotent_associated_token_account(payer, owner, self.address)
        await send(chain, [account, mint_to(params)], self.authority)

    async def pay(self, chain: ChainClient, request_url: str, wallet: Keypair) -> int:
        """What a wallet app does with `solana:RECIPIENT?amount=...`; returns the base units."""
        url = urlsplit(request_url)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        assert asked["spl-token"] == str(self.address)
        amount = int(Decimal(asked["amount"]) * self.token)
        params = token_models.TransferCheckedParams(
            program_id=TOKEN_PROGRAM_ID,
            source=token_account_of(wallet.pubkey(), self.address),
            mint=self.address,
            dest=token_account_of(Pubkey.from_string(url.path), self.address),
            owner=wallet.pubkey(),
            amount=amount,
            decimals=self.decimals,
        )
        transfer = transfer_checked(params)
        reference = AccountMeta(Pubkey.from_string(asked["reference"]), False, False)
        await send(chain, [Instruction(transfer.program_id, transfer.data, [*transfer.accounts, reference])], wallet)
        return amount


async def send(chain: ChainClient, instructions: list[Instruction], *signers: Keypair) -> None:
    blockhash, last_valid = await chain.latest_blockhash()
    signed = sign_transaction(instructions, list(signers), blockhash, last_valid)
    await chain.send_and_confirm(signed, until=TransactionStatus.FINALIZED)
