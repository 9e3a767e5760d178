"""When a collateral can be slashed, and that a node cannot run away from a slash, nor a slash hang over a node for ever."""

from __future__ import annotations

import pytest

from tests.support.collateral import (
    STAKE,
    cancellation,
    execute,
    home,
    propose,
)
from tests.support.svm import HOUR_S, Vault, World
from torg_chain import instructions as program
from torg_chain.vault import (
    DISPUTE_DELAY_S,
    MINIMUM_COLLATERAL_GRACE_S,
    SALT_WINDOW_SLOTS,
    SLASH_MARGIN_S,
    VaultKind,
    token_account_of,
)

# --- when ------------------------------------------------------------------------------------------------------------


def test_a_slash_before_the_delay(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    with world.refused("E_TOO_EARLY"):
        execute(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S - 1)
    with world.refused("E_TOO_EARLY"):
        execute(world, stake, client)
    world.wait(seconds=1)
    execute(world, stake, client)


def test_a_slash_after_its_window(world: World, stake: Vault, client: Vault) -> None:
    """A proposal that nobody executes does not hang over the node for ever."""
    propose(world, stake, client)
    world.wait(seconds=2 * DISPUTE_DELAY_S + 1)

    with world.refused("E_TOO_LATE"):
        execute(world, stake, client)
    world.send([cancellation(world, stake)], [stake.operator.admin])


def test_a_slash_in_the_last_second_of_its_window(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    world.wait(seconds=2 * DISPUTE_DELAY_S)

    execute(world, stake, client)


def test_two_proposals(world: World, stake: Vault, client: Vault) -> None:
    """Else a second one could raise the amount on the last day of the first one's delay."""
    propose(world, stake, client, 1)
    with world.refused("E_STATE"):
        propose(world, stake, client, STAKE)


def test_a_slash_twice_for_one_proposal(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)
    execute(world, stake, client)

    with world.refused("E_STATE"):
        execute(world, stake, client)
    with world.refused("E_STATE"):
        world.send([cancellation(world, stake)], [stake.operator.admin])
    assert world.balance(home(client)) == 400_000


def test_a_slash_without_a_proposal(world: World, stake: Vault, client: Vault) -> None:
    with world.refused("E_STATE"):
        execute(world, stake, client)


# --- racing the node's exit ------------------------------------------------------------------------------------------


def test_a_proposal_just_before_the_closing_can_still_be_executed(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    world.start_close(stake)
    world.wait(seconds=DISPUTE_DELAY_S, slots=SALT_WINDOW_SLOTS + 1)
    with world.refused("E_TOO_EARLY"):
        world.finish_close(stake)

    execute(world, stake, client)

    assert world.balance(home(client)) == 400_000


def test_a_proposal_during_the_closing(world: World, stake: Vault, client: Vault) -> None:
    """Taken as long as it leaves its delay and an hour before the closing, not a second later."""
    world.start_close(stake)
    propose(world, stake, client)
    world.send([cancellation(world, stake)], [stake.operator.admin])
    world.wait(seconds=1)

    with world.refused("E_TOO_LATE"):
        propose(world, stake, client)


def test_a_slash_after_the_collaterals_closing(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    world.start_close(stake)
    world.wait(seconds=MINIMUM_COLLATERAL_GRACE_S, slots=SALT_WINDOW_SLOTS + 1)
    world.finish_close(stake)

    with world.refused("E_NOT_OURS"):
        execute(world, stake, client)
    with world.refused("E_NOT_OURS"):
        propose(world, stake, client)
    assert world.balance(token_account_of(stake.depositor.pubkey(), stake.mint)) == STAKE


def test_finish_close_while_a_slash_is_pending(world: World, stake: Vault, client: Vault) -> None:
    """Never before the operator had its delay and an hour; after that the node's exit is not barred by a proposal."""
    propose(world, stake, client)
    world.start_close(stake)
    world.wait(seconds=DISPUTE_DELAY_S + SLASH_MARGIN_S - 1, slots=SALT_WINDOW_SLOTS + 1)
    with world.refused("E_TOO_EARLY"):
        world.finish_close(stake)
    world.wait(seconds=1)

    world.finish_close(stake)

    assert world.balance(token_account_of(stake.depositor.pubkey(), stake.mint)) == STAKE


def test_cancelling_and_starting_the_close_again_does_not_escape_a_slash(
    world: World, stake: Vault, client: Vault
) -> None:
    world.start_close(stake)
    propose(world, stake, client)
    owner = stake.depositor
    world.send([program.cancel_close(world.program_id, stake.address, owner.pubkey())], [owner])
    world.start_close(stake)
    world.wait(seconds=DISPUTE_DELAY_S)

    execute(world, stake, client)

    assert world.balance(home(client)) == 400_000


@pytest.mark.parametrize("grace_s", [HOUR_S, MINIMUM_COLLATERAL_GRACE_S - 1])
def test_a_collateral_that_could_be_gone_before_a_slash(world: World, grace_s: int) -> None:
    node = world.wallet()

    with world.refused("E_GRACE"):
        world.send(world.opening(world.planned(node), grace_s=grace_s, kind=VaultKind.COLLATERAL), [node])
