"""The localnet as a cluster: used through solana-py only, killed without warning, continued from its ledger."""

from __future__ import annotations

from pathlib import Path

import pytest
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer

from tests.support.chain import make_network, make_operator, running_localnet
from torg_chain import collateral_operations, vault_operations
from torg_chain.errors import ChainBehind, ChainUnavailable, TransactionExpired, TransactionRejected
from torg_chain.rpc import ChainClient, TransactionStatus
from torg_chain.transactions import sign_transaction
from torg_chain.vault import DISPUTE_DELAY_S, MINIMUM_COLLATERAL_GRACE_S, VaultKind, chain_of, token_account_of
from torg_protocol.errors import Invalid
from torg_protocol.vault_messages import CapMessage, sign_message


async def test_everything_survives_sigkill_and_an_old_transaction_stays_refused(tmp_path: Path) -> None:
    payer, to = Keypair(), Keypair().pubkey()
    # A blockhash lives for half a minute: at the end of the test too, and on a slow machine.
    async with running_localnet(tmp_path, slot_ms=200) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 7_000_000)
        blockhash, last_valid = await chain.latest_blockhash()
        moved = sign_transaction(
            [transfer(TransferParams(from_pubkey=payer.pubkey(), to_pubkey=to, lamports=10**7))],
            [payer],
            blockhash,
            last_valid,
        )
        await chain.send_and_confirm(moved, until=TransactionStatus.FINALIZED)
        before = (
            await chain.lamports(payer.pubkey()),
            await chain.token_balance(payer.pubkey(), Pubkey.from_string(MINT)),
        )

        await localnet.kill()
        with pytest.raises(ChainUnavailable):
            await chain.lamports(to)
        await localnet.start()

        after = (
            await chain.lamports(payer.pubkey()),
            await chain.token_balance(payer.pubkey(), Pubkey.from_string(MINT)),
        )
        assert after == before
        assert await chain.lamports(to) == 10**7
        assert (await chain.signature_status(moved.signature)).status is TransactionStatus.FINALIZED
        # The blockhash still counts, so this is refused for being old, not for being expired; and nothing moves.
        assert await chain.send(moved.raw) == moved.signature
        assert await chain.lamports(to) == 10**7


async def test_a_blockhash_dies_after_150_slots(tmp_path: Path) -> None:
    payer = Keypair()
    async with running_localnet(tmp_path) as localnet, ChainClient(localnet.rpc_url) as chain:
        await chain.faucet(payer.pubkey(), 1)
        blockhash, last_valid = await chain.latest_blockhash()
        late = sign_transaction(
            [transfer(TransferParams(from_pubkey=payer.pubkey(), to_pubkey=Keypair().pubkey(), lamports=10**7))],
            [payer],
            blockhash,
            last_valid,
        )
        await chain.localnet("torg_advance_slots", [200])

        with pytest.raises(TransactionExpired):
            await chain.send(late.raw)
        assert await chain.block_height() > last_valid


async def test_a_vault_from_opening_to_closing(tmp_path: Path) -> None:
    client, session, operator, node = Keypair(), Keypair(), make_operator(), Keypair()
    async with running_localnet(tmp_path) as localnet, ChainClient(localnet.rpc_url) as chain:
        network = await make_network(chain, operator, localnet.genesis_hash)
        await chain.faucet(client.pubkey(), 10_000_000)
        _, vault = await vault_operations.open_vault(
            chain, network, depositor=client, signer=session.pubkey(), grace_s=3600, deposit=5_000_000
        )
        state = await chain.existing_vault(vault)
        assert (state.balance, state.settled, state.grace_s) == (5_000_000, 0, 3600)

        cap = CapMessage(network.chain_id, bytes(vault), 2_000_000, await chain.unix_time_s() + 600)
        blockhash, last_valid = await chain.latest_blockhash()
        captured = vault_operations.build_capture(
            network,
            state,
            payees=[(node.pubkey(), 1_200_000), (operator.fee_owner.pubkey(), 30_000)],
            cap=cap,
            cap_signer=session.pubkey(),
            cap_signature=sign_message(session, cap),
            root=bytes(32),
            capture_key=operator.capture_key,
            fee_payer=operator.capture_key,
            blockhash=blockhash,
            last_valid_block_height=last_valid,
            create_accounts_of=[node.pubkey(), operator.fee_owner.pubkey()],
        )
        await chain.send_and_confirm(captured, until=TransactionStatus.FINALIZED)
        assert await chain.skipped_payees(captured.signature) == frozenset()
        assert await chain.token_balance(node.pubkey(), network.mint_pubkey) == 1_200_000
        seen = await chain.existing_vault(vault)
        assert seen.settled == 1_230_000
        for guess in (network.mint_pubkey, operator.capture_key.pubkey()):  # another token: it is asked once more
            assert await chain.vault(vault, mint=guess) == seen
        (landed,) = await chain.landed_captures(network.program_pubkey, str(vault), from_settled=0, min_slot=seen.slot)
        status = await chain.signature_status(captured.signature)
        assert landed.signature == captured.signature
        assert 0 < status.slot == landed.slot <= seen.slot
        for asking in (
            chain.vault(vault, min_slot=seen.slot + 1_000),
            chain.vault(vault, mint=network.mint, min_slot=seen.slot + 1_000),
            chain.vault(Pubkey.new_unique(), min_slot=seen.slot + 1_000),  # that it is not there says no more
            chain.landed_captures(network.program_pubkey, str(vault), from_settled=0, min_slot=seen.slot + 1_000),
        ):
            with pytest.raises(ChainBehind) as behind:
                await asking
            assert behind.value.code == "chain_behind"

        await vault_operations.start_close(chain, network, depositor=client, vault=vault)
        with pytest.raises(TransactionRejected) as early:
            await vault_operations.finish_close(chain, network, depositor=client, vault=vault)
        assert early.value.error_name == "E_TOO_EARLY"
        await chain.localnet("torg_advance_slots", [1600])
        await chain.localnet("torg_advance_clock", [3700])
        await vault_operations.finish_close(chain, network, depositor=client, vault=vault)

        assert await chain.vault(vault) is None
        assert await chain.vault(vault, mint=network.mint) is None
        assert await chain.token_balance(client.pubkey(), network.mint_pubkey) == 10_000_000 - 1_230_000
        assert await chain.accounts_exist([token_account_of(vault, network.mint_pubkey)]) == [False]


async def test_what_a_machine_that_stood_still_would_send_too_late_is_sent_on_a_new_blockhash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, operator = Keypair(), make_operator()
    async with running_localnet(tmp_path) as localnet, ChainClient(localnet.rpc_url) as chain:
        network = await make_network(chain, operator, localnet.genesis_hash)
        await chain.faucet(client.pubkey(), 1_000)
        asked = []

        async def dies_at_first() -> tuple[Hash, int]:
            found = await ChainClient.latest_blockhash(chain)
            asked.append(found)
            if len(asked) == 1:
                await chain.localnet("torg_advance_slots", [200])
            return found

        monkeypatch.setattr(chain, "latest_blockhash", dies_at_first)
        _, vault = await vault_operations.open_vault(
            chain, network, depositor=client, signer=client.pubkey(), grace_s=3600, deposit=400
        )
        assert len(asked) == 2
        assert (await chain.existing_vault(vault)).balance == 400
        assert await chain.token_balance(client.pubkey(), network.mint_pubkey) == 600


async def test_a_collateral_is_slashed_for_a_client_through_rpc(tmp_path: Path) -> None:
    client, node, operator = Keypair(), Keypair(), make_operator()
    async with running_localnet(tmp_path) as localnet, ChainClient(localnet.rpc_url) as chain:
        network = await make_network(chain, operator, localnet.genesis_hash)
        for depositor in (client, node):
            await chain.faucet(depositor.pubkey(), 1_000)
        _, vault = await vault_operations.open_vault(
            chain, network, depositor=client, signer=client.pubkey(), grace_s=3600, deposit=1_000
        )
        _, stake = await vault_operations.open_vault(
            chain,
            network,
            depositor=node,
            signer=node.pubkey(),
            grace_s=MINIMUM_COLLATERAL_GRACE_S,
            deposit=1_000,
            kind=VaultKind.COLLATERAL,
        )
        admin, state = operator.admin, await chain.existing_vault(stake)
        now_s = await chain.unix_time_s()
        assert collateral_operations.can_be_slashed(state, 400, now_s)
        assert not collateral_operations.can_be_slashed(state, 1_001, now_s)
        with pytest.raises(Invalid, match="no slash is proposed"):
            await collateral_operations.execute_slash(chain, network, admin=admin, collateral=state)

        evidence = bytes(range(32))
        for attempt in range(2):  # proposed, cancelled, proposed again
            await collateral_operations.propose_slash(
                chain,
                network,
                admin=admin,
                collateral=stake,
                client_vault=vault,
                amount=400,
                evidence_root=evidence,
            )
            state = await chain.existing_vault(stake)
            assert state.slash is not None
            assert not collateral_operations.can_be_slashed(state, 400, now_s)
            if attempt == 0:
                await collateral_operations.cancel_slash(chain, network, admin=admin, collateral=stake)
        await chain.localnet("torg_advance_clock", [DISPUTE_DELAY_S])
        await collateral_operations.execute_slash(chain, network, admin=admin, collateral=state)

        assert await chain.token_balance(client.pubkey(), network.mint_pubkey) == 400
        state = await chain.existing_vault(stake)
        assert (state.balance, state.settled, state.roots) == (600, 400, chain_of([evidence]))


MINT = "TorgTestUSD11111111111111111111111111111111"
