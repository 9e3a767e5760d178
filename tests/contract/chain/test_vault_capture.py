"""Attacks on a capture, against the real program: each must be refused with exactly the error that is named."""

from __future__ import annotations

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey

from tests.support.svm import HOUR_S, Vault, World, with_accounts
from torg_chain import instructions as program

DEPOSIT = 10_000_000
VAULT, TOKENS, CONFIG, SYSVAR, TOKEN_PROGRAM, ORDER_SIGNER = range(6)
U64_MAX = 2**64 - 1


# --- the honest way --------------------------------------------------------------------------------------------------


def test_a_capture_pays_each_payee_and_counts_it(world: World, vault: Vault, node: Pubkey) -> None:
    other = world.token_account(world.key().pubkey())

    landed = world.capture(vault, [(node, 1_000), (other, 250)], cap=2_000)

    assert (world.balance(node), world.balance(other), world.balance(vault.tokens)) == (1_000, 250, DEPOSIT - 1_250)
    assert (world.state(vault).settled, world.state(vault).captures) == (1_250, 1)
    assert landed.return_data == b"\0\0"


def test_a_stranger_with_both_signatures_can_land_a_capture(world: World, vault: Vault, node: Pubkey) -> None:
    order = world.order(vault, [(node, 700)])

    world.capture_by_order(vault, [(node, 700)], cap=700, order=order)

    assert world.balance(node) == 700


def test_a_rental_without_a_marketplace(world: World, node: Pubkey) -> None:
    """The node is its own operator: the client raises its cap each minute, and the node takes what the newest one allows."""
    owner = world.wallet()
    rented = world.open_vault(operator=world.new_operator(admin=owner))
    for minute in (1, 2, 3):
        world.capture(rented, [(node, 100)], cap=100 * minute)
        with world.refused("E_OVER_CAP"):
            world.capture(rented, [(node, 1)], cap=100 * minute)
        world.wait(seconds=60)

    with world.refused("E_WRONG_ACCOUNT"):
        accounts = {CONFIG: world.operator.config, ORDER_SIGNER: world.operator.capture_key.pubkey()}
        built = world.capturing(rented, [(node, 1)], before=[world.cap(rented, 1_000)], accounts=accounts)
        world.send(built, [world.operator.capture_key])
    assert world.balance(node) == world.state(rented).settled == 300


# --- again, and older ------------------------------------------------------------------------------------------------


def test_replay_of_a_capture(world: World, vault: Vault, node: Pubkey) -> None:
    cap = world.cap(vault, DEPOSIT)
    world.capture(vault, [(node, 400)], cap=cap)

    with world.refused("E_STALE"):
        world.capture(vault, [(node, 400)], cap=cap, expected=0)
    assert world.balance(node) == 400


def test_resend_of_the_same_bytes(world: World, vault: Vault, node: Pubkey) -> None:
    built = world.capturing(vault, [(node, 400)], before=[world.cap(vault, DEPOSIT)])
    transaction = world.sign(built, [vault.operator.capture_key])
    world.submit(transaction)

    with world.refused("AlreadyProcessed"):
        world.submit(transaction)
    assert world.balance(node) == 400


def test_replay_of_an_order(world: World, vault: Vault, node: Pubkey) -> None:
    order = world.order(vault, [(node, 400)])
    world.capture_by_order(vault, [(node, 400)], order=order)

    with world.refused("E_STALE"):
        world.capture_by_order(vault, [(node, 400)], order=order, expected=0)
    with world.refused("E_ORDER"):
        world.capture_by_order(vault, [(node, 400)], order=order)
    assert world.balance(node) == 400


def test_two_captures_in_one_transaction_pay_once(world: World, vault: Vault, node: Pubkey) -> None:
    [cap, capture] = world.capturing(vault, [(node, 400)], before=[world.cap(vault, DEPOSIT)])

    with world.refused("E_STALE"):
        world.send([cap, capture, capture], [vault.operator.capture_key])
    assert world.balance(node) == 0


def test_an_older_cap_after_more_was_settled(world: World, vault: Vault, node: Pubkey) -> None:
    older = world.cap(vault, 500)
    world.capture(vault, [(node, 600)], cap=1_000)

    with world.refused("E_OVER_CAP"):
        world.capture(vault, [(node, 1)], cap=older)


def test_an_expired_cap(world: World, vault: Vault, node: Pubkey) -> None:
    cap = world.cap(vault, 1_000, valid_for_s=60)
    world.wait(seconds=60)
    world.capture(vault, [(node, 1)], cap=cap)
    world.wait(seconds=1)

    with world.refused("E_CAP_EXPIRED"):
        world.capture(vault, [(node, 1)], cap=cap)


def test_a_cap_valid_until_before_1970(world: World, vault: Vault, node: Pubkey) -> None:
    with world.refused("E_CAP_EXPIRED"):
        world.capture(vault, [(node, 1)], cap=world.cap(vault, 1_000, valid_for_s=-world.now_s - 1))


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thief", ["stranger", "operator", "depositor"])
def test_a_cap_signed_by_another_key(world: World, vault: Vault, node: Pubkey, thief: str) -> None:
    signer = {"stranger": world.key(), "operator": vault.operator.capture_key, "depositor": vault.depositor}[thief]

    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=world.cap(vault, 1_000, signer=signer))


def test_a_capture_without_the_operators_signature(world: World, vault: Vault, node: Pubkey) -> None:
    built = world.capturing(vault, [(node, 1)], before=[world.cap(vault, 1_000)])
    metas = list(built[1].accounts)
    metas[ORDER_SIGNER] = AccountMeta(vault.operator.capture_key.pubkey(), False, False)

    with world.refused("E_ORDER"):
        world.send([built[0], Instruction(world.program_id, bytes(built[1].data), metas)], [world.bank])


@pytest.mark.parametrize("thief", ["stranger", "session", "admin"])
def test_a_capture_signed_by_another_key_than_the_capture_key(
    world: World, vault: Vault, node: Pubkey, thief: str
) -> None:
    keys = {"stranger": world.wallet(), "session": vault.session, "admin": vault.operator.admin}
    world.svm.airdrop(vault.session.pubkey(), 10**9)
    accounts = {ORDER_SIGNER: keys[thief].pubkey()}
    built = world.capturing(vault, [(node, 1)], before=[world.cap(vault, 1_000)], accounts=accounts)

    with world.refused("E_ORDER"):
        world.send(built, [keys[thief]])


def test_an_order_signed_by_another_key(world: World, vault: Vault, node: Pubkey) -> None:
    order = world.order(vault, [(node, 1)], signer=vault.session)

    with world.refused("E_ORDER"):
        world.capture_by_order(vault, [(node, 1)], order=order)


def test_a_capture_key_that_was_rotated_out(world: World, vault: Vault, node: Pubkey) -> None:
    old, operator = vault.operator.capture_key, vault.operator
    order = world.order(vault, [(node, 1)])
    admin, new = operator.admin, world.wallet()
    rotate = program.set_capture_key(world.program_id, operator.config, admin.pubkey(), new.pubkey())
    world.send([rotate], [admin])

    with world.refused("E_ORDER"):
        world.capture(vault, [(node, 1)])
    with world.refused("E_ORDER"):
        world.capture_by_order(vault, [(node, 1)], order=order)
    assert world.config(operator).capture_key == new.pubkey() != old.pubkey()


def test_a_session_key_that_was_rotated_out(world: World, vault: Vault, node: Pubkey) -> None:
    """Its caps count for the grace, so that earned work can be paid, and not a second longer; the new key's only after."""
    new, owner = world.key(), vault.depositor
    world.send([program.rotate_signer(world.program_id, vault.address, owner.pubkey(), new.pubkey())], [owner])
    by_new = world.cap(vault, 1_000, signer=new, valid_for_s=10 * HOUR_S)
    by_old = world.cap(vault, 1_000, valid_for_s=10 * HOUR_S)

    world.wait(seconds=HOUR_S - 1)
    world.capture(vault, [(node, 1)], cap=by_old)
    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=by_new)
    world.wait(seconds=1)
    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=by_old)
    world.capture(vault, [(node, 1)], cap=by_new)


def test_a_second_rotation_does_not_revive_a_rotated_out_key(world: World, vault: Vault, node: Pubkey) -> None:
    first, second, owner = vault.session, world.key(), vault.depositor
    third = world.key()
    for key in (second, third):
        world.send([program.rotate_signer(world.program_id, vault.address, owner.pubkey(), key.pubkey())], [owner])
        if key is second:
            world.wait(seconds=HOUR_S)

    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=world.cap(vault, 1_000, signer=first))
    world.capture(vault, [(node, 1)], cap=world.cap(vault, 1_000, signer=second))


# --- amounts ---------------------------------------------------------------------------------------------------------


def test_over_the_cap_by_one(world: World, vault: Vault, node: Pubkey) -> None:
    with world.refused("E_OVER_CAP"):
        world.capture(vault, [(node, 501), (node, 500)], cap=1_000)
    world.capture(vault, [(node, 500), (node, 500)], cap=1_000)
    with world.refused("E_OVER_CAP"):
        world.capture(vault, [(node, 1)], cap=1_000)


def test_over_the_balance_by_one(world: World, vault: Vault, node: Pubkey) -> None:
    with world.refused("E_OVER_BALANCE"):
        world.capture(vault, [(node, DEPOSIT + 1)])
    world.capture(vault, [(node, DEPOSIT)])
    with world.refused("E_OVER_BALANCE"):
        world.capture(vault, [(node, 1)])


def test_amounts_that_overflow(world: World, vault: Vault, node: Pubkey) -> None:
    with world.refused("E_OVERFLOW"):
        world.capture(vault, [(node, U64_MAX), (node, 2)], cap=U64_MAX)
    world.capture(vault, [(node, 1)], cap=U64_MAX)
    with world.refused("E_OVERFLOW"):
        world.capture(vault, [(node, U64_MAX)], cap=U64_MAX)
    with world.refused("E_OVER_BALANCE"):
        world.capture(vault, [(node, U64_MAX - 1)], cap=U64_MAX)


def test_nothing_but_zero_amounts(world: World, vault: Vault, node: Pubkey) -> None:
    """A capture of nothing would let a stranger wear an order out; a zero beside a real amount is only a zero."""
    with world.refused("E_NOTHING_PAYABLE"):
        world.capture(vault, [(node, 0), (node, 0)])
    world.capture(vault, [(node, 0), (node, 3)])
    assert world.balance(node) == 3


def test_duplicate_payees_are_paid_the_sum_and_counted_so(world: World, vault: Vault, node: Pubkey) -> None:
    with world.refused("E_OVER_CAP"):
        world.capture(vault, [(node, 600), (node, 600)], cap=1_000)

    world.capture(vault, [(node, 300), (node, 300), (node, 100)], cap=1_000)

    assert (world.balance(node), world.state(vault).settled) == (700, 700)


# --- payees that cannot be paid --------------------------------------------------------------------------------------


def test_a_payee_that_cannot_be_paid_does_not_block_the_others(world: World, vault: Vault, node: Pubkey) -> None:
    """Frozen, closed, of another mint, not a token account: left out, not counted as settled, named in the return data."""
    frozen, owner = world.token_account(world.key().pubkey()), world.wallet()
    closed, foreign = world.token_account(owner.pubkey()), world.token_account(owner.pubkey(), world.new_mint())
    world.freeze(frozen)
    world.close_token_account(owner, closed)
    wallet = owner.pubkey()

    landed = world.capture(vault, [(frozen, 1), (closed, 2), (node, 4), (foreign, 8), (wallet, 16)], cap=4)

    assert int.from_bytes(landed.return_data, "little") == 0b11011
    assert (world.balance(node), world.state(vault).settled) == (4, 4)
    with world.refused("E_NOTHING_PAYABLE"):
        world.capture(vault, [(frozen, 1), (closed, 2)])


def test_a_skipped_amount_can_be_huge_without_effect(world: World, vault: Vault, node: Pubkey) -> None:
    closed = world.key().pubkey()

    world.capture(vault, [(closed, U64_MAX), (node, 5), (closed, U64_MAX)], cap=5)

    assert (world.balance(node), world.state(vault).settled) == (5, 5)


def test_the_mint_freezes_the_vaults_own_tokens(world: World, vault: Vault, node: Pubkey) -> None:
    world.freeze(vault.tokens)

    with world.refused("E_TOKEN_ACCOUNT"):
        world.capture(vault, [(node, 1)])


def test_a_capture_by_another_account_order_of_a_called_program(world: World, vault: Vault, node: Pubkey) -> None:
    """Vault and tokens swapped."""
    built = world.capturing(vault, [(node, 1)], before=[world.cap(vault, 1_000)])
    swapped = with_accounts(built[1], {VAULT: vault.tokens, TOKENS: vault.address})

    with world.refused("E_NOT_OURS"):
        world.send([built[0], swapped], [vault.operator.capture_key])
