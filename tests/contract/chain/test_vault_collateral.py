"""A node's collateral: what the operator can take of it, for whom and when; each attack refused with exactly the named error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from tests.support.collateral import (
    EVIDENCE,
    STAKE,
    cancellation,
    execute,
    execution,
    home,
    proposal,
    propose,
    steps,
)
from tests.support.svm import Operator, Vault, World, with_accounts
from torg_chain import instructions as program
from torg_chain.vault import (
    COLLATERAL_SIZE,
    DISPUTE_DELAY_S,
    MINIMUM_COLLATERAL_GRACE_S,
    SALT_WINDOW_SLOTS,
    ProposedSlash,
    VaultKind,
    chained,
    token_account_of,
)

COLLATERAL, CONFIG, ADMIN, TOKENS, TARGET, TOKEN_PROGRAM = range(6)


# --- the honest way --------------------------------------------------------------------------------------------------


def test_a_slash_in_two_steps_pays_the_client_and_leaves_the_evidence(
    world: World, stake: Vault, client: Vault
) -> None:
    propose(world, stake, client)
    due = world.now_s + DISPUTE_DELAY_S
    assert world.state(stake).slash == ProposedSlash(400_000, due, EVIDENCE, client.depositor.pubkey())
    world.wait(seconds=DISPUTE_DELAY_S)

    execute(world, stake, client)

    state = world.state(stake)
    assert (world.balance(home(client)), state.balance) == (400_000, STAKE - 400_000)
    assert (state.settled, state.captures, state.slash) == (400_000, 1, None)
    assert state.roots == chained(bytes(32), EVIDENCE)


def test_a_node_leaves_with_all_that_was_not_slashed(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)
    execute(world, stake, client)
    world.start_close(stake)
    world.wait(seconds=MINIMUM_COLLATERAL_GRACE_S, slots=SALT_WINDOW_SLOTS + 1)

    world.finish_close(stake)

    assert world.balance(token_account_of(stake.depositor.pubkey(), stake.mint)) == STAKE - 400_000
    assert not world.exists(stake.address)
    assert not world.exists(stake.tokens)


def test_a_cancelled_slash_makes_room_for_another(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    world.send([cancellation(world, stake)], [stake.operator.admin])
    assert world.state(stake).slash is None
    propose(world, stake, client, 7)
    world.wait(seconds=DISPUTE_DELAY_S)
    execute(world, stake, client)

    assert world.balance(home(client)) == 7


def test_the_beneficiary_may_have_closed_its_vault_meanwhile(world: World, stake: Vault, client: Vault) -> None:
    """The wallet was noted, so a client that left is still made whole."""
    propose(world, stake, client)
    world.pass_salt_window()
    world.finish_close(client, agreed_by=client.operator.admin)
    world.wait(seconds=DISPUTE_DELAY_S)
    before = world.balance(home(client))

    execute(world, stake, client)

    assert world.balance(home(client)) == before + 400_000


# --- to whom ---------------------------------------------------------------------------------------------------------


def own_keys(operator: Operator) -> dict[str, Keypair]:
    return {"admin": operator.admin, "capture key": operator.capture_key, "fee owner": operator.fee_owner}


@pytest.mark.parametrize("whose", ["admin", "capture key", "fee owner"])
def test_a_slash_to_the_operator_itself(world: World, stake: Vault, whose: str) -> None:
    """By a client vault that the operator opened with one of its own keys."""
    key = own_keys(world.operator)[whose]
    world.svm.airdrop(key.pubkey(), 10**9)
    own = world.open_vault(depositor=key)

    with world.refused("E_BENEFICIARY"):
        propose(world, stake, own)


def test_a_slash_to_a_key_that_became_the_operators_meanwhile(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)
    admin = stake.operator.admin
    rotate = program.set_capture_key(world.program_id, stake.operator.config, admin.pubkey(), client.depositor.pubkey())
    world.send([rotate], [admin])

    with world.refused("E_BENEFICIARY"):
        execute(world, stake, client)


@pytest.mark.parametrize("whose", ["admin", "capture key", "fee owner", "stranger"])
def test_a_slash_that_is_paid_into_another_account_than_was_proposed(
    world: World, stake: Vault, client: Vault, whose: str
) -> None:
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)
    thief = world.key() if whose == "stranger" else own_keys(world.operator)[whose]
    theirs = world.token_account(thief.pubkey())

    with world.refused("E_TOKEN_ACCOUNT"):
        execute(world, stake, client, to=theirs)
    assert world.balance(theirs) == 0


def test_a_slash_to_a_client_of_another_operator(world: World, stake: Vault) -> None:
    foreign = world.open_vault(operator=world.new_operator())

    with world.refused("E_BENEFICIARY"):
        propose(world, stake, foreign)


def test_a_slash_to_another_nodes_collateral(world: World, stake: Vault) -> None:
    other = world.open_vault(grace_s=MINIMUM_COLLATERAL_GRACE_S, kind=VaultKind.COLLATERAL)

    for wrong in (other, stake):
        with world.refused("E_BENEFICIARY"):
            propose(world, stake, wrong)


def test_a_slash_to_what_is_no_vault(world: World, stake: Vault, client: Vault) -> None:
    found = world.svm.get_account(client.address)
    assert found is not None
    fake = world.key().pubkey()
    world.put(fake, bytes(found.data), world.bank.pubkey())

    for wrong in (fake, world.operator.config, client.depositor.pubkey(), client.tokens):
        with world.refused("E_NOT_OURS"):
            world.send([proposal(world, stake, wrong)], [stake.operator.admin])


def test_the_beneficiarys_token_account_is_closed_or_frozen(world: World, stake: Vault, client: Vault) -> None:
    """It bars nothing for good: any other token account of that wallet will do, and its owner can open the closed one again."""
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)
    world.close_token_account(client.depositor, home(client))
    with world.refused("E_TOKEN_ACCOUNT"):
        execute(world, stake, client)
    world.token_account(client.depositor.pubkey())
    world.freeze(home(client))
    with world.refused("E_TOKEN_ACCOUNT"):
        execute(world, stake, client)
    other = world.extra_token_account(client.depositor.pubkey())

    execute(world, stake, client, to=other)

    assert world.balance(other) == 400_000


def test_the_beneficiarys_account_of_another_mint(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)

    with world.refused("E_TOKEN_ACCOUNT"):
        execute(world, stake, client, to=world.token_account(client.depositor.pubkey(), world.new_mint()))


# --- by whom, and how much -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thief", ["stranger", "capture key", "node", "client"])
def test_a_slash_by_the_wrong_party(world: World, stake: Vault, client: Vault, thief: str) -> None:
    """The capture key pays for work every few minutes and lives on a server: it must not reach what nodes stake."""
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)
    by = {
        "stranger": world.wallet(),
        "capture key": stake.operator.capture_key,
        "node": stake.depositor,
        "client": client.depositor,
    }[thief]

    for step in steps(world, stake, client):
        with world.refused("E_SIGNER"):
            world.send([with_accounts(step, {ADMIN: by.pubkey()})], [by])


def test_a_slash_without_the_admins_signature(world: World, stake: Vault, client: Vault) -> None:
    for step in steps(world, stake, client):
        metas = list(step.accounts)
        metas[ADMIN] = AccountMeta(stake.operator.admin.pubkey(), False, False)
        with world.refused("E_SIGNER"):
            world.send([Instruction(world.program_id, bytes(step.data), metas)], [world.bank])


def test_a_slash_by_another_operator(world: World, stake: Vault, client: Vault) -> None:
    rival = world.new_operator()

    for step in steps(world, stake, client):
        with world.refused("E_WRONG_ACCOUNT"):
            taken = with_accounts(step, {CONFIG: rival.config, ADMIN: rival.admin.pubkey()})
            world.send([taken], [rival.admin])


def test_a_slash_with_a_fake_config(world: World, stake: Vault, client: Vault) -> None:
    thief, fake = world.wallet(), world.key().pubkey()
    world.put(fake, b"\x01" + bytes(7) + bytes(thief.pubkey()) * 3, thief.pubkey())

    for step in steps(world, stake, client):
        with world.refused("E_NOT_OURS"):
            world.send([with_accounts(step, {CONFIG: fake, ADMIN: thief.pubkey()})], [thief])


def test_a_slash_of_more_than_there_is(world: World, stake: Vault, client: Vault) -> None:
    for amount in (STAKE + 1, 2**64 - 1):
        with world.refused("E_OVER_BALANCE"):
            propose(world, stake, client, amount)
    propose(world, stake, client, STAKE)


def test_a_slash_of_nothing(world: World, stake: Vault, client: Vault) -> None:
    with world.refused("E_NOTHING_PAYABLE"):
        propose(world, stake, client, 0)


def test_a_slash_with_another_vaults_tokens(world: World, stake: Vault, client: Vault) -> None:
    other = world.open_vault(grace_s=MINIMUM_COLLATERAL_GRACE_S, kind=VaultKind.COLLATERAL)
    for wrong in (other.tokens, client.tokens):
        with world.refused("E_WRONG_ACCOUNT"):
            step = with_accounts(proposal(world, stake, client.address), {TOKENS: wrong})
            world.send([step], [stake.operator.admin])
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)
    for changed in ({TOKENS: other.tokens}, {TOKENS: client.tokens}, {TOKEN_PROGRAM: world.program_id}):
        with world.refused("E_WRONG_ACCOUNT"):
            step = with_accounts(execution(world, stake, client.depositor.pubkey()), changed)
            world.send([step], [stake.operator.admin])


def test_the_collaterals_own_tokens_frozen(world: World, stake: Vault, client: Vault) -> None:
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)
    world.freeze(stake.tokens)

    with world.refused("E_TOKEN_ACCOUNT"):
        execute(world, stake, client)


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_a_capture_of_a_collateral(world: World, stake: Vault, node: Pubkey) -> None:
    """No way around the two steps: not even with the node's own cap and the operator's order."""
    with world.refused("E_KIND"):
        world.capture(stake, [(node, 1)])
    with world.refused("E_KIND"):
        world.capture_by_order(stake, [(node, 1)], order=world.order(stake, [(node, 1)]))


def test_a_slash_of_a_clients_vault(world: World, client: Vault) -> None:
    for step in steps(world, client, client):
        with world.refused("E_KIND"):
            world.send([step], [client.operator.admin])


@pytest.mark.parametrize("kind", [2, 7, 255])
def test_a_vault_of_a_kind_that_is_none(world: World, kind: int) -> None:
    depositor = world.wallet()
    [tokens, opening] = world.opening(world.planned(depositor))
    data = bytes(opening.data)
    changed = Instruction(world.program_id, data[:1] + bytes([kind]) + data[2:], list(opening.accounts))

    with world.refused("E_KIND"):
        world.send([tokens, changed], [depositor])


@pytest.mark.parametrize("kind", list(VaultKind))
def test_an_account_whose_size_is_not_its_kinds(world: World, stake: Vault, client: Vault, kind: VaultKind) -> None:
    """A client's vault that calls itself a collateral would have a slash in whatever bytes follow."""
    victim = stake if kind is VaultKind.COLLATERAL else client
    found = world.svm.get_account(victim.address)
    assert found is not None
    other = VaultKind.CLIENT if kind is VaultKind.COLLATERAL else VaultKind.COLLATERAL
    data = bytes(found.data)[:2] + bytes([other]) + bytes(found.data)[3:]
    world.put(victim.address, data, world.program_id)

    with world.refused("E_NOT_OURS"):
        world.send([cancellation(world, victim)], [victim.operator.admin])
    with world.refused("E_NOT_OURS"):
        world.send(
            [program.start_close(world.program_id, victim.address, victim.depositor.pubkey())], [victim.depositor]
        )


def test_a_collateral_has_a_clients_layout_and_then_a_slash(world: World, stake: Vault) -> None:
    found = world.svm.get_account(stake.address)
    assert found is not None
    assert len(found.data) == COLLATERAL_SIZE
    assert (world.state(stake).kind, world.state(stake).slash) == (VaultKind.COLLATERAL, None)


# --- malformed -------------------------------------------------------------------------------------------------------


def test_slashes_with_malformed_data_and_account_lists(world: World, stake: Vault, client: Vault) -> None:
    admin = stake.operator.admin
    good = proposal(world, stake, client.address)

    def attempt(change: Callable[[bytes], bytes]) -> None:
        world.send([Instruction(world.program_id, change(bytes(good.data)), list(good.accounts))], [admin])

    with world.refused("E_DATA"):
        attempt(lambda data: data[:-1])
    with world.refused("E_DATA"):
        attempt(lambda data: data + b"\0")
    for step in steps(world, stake, client):
        short = Instruction(world.program_id, bytes(step.data), list(step.accounts)[:-1])
        with world.refused("E_ACCOUNTS"):
            world.send([short], [admin] if len(short.accounts) > ADMIN else [world.bank])
