"""`torg-node stake` and `unstake` on a localnet, by a wallet that lacks something and by one that does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.chain import make_network, make_operator, running_localnet
from tests.support.node_settings import settings_in
from torg_chain.rpc import ChainClient
from torg_chain.wallet import create_keypair
from torg_node.journal import Journal
from torg_node.stake import stake, unstake
from torg_protocol.errors import Conflict

TUSD = 1_000_000


async def test_a_wallet_that_lacks_something_is_told_what_and_one_that_does_not_stakes(tmp_path: Path) -> None:
    """The chain's word for it was AccountNotFound; and `unstake` said then to wait for an opening that nobody had sent."""
    owner = create_keypair(tmp_path / "owner.json")
    create_keypair(tmp_path / "node.json")
    async with running_localnet(tmp_path / "chain") as localnet, ChainClient(localnet.rpc_url) as chain:
        network = await make_network(chain, make_operator(), await chain.genesis_hash())
        settings = settings_in(tmp_path, network=network)
        journal = Journal(settings.journal_path)

        async def refused(amount: int) -> Conflict:
            with pytest.raises(Conflict) as caught:
                await stake(settings, journal, tmp_path / "owner.json", amount)
            assert str(owner.pubkey()) in str(caught.value)
            return caught.value

        assert (await refused(TUSD)).code == "wallet_underfunded"
        assert (await refused(0)).code == "wallet_without_sol"
        with pytest.raises(Conflict) as none:
            await unstake(settings, journal, tmp_path / "owner.json")
        assert none.value.code == "nothing_staked"

        await chain.faucet(owner.pubkey(), 3 * TUSD)
        assert (await stake(settings, journal, tmp_path / "owner.json", TUSD)).balance == TUSD
        assert (await stake(settings, journal, tmp_path / "owner.json", TUSD)).balance == 2 * TUSD
        assert (await refused(2 * TUSD)).value == "2"
        assert (await unstake(settings, journal, tmp_path / "owner.json")).close_at

        journal.set_fact(
            "collateral", str(Pubkey.from_string(str(Keypair().pubkey())))
        )  # written down, and never landed
        with pytest.raises(Conflict) as lost:
            await unstake(settings, journal, tmp_path / "owner.json")
        assert lost.value.code == "nothing_staked"
        journal.close()
