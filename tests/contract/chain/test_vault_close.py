"""Attacks on the way in and out: opening, closing, rescuing, and addresses that come back."""

from __future__ import annotations

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer
from spl.token import models as token_models
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import approve, set_authority

from tests.support.svm import CHAIN_ID, HOUR_S, Vault, World, with_accounts
from torg_chain import instructions as program
from torg_chain.vault import MAXIMUM_GRACE_S, MINIMUM_GRACE_S, SALT_WINDOW_SLOTS, find_vault, token_account_of

DEPOSIT = 10_000_000


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def vault(world: World) -> Vault:
    return world.open_vault(deposit=DEPOSIT)


@pytest.fixture
def node(world: World) -> Pubkey:
    return world.token_account(world.key().pubkey())


def planned(world: World, depositor: Keypair, *, salt: int | None = None) -> Vault:
    """A vault that is not open yet."""
    salt = world.slot if salt is None else salt
    address, _ = find_vault(world.program_id, depositor.pubkey(), world.operator.config, salt)
    return Vault(address, salt, depositor, world.key(), world.operator, world.mint)


def pass_salt_window(world: World) -> None:
    world.wait(slots=SALT_WINDOW_SLOTS + 1)


# --- opening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace_s", [0, MINIMUM_GRACE_S - 1, MAXIMUM_GRACE_S + 1, 2**32 - 1])
def test_open_with_a_grace_outside_the_limits(world: World, grace_s: int) -> None:
    depositor = world.wallet()

    with world.refused("E_GRACE"):
        world.send(world.opening(planned(world, depositor), grace_s=grace_s), [depositor])


@pytest.mark.parametrize("age", [-1, SALT_WINDOW_SLOTS + 1, SALT_WINDOW_SLOTS + 10_000])
def test_open_with_a_salt_outside_the_window(world: World, age: int) -> None:
    depositor = world.wallet()

    with world.refused("E_SALT"):
        world.send(world.opening(planned(world, depositor, salt=world.slot - age)), [depositor])


def test_open_in_another_persons_name(world: World, vault: Vault) -> None:
    """The address follows from who signs, so nobody can open, or occupy, somebody else's."""
    thief, victim = world.wallet(), world.wallet()
    [tokens, opening] = world.opening(planned(world, victim))
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
        world.send(world.opening(planned(world, depositor), rent_lamports=0), [depositor])
    with world.refused("InsufficientFundsForRent"):
        world.send(world.opening(planned(world, depositor), rent_lamports=1), [depositor])


@pytest.mark.parametrize("gift", ["a little", "too much"])
def test_lamports_sent_to_the_address_beforehand_do_not_block_opening(world: World, gift: str) -> None:
    depositor = world.wallet()
    vault = planned(world, depositor)
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


def test_open_under_a_config_that_is_none(world: World, vault: Vault) -> None:
    depositor = world.wallet()
    fake = world.key().pubkey()
    world.put(fake, b"\x01" + bytes(103), world.bank.pubkey())
    for wrong in (fake, vault.address, depositor.pubkey()):
        [tokens, opening] = world.opening(planned(world, depositor))
        with world.refused("E_NOT_OURS"):
            world.send([tokens, with_accounts(opening, {3: wrong})], [depositor])


@pytest.mark.parametrize("held", ["delegate", "close authority"])
def test_a_second_authority_on_the_vaults_tokens(world: World, held: str) -> None:
    """Nobody can sign for the vault's address, so such an account is made out of thin air here; the program still looks."""
    depositor = world.wallet()
    vault = planned(world, depositor)
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
    vault = planned(world, depositor)
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


# --- closing --------------------------------------------------------------------------------------------------------


def test_the_depositor_gets_the_rest_and_all_rent_after_the_grace(world: World, vault: Vault, node: Pubkey) -> None:
    world.capture(vault, [(node, 4_000_000)])
    lamports = world.svm.get_balance(vault.depositor.pubkey())
    world.start_close(vault)
    pass_salt_window(world)
    world.wait(seconds=HOUR_S)

    landed = world.finish_close(vault)

    assert world.balance(token_account_of(vault.depositor.pubkey(), world.mint)) == DEPOSIT - 4_000_000
    assert not world.exists(vault.address)
    assert not world.exists(vault.tokens)
    rent = world.rent(304) + world.rent(165)
    assert world.svm.get_balance(vault.depositor.pubkey()) == lamports + rent - landed.fee - 5_000  # two transactions


def test_close_inside_the_grace(world: World, vault: Vault) -> None:
    pass_salt_window(world)
    world.start_close(vault)
    world.wait(seconds=HOUR_S - 1)

    with world.refused("E_TOO_EARLY"):
        world.finish_close(vault)
    world.wait(seconds=1)
    world.finish_close(vault)


def test_close_without_having_started(world: World, vault: Vault) -> None:
    pass_salt_window(world)
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
    pass_salt_window(world)
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
    pass_salt_window(world)
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
    pass_salt_window(world)
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
    pass_salt_window(world)
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
    pass_salt_window(world)
    world.wait(seconds=HOUR_S)
    world.capture(vault, [(node, 2)], cap=cap)
    late = world.capturing(vault, [(node, 4)], before=[cap])
    world.finish_close(vault)

    with world.refused("E_NOT_OURS"):
        world.send(late, [vault.operator.capture_key])
    assert world.balance(node) == 3


# --- addresses that come back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("agreed", [False, True])
def test_reopen_after_closing(world: World, vault: Vault, agreed: bool) -> None:
    """The same address with settled at 0 would make every old cap and order live again."""
    if not agreed:
        world.start_close(vault)
        world.wait(seconds=HOUR_S)
    pass_salt_window(world)
    world.finish_close(vault, agreed_by=vault.operator.admin if agreed else None)

    with world.refused("E_SALT"):
        world.send(world.opening(vault), [vault.depositor])


def test_a_closed_vault_kept_alive_within_its_closing_transaction(world: World, vault: Vault, node: Pubkey) -> None:
    """Lamports sent to it right after the close would keep a zombie that bars rescue: it belongs to the system by then."""
    world.start_close(vault)
    pass_salt_window(world)
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


# --- rescue ---------------------------------------------------------------------------------------------------------


def rescue(world: World, vault: Vault, *, mint: Pubkey | None = None) -> Instruction:
    return program.rescue(
        world.program_id,
        depositor=vault.depositor.pubkey(),
        config=vault.operator.config,
        mint=mint or world.mint,
        salt=vault.salt,
    )


def test_rescue_returns_what_was_sent_to_a_closed_vault(world: World, vault: Vault) -> None:
    pass_salt_window(world)
    world.finish_close(vault, agreed_by=vault.operator.admin)
    world.token_account(vault.address, amount=1_234)

    world.send([rescue(world, vault)], [vault.depositor])

    assert world.balance(token_account_of(vault.depositor.pubkey(), world.mint)) == DEPOSIT + 1_234
    assert not world.exists(vault.tokens)


def test_rescue_returns_what_was_sent_to_a_vault_that_was_never_opened(world: World) -> None:
    depositor = world.wallet()
    vault = planned(world, depositor)
    world.token_account(vault.address, amount=9)
    world.token_account(depositor.pubkey())

    world.send([rescue(world, vault)], [depositor])

    assert world.balance(token_account_of(depositor.pubkey(), world.mint)) == 9


def test_rescue_from_a_living_vault(world: World, vault: Vault) -> None:
    """Else it would be a close without grace."""
    world.token_account(vault.depositor.pubkey())

    with world.refused("E_STATE"):
        world.send([rescue(world, vault)], [vault.depositor])


def test_rescue_by_somebody_else(world: World) -> None:
    depositor, thief = world.wallet(), world.wallet()
    vault = planned(world, depositor)
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
    other = planned(world, vault.depositor, salt=vault.salt + 5)
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
    pass_salt_window(world)
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
