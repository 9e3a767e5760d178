"""Attacks on the way out: closing, rescuing, and addresses that come back."""

from __future__ import annotations

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer

from tests.support.svm import CHAIN_ID, HOUR_S, Vault, World, with_accounts
from torg_chain import instructions as program
from torg_chain.vault import SALT_WINDOW_SLOTS, token_account_of

DEPOSIT = 10_000_000


# --- closing ---------------------------------------------------------------------------------------------------------


def test_the_depositor_gets_the_rest_and_all_rent_after_the_grace(world: World, vault: Vault, node: Pubkey) -> None:
    world.capture(vault, [(node, 4_000_000)])
    lamports = world.svm.get_balance(vault.depositor.pubkey())
    world.start_close(vault)
    world.pass_salt_window()
    world.wait(seconds=HOUR_S)

    landed = world.finish_close(vault)

    assert world.balance(token_account_of(vault.depositor.pubkey(), world.mint)) == DEPOSIT - 4_000_000
    assert not world.exists(vault.address)
    assert not world.exists(vault.tokens)
    rent = world.rent(304) + world.rent(165)
    assert world.svm.get_balance(vault.depositor.pubkey()) == lamports + rent - landed.fee - 5_000  # two transactions


def test_close_inside_the_grace(world: World, vault: Vault) -> None:
    world.pass_salt_window()
    world.start_close(vault)
    world.wait(seconds=HOUR_S - 1)

    with world.refused("E_TOO_EARLY"):
        world.finish_close(vault)
    world.wait(seconds=1)
    world.finish_close(vault)


def test_close_without_having_started(world: World, vault: Vault) -> None:
    world.pass_salt_window()
    world.wait(seconds=HOUR_S)

    with world.refused("E_STATE"):
        world.finish_close(vault)


def test_start_twice_cancel_twice(world: World, vault: Vault) -> None:
    owner = vault.depositor
    cancel = program.cancel_close(world.program_id, vault.address, owner.pubkey())
    with world.refused("E_STATE"):
        world.send([cancel], [owner])
    world.start_close(vault)
    with world.refused("E_STATE"):
        world.start_close(vault)
    world.send([cancel], [owner])
    assert world.state(vault).close_at == 0


def test_cancel_and_start_again_waits_for_a_whole_grace_again(world: World, vault: Vault) -> None:
    owner = vault.depositor
    world.start_close(vault)
    world.pass_salt_window()
    world.wait(seconds=HOUR_S)
    world.send([program.cancel_close(world.program_id, vault.address, owner.pubkey())], [owner])
    with world.refused("E_STATE"):
        world.finish_close(vault)
    world.start_close(vault)
    with world.refused("E_TOO_EARLY"):
        world.finish_close(vault)


@pytest.mark.parametrize("thief", ["stranger", "operator", "session"])
@pytest.mark.parametrize("step", ["start", "cancel", "finish", "rotate"])
def test_close_by_the_wrong_party(world: World, vault: Vault, thief: str, step: str) -> None:
    world.start_close(vault)
    world.pass_salt_window()
    world.wait(seconds=HOUR_S)
    by = {"stranger": world.wallet(), "operator": vault.operator.admin, "session": vault.session}[thief]
    world.svm.airdrop(by.pubkey(), 10**9)
    world.token_account(by.pubkey())
    key = by.pubkey()
    attempt = {
        "start": program.start_close(world.program_id, vault.address, key),
        "cancel": program.cancel_close(world.program_id, vault.address, key),
        "finish": program.finish_close(world.program_id, vault=vault.address, depositor=key, mint=world.mint),
        "rotate": program.rotate_signer(world.program_id, vault.address, key, key),
    }[step]

    with world.refused("E_SIGNER"):
        world.send([attempt], [by])


def test_close_in_the_depositors_name_without_its_signature(world: World, vault: Vault) -> None:
    for built in (
        program.start_close(world.program_id, vault.address, vault.depositor.pubkey()),
        program.rotate_signer(world.program_id, vault.address, vault.depositor.pubkey(), world.bank.pubkey()),
    ):
        metas = [built.accounts[0], AccountMeta(vault.depositor.pubkey(), False, True)]
        with world.refused("E_SIGNER"):
            world.send([Instruction(world.program_id, bytes(built.data), metas)], [world.bank])


def test_close_to_somebody_elses_token_account(world: World, vault: Vault, node: Pubkey) -> None:
    """Even the depositor's signature does not move the rest elsewhere: a signed closing cannot be redirected."""
    world.start_close(vault)
    world.pass_salt_window()
    world.wait(seconds=HOUR_S)
    foreign = world.token_account(vault.depositor.pubkey(), world.new_mint())
    closing = program.finish_close(
        world.program_id, vault=vault.address, depositor=vault.depositor.pubkey(), mint=world.mint
    )
    for wrong in (node, foreign, vault.depositor.pubkey(), vault.tokens):
        with world.refused("E_TOKEN_ACCOUNT"):
            world.send([with_accounts(closing, {3: wrong})], [vault.depositor])
    with world.refused("E_WRONG_ACCOUNT"):
        world.send([with_accounts(closing, {2: node})], [vault.depositor])
    with world.refused("E_WRONG_ACCOUNT"):
        world.send([with_accounts(closing, {4: world.program_id})], [vault.depositor])


def test_the_operator_can_waive_the_grace_but_not_the_salt_window(world: World, vault: Vault) -> None:
    admin = vault.operator.admin
    world.wait(slots=SALT_WINDOW_SLOTS)
    with world.refused("E_TOO_EARLY"):
        world.finish_close(vault, agreed_by=admin)
    world.wait()
    world.finish_close(vault, agreed_by=admin)
    assert world.balance(token_account_of(vault.depositor.pubkey(), world.mint)) == DEPOSIT


def test_agreement_of_somebody_who_is_not_the_operator(world: World, vault: Vault) -> None:
    world.pass_salt_window()
    rival = world.new_operator()

    with world.refused("E_STATE"):
        world.finish_close(vault, agreed_by=vault.operator.capture_key)
    foreign = program.finish_close(
        world.program_id,
        vault=vault.address,
        depositor=vault.depositor.pubkey(),
        mint=world.mint,
        agreed_by=(rival.config, rival.admin.pubkey()),
    )
    with world.refused("E_STATE"):
        world.send([foreign], [vault.depositor, rival.admin])
    metas = [*list(foreign.accounts)[:5], AccountMeta(vault.operator.config, False, False)]
    metas.append(AccountMeta(vault.operator.admin.pubkey(), False, False))
    with world.refused("E_STATE"):
        world.send([Instruction(world.program_id, bytes(foreign.data), metas)], [vault.depositor])


def test_a_capture_races_start_close(world: World, vault: Vault, node: Pubkey) -> None:
    """What was earned is payable through the grace, and after it until the depositor takes the rest; then never again."""
    cap = world.cap(vault, DEPOSIT, valid_for_s=10 * HOUR_S)
    world.start_close(vault)
    world.capture(vault, [(node, 1)], cap=cap)
    world.pass_salt_window()
    world.wait(seconds=HOUR_S)
    world.capture(vault, [(node, 2)], cap=cap)
    late = world.capturing(vault, [(node, 4)], before=[cap])
    world.finish_close(vault)

    with world.refused("E_NOT_OURS"):
        world.send(late, [vault.operator.capture_key])
    assert world.balance(node) == 3


# --- addresses that come back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("agreed", [False, True])
def test_reopen_after_closing(world: World, vault: Vault, agreed: bool) -> None:
    """The same address with settled at 0 would make every old cap and order live again."""
    if not agreed:
        world.start_close(vault)
        world.wait(seconds=HOUR_S)
    world.pass_salt_window()
    world.finish_close(vault, agreed_by=vault.operator.admin if agreed else None)

    with world.refused("E_SALT"):
        world.send(world.opening(vault), [vault.depositor])


def test_a_closed_vault_kept_alive_within_its_closing_transaction(world: World, vault: Vault, node: Pubkey) -> None:
    """Lamports sent to it right after the close would keep a zombie that bars rescue: it belongs to the system by then."""
    world.start_close(vault)
    world.pass_salt_window()
    world.wait(seconds=HOUR_S)
    owner = vault.depositor
    world.token_account(owner.pubkey())
    closing = program.finish_close(world.program_id, vault=vault.address, depositor=owner.pubkey(), mint=world.mint)
    revive = transfer(TransferParams(from_pubkey=owner.pubkey(), to_pubkey=vault.address, lamports=10**7))
    [cap, capture] = world.capturing(vault, [(node, 1)], before=[world.cap(vault, 1_000)])

    with world.refused("E_NOT_OURS"):
        world.send([cap, closing, revive, with_index(capture, 0)], [owner, vault.operator.capture_key])
    world.send([closing, revive], [owner])
    found = world.svm.get_account(vault.address)
    assert found is not None
    assert (found.owner, bytes(found.data)) == (Pubkey.default(), b"")
    with world.refused("E_SALT"):
        world.send(world.opening(vault), [owner])
    world.token_account(vault.address, amount=77)
    world.send([rescue(world, vault)], [owner])


def with_index(capture: Instruction, cap_index: int) -> Instruction:
    data = bytes(capture.data)
    return Instruction(capture.program_id, data[:1] + bytes([cap_index]) + data[2:], list(capture.accounts))


# --- rescue ----------------------------------------------------------------------------------------------------------


def rescue(world: World, vault: Vault, *, mint: Pubkey | None = None) -> Instruction:
    return program.rescue(
        world.program_id,
        depositor=vault.depositor.pubkey(),
        config=vault.operator.config,
        mint=mint or world.mint,
        salt=vault.salt,
    )


def test_rescue_returns_what_was_sent_to_a_closed_vault(world: World, vault: Vault) -> None:
    world.pass_salt_window()
    world.finish_close(vault, agreed_by=vault.operator.admin)
    world.token_account(vault.address, amount=1_234)

    world.send([rescue(world, vault)], [vault.depositor])

    assert world.balance(token_account_of(vault.depositor.pubkey(), world.mint)) == DEPOSIT + 1_234
    assert not world.exists(vault.tokens)


def test_rescue_returns_what_was_sent_to_a_vault_that_was_never_opened(world: World) -> None:
    depositor = world.wallet()
    vault = world.planned(depositor)
    world.token_account(vault.address, amount=9)
    world.token_account(depositor.pubkey())

    world.send([rescue(world, vault)], [depositor])

    assert world.balance(token_account_of(depositor.pubkey(), world.mint)) == 9


def test_rescue_from_a_living_vault(world: World, vault: Vault) -> None:
    """Else it would be a close without grace."""
    world.token_account(vault.depositor.pubkey())

    with world.refused("E_STATE"):
        world.send([rescue(world, vault)], [vault.depositor])


def test_a_close_and_a_rescue_of_frozen_tokens(world: World, vault: Vault) -> None:
    """The mint's freeze authority is the one power that can bar the way out; it is named, and nothing is half-done."""
    lost = world.planned(vault.depositor, salt=vault.salt + 5)
    for tokens in (world.token_account(lost.address, amount=9), vault.tokens):
        world.freeze(tokens)
    world.start_close(vault)
    world.pass_salt_window()
    world.wait(seconds=HOUR_S)

    with world.refused("E_TOKEN_ACCOUNT"):
        world.finish_close(vault)
    with world.refused("E_TOKEN_ACCOUNT"):
        world.send([rescue(world, lost)], [vault.depositor])


def test_rescue_with_malformed_data(world: World) -> None:
    depositor = world.wallet()
    honest = rescue(world, world.planned(depositor))
    for data in (bytes(honest.data)[:-1], bytes(honest.data) + b"\0"):
        with world.refused("E_DATA"):
            world.send([Instruction(world.program_id, data, list(honest.accounts))], [depositor])


def test_rescue_by_somebody_else(world: World) -> None:
    depositor, thief = world.wallet(), world.wallet()
    vault = world.planned(depositor)
    world.token_account(vault.address, amount=9)
    mine, theirs = world.token_account(depositor.pubkey()), world.token_account(thief.pubkey())
    honest = rescue(world, vault)

    with world.refused("E_ADDRESS"):
        world.send([with_accounts(honest, {1: thief.pubkey(), 3: theirs})], [thief])
    with world.refused("E_TOKEN_ACCOUNT"):
        world.send([with_accounts(honest, {3: theirs})], [depositor])
    with world.refused("E_TOKEN_ACCOUNT"):
        world.send([with_accounts(honest, {2: mine})], [depositor])
    with world.refused("E_TOKEN_ACCOUNT"):
        world.send([with_accounts(honest, {3: world.token_account(depositor.pubkey(), world.new_mint())})], [depositor])
    with world.refused("E_WRONG_ACCOUNT"):
        world.send([with_accounts(honest, {5: world.program_id})], [depositor])
    metas = list(honest.accounts)
    metas[1] = AccountMeta(depositor.pubkey(), False, True)
    with world.refused("E_SIGNER"):
        world.send([Instruction(world.program_id, bytes(honest.data), metas)], [thief])


def test_rescue_under_another_salt_or_operator(world: World, vault: Vault) -> None:
    """A living vault's tokens with the seeds of an address that has no account."""
    other = world.planned(vault.depositor, salt=vault.salt + 5)
    world.token_account(vault.depositor.pubkey())
    honest = rescue(world, other)

    with world.refused("E_TOKEN_ACCOUNT"):
        world.send([with_accounts(honest, {2: vault.tokens})], [vault.depositor])
    world.token_account(other.address, amount=5)
    rival = world.new_operator()
    with world.refused("E_ADDRESS"):
        world.send([with_accounts(honest, {4: rival.config})], [vault.depositor])


def test_other_tokens_sent_to_a_vault_wait_for_its_end(world: World, vault: Vault) -> None:
    """A vault counts one token. Another one sent by mistake stays until the vault is closed, and is then rescued."""
    other_mint = world.new_mint()
    world.token_account(vault.address, other_mint, amount=50)
    mine = world.token_account(vault.depositor.pubkey(), other_mint)
    with world.refused("E_STATE"):
        world.send([rescue(world, vault, mint=other_mint)], [vault.depositor])
    world.pass_salt_window()
    world.finish_close(vault, agreed_by=vault.operator.admin)

    world.send([rescue(world, vault, mint=other_mint)], [vault.depositor])

    assert world.balance(mine) == 50


def test_unknown_and_short_instructions(world: World, vault: Vault) -> None:
    owner = vault.depositor
    metas = [AccountMeta(vault.address, False, True), AccountMeta(owner.pubkey(), True, True)]
    for data in (b"", b"\x63", b"\xff"):
        with world.refused("E_DATA"):
            world.send([Instruction(world.program_id, data, metas)], [owner])
    for tag in (0, 2, 3, 4, 5, 6, 7, 8):
        listed = [] if tag != 3 else metas
        with world.refused("E_DATA" if tag == 3 else "E_ACCOUNTS"):
            world.send([Instruction(world.program_id, bytes([tag]), listed)], [owner])
    assert world.state(vault).chain_id == CHAIN_ID
