"""Of several vaults that owe a node, one in trouble holds up no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from torg_chain.errors import ChainUnavailable
from torg_chain.network import LOCALNET_MINT
from torg_chain.vault import token_account_of
from torg_node.money import FEE_FACT, look_at_captures
from torg_node.rental.service import Rentals
from torg_protocol.errors import Conflict

MINE, MINT = Keypair().pubkey(), Pubkey.from_string(LOCALNET_MINT)


async def test_captures_are_seen_while_another_vault_is_in_motion() -> None:
    account = str(token_account_of(MINE, MINT))
    arguments = SimpleNamespace(expected_settled=0, payees=((account, 70),))
    moving, resting = str(Pubkey.new_unique()), str(Pubkey.new_unique())
    landed = {resting: [SimpleNamespace(signature="s", arguments=arguments, paid=70, skipped=frozenset())]}
    entered: list[Any] = []

    async def landed_captures(_: Pubkey, vault: str, *, from_settled: int) -> list[Any]:
        assert from_settled == 0
        if vault not in landed:
            raise ChainUnavailable("may still be rolled back", code="vault_in_motion")
        return landed[vault]

    async def account_owner(_: Pubkey) -> Pubkey:
        return MINE

    journal = SimpleNamespace(
        facts_like=dict.fromkeys,
        earned=lambda _: {moving: 100, resting: 100},
        captured=dict,
        fact=lambda name: "0" if name == FEE_FACT else None,
        captured_until=lambda _: 0,
        add_capture=lambda *row: entered.append(row),
    )
    network = SimpleNamespace(mint_pubkey=MINT, program_pubkey=MINT)
    settings = SimpleNamespace(network=network, payout_address=str(MINE))
    chain = SimpleNamespace(landed_captures=landed_captures, account_owner=account_owner)
    await look_at_captures(cast("Any", chain), cast("Any", settings), cast("Any", journal), now_ms=1)
    assert entered == [("s", resting, 70, 70)]


@pytest.mark.parametrize("trouble", [Conflict("the capture was refused"), ZeroDivisionError()])
async def test_a_rental_whose_capture_fails_does_not_keep_the_others_from_theirs(trouble: Exception) -> None:
    looked: list[str] = []

    async def look_at(entry: str) -> None:
        looked.append(entry)
        if entry == "a":
            raise trouble

    rentals = SimpleNamespace(_is_operator=True, _book=SimpleNamespace(unclosed=lambda: ["a", "b"]), _look_at=look_at)
    await Rentals._look_at_money(cast("Any", rentals))
    assert looked == ["a", "b"]
