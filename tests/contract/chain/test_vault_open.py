"""Attacks on the way in: opening vaults and operator configs."""

from __future__ import annotations

import pytest
from solders.instruction import AccountMeta, Instruction
from spl.token import models as token_models
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import approve, set_authority

from tests.support.svm import Vault, World, with_accounts
from torg_chain import instructions as program
from torg_chain.vault import MAXIMUM_GRACE_S, MINIMUM_GRACE_S, SALT_WINDOW_SLOTS

DEPOSIT = 10_000_000


# --- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace_s", [0, MINIMUM_GRACE_S - 1, MAXIMUM_GRACE_S + 1, 2**32 - 1])
def test_open_with_a_grace_outside_the_limits(world: World, grace_s: int) -> None:
    depositor = world.wallet()

    with world.refused("E_GRACE"):
        world.send(world.opening(world.planned(depositor), grace_s=grace_s), [depositor])


@pytest.mark.parametrize("age", [-1, SALT_WINDOW_SLOTS + 1, SALT_WINDOW_SLOTS + 10_000])
def test_open_with_a_salt_outside_the_window(world: World, age: int) -> None:
    depositor = world.wallet()

    with world.refused("E_SALT"):
        world.send(world.opening(world.planned(depositor, salt=world.slot - age)), [depositor])


def test_open_in_another_persons_name(world: World, vault: Vault) -> None:
    """The address follows from who signs, so nobody can open, or occupy, somebody else's."""
    thief, victim = world.wallet(), world.wallet()
    [tokens, opening] = world.opening(world.planned(victim))
    opened = with_accounts(opening, {0: thief.pubkey()})

    with world.refused("E_ADDRESS"):
        world.send([with_accounts(tokens, {0: thief.pubkey()}), opened], [thief])
    metas = list(opening.accounts)
    metas[0] = AccountMeta(victim.pubkey(), False, True)
    with world.refused("E_SIGNER"):
        world.send(
            [with_accounts(tokens, {0: thief.pubkey()}), Instruction(world.program_id, bytes(opening.data), metas)],
            [thief],
        )


def test_open_twice(world: World, vault: Vault) -> None:
    with world.refused("E_STATE"):
        world.send(world.opening(vault), [vault.depositor])


def test_open_without_rent_so_that_the_address_comes_back(world: World) -> None:
    """An account without lamports vanishes after its transaction; the address could be opened a second time."""
    depositor = world.wallet()

    with world.refused("E_RENT"):
        world.send(world.opening(world.planned(depositor), rent_lamports=0), [depositor])
    with world.refused("InsufficientFundsForRent"):
        world.send(world.opening(world.planned(depositor), rent_lamports=1), [depositor])


@pytest.mark.parametrize("gift", ["a little", "too much"])
def test_lamports_sent_to_the_address_beforehand_do_not_block_opening(world: World, gift: str) -> None:
    depositor = world.wallet()
    vault = world.planned(depositor)
    lamports = world.rent(0) if gift == "a little" else 10**9
    world.svm.airdrop(vault.address, lamports)

    world.send(world.opening(vault), [depositor])

    found = world.svm.get_account(vault.address)
    assert found is not None
    assert found.lamports == max(lamports, world.rent(304))
    assert world.state(vault).depositor == depositor.pubkey()


def test_lamports_sent_beforehand_do_not_block_an_operator(world: World) -> None:
    from torg_chain.vault import find_config

    admin = world.wallet()
    world.svm.airdrop(find_config(world.program_id, admin.pubkey())[0], world.rent(0))

    assert world.config(world.new_operator(admin=admin)).admin == admin.pubkey()


def test_a_config_is_made_once(world: World) -> None:
    """Else whoever holds the admin key could be made to replace the capture key by a second init."""
    with world.refused("E_STATE"):
        world.new_operator(admin=world.operator.admin)


def test_a_config_for_somebody_else(world: World) -> None:
    thief, admin = world.wallet(), world.wallet()
    made = program.init_config(world.program_id, admin.pubkey(), thief.pubkey(), thief.pubkey(), 10**7)

    with world.refused("E_ADDRESS"):
        world.send([with_accounts(made, {0: thief.pubkey()})], [thief])
    metas = [AccountMeta(admin.pubkey(), False, True), *list(made.accounts)[1:]]
    with world.refused("E_SIGNER"):
        world.send([Instruction(world.program_id, bytes(made.data), metas)], [thief])


def test_the_capture_key_changed_by_somebody_else(world: World) -> None:
    thief, operator = world.wallet(), world.operator
    for wrong in (thief, operator.capture_key):
        change = program.set_capture_key(world.program_id, operator.config, wrong.pubkey(), thief.pubkey())
        with world.refused("E_SIGNER"):
            world.send([change], [wrong])
    fake = world.key().pubkey()
    world.put(fake, b"\x01" + bytes(7) + bytes(thief.pubkey()) * 3, thief.pubkey())
    change = program.set_capture_key(world.program_id, fake, thief.pubkey(), thief.pubkey())
    with world.refused("E_NOT_OURS"):
        world.send([change], [thief])


def test_the_capture_key_changed_without_the_admins_signature(world: World) -> None:
    thief, operator = world.wallet(), world.operator
    change = program.set_capture_key(world.program_id, operator.config, operator.admin.pubkey(), thief.pubkey())
    metas = [change.accounts[0], AccountMeta(operator.admin.pubkey(), False, False)]

    with world.refused("E_SIGNER"):
        world.send([Instruction(world.program_id, bytes(change.data), metas)], [thief])


def test_configs_and_openings_with_malformed_data_and_account_lists(world: World) -> None:
    admin, operator = world.wallet(), world.operator
    made = program.init_config(world.program_id, admin.pubkey(), admin.pubkey(), admin.pubkey(), 10**7)
    change = program.set_capture_key(
        world.program_id, operator.config, operator.admin.pubkey(), operator.admin.pubkey()
    )
    [tokens, opening] = world.opening(world.planned(admin))
    for whole, before, signer in ((made, [], admin), (change, [], operator.admin), (opening, [tokens], admin)):
        data, metas = bytes(whole.data), list(whole.accounts)
        for wrong in (data[:-1], data + b"\0"):
            with world.refused("E_DATA"):
                world.send([*before, Instruction(world.program_id, wrong, metas)], [signer])
        with world.refused("E_ACCOUNTS"):
            short = Instruction(world.program_id, data, metas[:-1])
            world.send([*before, short], [signer if len(metas) > 2 else world.bank])


def test_a_rotation_with_malformed_data(world: World, vault: Vault) -> None:
    owner = vault.depositor
    rotate = program.rotate_signer(world.program_id, vault.address, owner.pubkey(), owner.pubkey())
    for wrong in (bytes(rotate.data)[:-1], bytes(rotate.data) + b"\0"):
        with world.refused("E_DATA"):
            world.send([Instruction(world.program_id, wrong, list(rotate.accounts))], [owner])


def test_open_under_a_config_that_is_none(world: World, vault: Vault) -> None:
    depositor = world.wallet()
    fake = world.key().pubkey()
    world.put(fake, b"\x01" + bytes(103), world.bank.pubkey())
    for wrong in (fake, vault.address, depositor.pubkey()):
        [tokens, opening] = world.opening(world.planned(depositor))
        with world.refused("E_NOT_OURS"):
            world.send([tokens, with_accounts(opening, {3: wrong})], [depositor])


@pytest.mark.parametrize("held", ["delegate", "close authority"])
def test_a_second_authority_on_the_vaults_tokens(world: World, held: str) -> None:
    """Nobody can sign for the vault's address, so such an account is made out of thin air here; the program still looks."""
    depositor = world.wallet()
    vault = world.planned(depositor)
    thief = bytes(world.key().pubkey())
    world.token_account(vault.address)
    found = world.svm.get_account(vault.tokens)
    assert found is not None
    data, at = bytearray(found.data), 72 if held == "delegate" else 129
    data[at : at + 36] = b"\1\0\0\0" + thief
    world.put(vault.tokens, bytes(data), TOKEN_PROGRAM_ID)

    with world.refused("E_TOKEN_ACCOUNT"):
        world.send(world.opening(vault), [depositor])


@pytest.mark.parametrize("what", ["another's", "of an own address", "frozen"])
def test_open_with_a_token_account_that_is_not_the_associated_one(world: World, what: str) -> None:
    depositor = world.wallet()
    vault = world.planned(depositor)
    [tokens, opening] = world.opening(vault)
    account, error = {
        "another's": (world.token_account(depositor.pubkey()), "E_TOKEN_ACCOUNT"),
        "of an own address": (world.extra_token_account(vault.address), "E_ADDRESS"),
        "frozen": (world.token_account(vault.address), "E_TOKEN_ACCOUNT"),
    }[what]
    if what == "frozen":
        world.freeze(account)

    with world.refused(error):
        world.send([tokens, with_accounts(opening, {2: account})], [depositor])


def test_nobody_gets_a_second_authority_after_opening(world: World, vault: Vault) -> None:
    """The token program asks for the vault's own signature, which only the vault program can give, and never gives for this."""
    for thief in (vault.depositor, vault.operator.admin):
        delegate = token_models.ApproveParams(
            program_id=TOKEN_PROGRAM_ID, source=vault.tokens, delegate=thief.pubkey(), owner=thief.pubkey(), amount=1
        )
        takeover = token_models.SetAuthorityParams(
            program_id=TOKEN_PROGRAM_ID,
            account=vault.tokens,
            authority=token_models.AuthorityType.CLOSE_ACCOUNT,
            current_authority=thief.pubkey(),
            new_authority=thief.pubkey(),
        )
        for attempt in (approve(delegate), set_authority(takeover)):
            with world.refused("Custom(4)"):  # the token program's OwnerMismatch
                world.send([attempt], [thief])
