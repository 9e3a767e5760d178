"""Solana Pay: a wallet app's transfer is found by its reference, and nothing else with that reference counts."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer
from spl.token import models as token_models
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import transfer_checked

from tests.support.settlement import passing_slots, settling_market
from torg_chain.pay import received, transfer_request, wait_for_payment
from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.transactions import sign_transaction
from torg_chain.vault import token_account_of
from torg_protocol.errors import Invalid, Unavailable


def with_reference(instruction: Instruction, reference: Pubkey) -> Instruction:
    return Instruction(
        instruction.program_id, instruction.data, [*instruction.accounts, AccountMeta(reference, False, False)]
    )


async def send(chain: ChainClient, payer: Keypair, instruction: Instruction) -> None:
    blockhash, last_valid = await chain.latest_blockhash()
    signed = sign_transaction([instruction], [payer], blockhash, last_valid)
    await chain.send_and_confirm(signed, until=TransactionStatus.FINALIZED)


async def test_a_deposit_by_a_wallet_app_is_found_by_its_reference(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world, passing_slots(world.chain):
        network, chain, vault = world.market.network, world.chain, Pubkey.from_string(world.vault)
        reference, app = Keypair().pubkey(), Keypair()
        await chain.faucet(app.pubkey(), 2_000_000)

        url = urlsplit(transfer_request(network, vault, 1_250_000, reference, label="Torg vault"))
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        assert (url.scheme, url.path) == ("solana", str(vault))
        assert asked == {
            "amount": "1.25",
            "spl-token": network.mint,
            "reference": str(reference),
            "label": "Torg vault",
        }

        # A transaction that only names the reference brings nothing.
        gift = transfer(TransferParams(from_pubkey=app.pubkey(), to_pubkey=Keypair().pubkey(), lamports=10**7))
        await send(chain, app, with_reference(gift, reference))
        assert await received(chain, network, vault, reference) == 0
        with pytest.raises(Unavailable) as caught:
            await wait_for_payment(chain, network, vault, 1_250_000, reference, timeout_s=0.1)
        assert caught.value.code == "payment_not_seen"

        paying = transfer_checked(
            token_models.TransferCheckedParams(
                program_id=TOKEN_PROGRAM_ID,
                source=token_account_of(app.pubkey(), network.mint_pubkey),
                mint=network.mint_pubkey,
                dest=token_account_of(vault, network.mint_pubkey),
                owner=app.pubkey(),
                amount=1_250_000,
                decimals=network.decimals,
            )
        )
        await send(chain, app, with_reference(paying, reference))
        assert await wait_for_payment(chain, network, vault, 1_250_000, reference, timeout_s=120) == 1_250_000
        assert await received(chain, network, vault, Keypair().pubkey()) == 0


async def test_only_mints_of_the_classic_token_program_are_taken(tmp_path: Path) -> None:
    async with settling_market(tmp_path) as world:
        assert await world.chain.mint_decimals(world.market.network.mint_pubkey) == 6
        for address, code in (
            (Keypair().pubkey(), "mint_unknown"),
            (Pubkey.from_string(world.vault), "mint_unsupported"),
        ):
            with pytest.raises(Invalid) as caught:
                await world.chain.mint_decimals(address)
            assert caught.value.code == code
