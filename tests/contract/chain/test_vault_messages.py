"""Attacks on what is signed and on the accounts of a capture, against the real program: each refused with exactly the named error."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

from tests.support.c_programs import program_that_takes_anything
from tests.support.svm import CHAIN_ID, Vault, World
from torg_chain import instructions as program
from torg_chain.instructions import ED25519_PROGRAM
from torg_chain.vault import VAULT_SIZE
from torg_protocol.vault_messages import CAP_DOMAIN, ORDER_DOMAIN, CapMessage, sign_message

DEPOSIT = 10_000_000
VAULT, TOKENS, CONFIG, SYSVAR, TOKEN_PROGRAM, ORDER_SIGNER = range(6)
U64_MAX = 2**64 - 1


def raw_cap(vault: Vault, message: bytes, signer: Keypair | None = None) -> Instruction:
    signer = signer or vault.session
    return program.ed25519_verify(signer.pubkey(), signer.sign_message(message), message)


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_cap_of_another_vault(world: World, vault: Vault, node: Pubkey) -> None:
    twin = world.open_vault(depositor=vault.depositor, session=vault.session)

    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=world.cap(twin, 1_000))


def test_an_order_of_another_vault(world: World, vault: Vault, node: Pubkey) -> None:
    twin = world.open_vault(depositor=vault.depositor, session=vault.session)

    with world.refused("E_ORDER"):
        world.capture_by_order(vault, [(node, 1)], order=world.order(twin, [(node, 1)]))


def test_messages_of_another_chain(world: World, vault: Vault, node: Pubkey) -> None:
    other = bytes(32)

    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=world.cap(vault, 1_000, chain_id=other))
    with world.refused("E_ORDER"):
        world.capture_by_order(vault, [(node, 1)], order=world.order(vault, [(node, 1)], chain_id=other))


@pytest.mark.parametrize("domain", [ORDER_DOMAIN, b"torg-cap-v2".ljust(16, b"\0"), bytes(16)])
def test_a_cap_of_another_domain(world: World, vault: Vault, node: Pubkey, domain: bytes) -> None:
    message = domain + CHAIN_ID + bytes(vault.address) + struct.pack("<Qq", 1_000, world.now_s + 60)

    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=raw_cap(vault, message))


def test_an_order_of_another_domain(world: World, vault: Vault, node: Pubkey) -> None:
    right = bytes(world.order(vault, [(node, 1)]).data)[112:]
    order = raw_cap(vault, CAP_DOMAIN + right[16:], vault.operator.capture_key)

    with world.refused("E_ORDER"):
        world.capture_by_order(vault, [(node, 1)], order=order)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_message_of_another_length(world: World, vault: Vault, node: Pubkey, extra: int) -> None:
    message = CapMessage(CHAIN_ID, bytes(vault.address), 1_000, world.now_s + 60).to_bytes()
    message = message[:extra] if extra < 0 else message + bytes(extra)

    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=raw_cap(vault, message))


def test_a_cap_that_was_raised_after_signing(world: World, vault: Vault, node: Pubkey) -> None:
    message = CapMessage(CHAIN_ID, bytes(vault.address), 1_000, world.now_s + 60)
    raised = CapMessage(CHAIN_ID, bytes(vault.address), 9_000, world.now_s + 60)
    forged = program.ed25519_verify(vault.session.pubkey(), sign_message(vault.session, message), raised.to_bytes())

    with world.refused("Custom(2)"):  # the precompile itself: invalid signature
        world.capture(vault, [(node, 5_000)], cap=forged)


def test_amounts_payees_or_root_other_than_ordered(world: World, vault: Vault, node: Pubkey) -> None:
    thief = world.token_account(world.key().pubkey())
    order = world.order(vault, [(node, 100), (node, 20)])

    for payees in ([(node, 101), (node, 20)], [(thief, 100), (node, 20)], [(node, 100)], [(node, 20), (node, 100)]):
        with world.refused("E_ORDER"):
            world.capture_by_order(vault, payees, order=order)
    with world.refused("E_ORDER"):
        world.capture_by_order(vault, [(node, 100), (node, 20)], order=order, root=b"\1" * 32)
    world.capture_by_order(vault, [(node, 100), (node, 20)], order=order)


@pytest.mark.parametrize("key", [b"\x01" + bytes(31), bytes(32)])
def test_a_cap_by_a_key_for_which_anything_is_a_signature(world: World, node: Pubkey, key: bytes) -> None:
    """A small-order point verifies trivial signatures in some libraries. Here it is refused before the vault is asked."""
    vault = world.open_vault()
    owner, weak = vault.depositor, Pubkey(key)
    world.send([program.rotate_signer(world.program_id, vault.address, owner.pubkey(), weak)], [owner])
    world.wait(seconds=3600)
    message = CapMessage(CHAIN_ID, bytes(vault.address), 1_000, world.now_s + 60).to_bytes()
    forged = program.ed25519_verify(weak, Signature.from_bytes(key + bytes(32)), message)

    with world.refused("Custom(2)"):  # the precompile: invalid signature
        world.capture(vault, [(node, 1)], cap=forged)


def test_the_cap_named_as_the_order(world: World, vault: Vault, node: Pubkey) -> None:
    """Also where the client's session key is the operator's capture key (a node that rents to itself): the domains differ."""
    own = world.open_vault(session=vault.operator.capture_key)
    for one in (vault, own):
        built = world.capturing(one, [(node, 1)], before=[world.cap(one, 1_000)], order_index=0)
        with world.refused("E_ORDER"):
            world.send(built, [world.bank])


# --- the precompile's offsets, and the sysvar ------------------------------------------------------------------------


def split_verification(vault: Vault, message: bytes, elsewhere: dict[str, int]) -> Instruction:
    """An Ed25519 instruction whose key, signature or message lie in the transaction's instruction of that number."""
    where = {"signature": 0xFFFF, "key": 0xFFFF, "message": 0xFFFF} | elsewhere
    offsets = struct.pack("<HHHHHHH", 48, where["signature"], 16, where["key"], 112, len(message), where["message"])
    signature = vault.session.sign_message(message)
    body = bytes(vault.session.pubkey()) + bytes(signature) + message
    return Instruction(ED25519_PROGRAM, b"\x01\x00" + offsets + body, [])


@pytest.mark.parametrize("part", ["signature", "key", "message"])
def test_ed25519_offsets_into_another_instruction(world: World, vault: Vault, node: Pubkey, part: str) -> None:
    """The precompile is content, since that other instruction holds a true signature; the program must not be."""
    message = CapMessage(CHAIN_ID, bytes(vault.address), 1_000, world.now_s + 60).to_bytes()
    honest = split_verification(vault, message, {})
    pointing = split_verification(vault, message, {part: 0})
    built = world.capturing(vault, [(node, 1)], before=[honest, pointing], cap_index=1)

    with world.refused("E_CAP_SIGNATURE"):
        world.send(built, [vault.operator.capture_key])


def test_ed25519_true_message_of_the_attacker_beside_the_wanted_one(world: World, vault: Vault, node: Pubkey) -> None:
    """The attacker's own signed message is verified, while the wanted cap lies unverified in the same instruction."""
    attacker, wanted = world.key(), world.cap(vault, DEPOSIT)
    mine = b"whatever"
    wanted_body = bytes(wanted.data)[16:]
    offsets = struct.pack(
        "<HHHHHHH",
        16 + len(wanted_body) + 32,
        0xFFFF,
        16 + len(wanted_body),
        0xFFFF,
        16 + len(wanted_body) + 96,
        8,
        0xFFFF,
    )
    body = wanted_body + bytes(attacker.pubkey()) + bytes(attacker.sign_message(mine)) + mine
    forged = Instruction(ED25519_PROGRAM, b"\x01\x00" + offsets + body, [])

    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=forged)


def test_ed25519_instruction_with_no_or_two_signatures(world: World, vault: Vault, node: Pubkey) -> None:
    good = bytes(world.cap(vault, 1_000).data)
    none = Instruction(ED25519_PROGRAM, b"\x00\x00" + good[2:], [])
    # two signatures: the same one twice, both true
    shifted = struct.unpack_from("<HHHHHHH", good, 2)
    moved = struct.pack("<HHHHHHH", *(n + 14 if i in {0, 2, 4} else n for i, n in enumerate(shifted)))
    two = Instruction(ED25519_PROGRAM, b"\x02\x00" + moved + moved + good[16:], [])

    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=two)
    with world.refused("Custom(4)"):  # the precompile wants no data beyond the count when there is no signature
        world.capture(vault, [(node, 1)], cap=none)


@pytest.mark.parametrize("index", [1, 2, 7, 0xFF])
def test_an_index_that_names_no_ed25519_instruction(world: World, vault: Vault, node: Pubkey, index: int) -> None:
    built = world.capturing(vault, [(node, 1)], before=[world.cap(vault, 1_000)], cap_index=index)

    with world.refused("E_CAP_SIGNATURE"):
        world.send(built, [vault.operator.capture_key])


def test_the_bytes_of_a_cap_given_to_another_program(world: World, vault: Vault, node: Pubkey) -> None:
    """A memo program that takes the same bytes has verified nothing."""
    memo = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
    message = CapMessage(CHAIN_ID, bytes(vault.address), 1_000, world.now_s + 60).to_bytes().hex().encode()
    built = world.capturing(vault, [(node, 1)], before=[Instruction(memo, message, [])])

    with world.refused("E_CAP_SIGNATURE"):
        world.send(built, [vault.operator.capture_key])


def test_a_cap_that_only_the_attackers_own_program_has_seen(
    tmp_path: Path, world: World, vault: Vault, node: Pubkey
) -> None:
    """Laid out exactly as the precompile's data, signature invented, given to a program that takes anything."""
    yes = world.key().pubkey()
    world.svm.add_program(yes, program_that_takes_anything(tmp_path))
    message = CapMessage(CHAIN_ID, bytes(vault.address), U64_MAX, world.now_s + 60).to_bytes()
    invented = program.ed25519_verify(vault.session.pubkey(), Signature.default(), message)
    order = program.ed25519_verify(vault.operator.capture_key.pubkey(), Signature.default(), bytes(112))

    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], cap=Instruction(yes, bytes(invented.data), []))
    with world.refused("E_ORDER"):
        right = world.order(vault, [(node, 1)]).data
        forged = bytes(order.data)[:112] + bytes(right)[112:]
        world.capture_by_order(vault, [(node, 1)], order=Instruction(yes, forged, []))


def test_a_fake_instructions_sysvar(world: World, vault: Vault, node: Pubkey) -> None:
    """An account with the layout of the sysvar, in which the precompile has verified a cap that nobody signed."""
    forged = CapMessage(CHAIN_ID, bytes(vault.address), U64_MAX, world.now_s + 60).to_bytes()
    data = b"\x01\x00" + struct.pack("<HHHHHHH", 48, 0xFFFF, 16, 0xFFFF, 112, 96, 0xFFFF)
    data += bytes(vault.session.pubkey()) + bytes(64) + forged
    listed = struct.pack("<HHH", 1, 4, 0) + bytes(ED25519_PROGRAM) + struct.pack("<H", len(data)) + data
    fake = world.key().pubkey()
    world.put(fake, listed, world.program_id)

    with world.refused("E_WRONG_ACCOUNT"):
        world.capture(vault, [(node, 1)], accounts={SYSVAR: fake})


# --- accounts --------------------------------------------------------------------------------------------------------


def test_a_fake_vault_account(world: World, vault: Vault, node: Pubkey) -> None:
    """The right bytes, but not owned by the program; and owned by the program, but of another type."""
    found = world.svm.get_account(vault.address)
    assert found is not None
    fake = world.key().pubkey()
    world.put(fake, bytes(found.data), world.bank.pubkey())

    with world.refused("E_NOT_OURS"):
        world.capture(vault, [(node, 1)], accounts={VAULT: fake})
    with world.refused("E_NOT_OURS"):
        world.capture(vault, [(node, 1)], accounts={VAULT: vault.operator.config})


def test_a_fake_config_account(world: World, vault: Vault, node: Pubkey) -> None:
    fake = world.key().pubkey()
    data = b"\x01" + bytes(7) + bytes(vault.operator.capture_key.pubkey()) * 3
    world.put(fake, data, world.bank.pubkey())

    with world.refused("E_NOT_OURS"):
        world.capture(vault, [(node, 1)], accounts={CONFIG: fake})
    with world.refused("E_NOT_OURS"):
        world.capture(vault, [(node, 1)], accounts={CONFIG: vault.address})


def test_another_operator_captures(world: World, vault: Vault, node: Pubkey) -> None:
    """Its own config, its own capture key, both genuine: but the vault is not under it."""
    rival = world.new_operator()
    accounts = {CONFIG: rival.config, ORDER_SIGNER: rival.capture_key.pubkey()}
    built = world.capturing(vault, [(node, 1)], before=[world.cap(vault, 1_000)], accounts=accounts)

    with world.refused("E_WRONG_ACCOUNT"):
        world.send(built, [rival.capture_key])


def test_two_vaults_confused(world: World, vault: Vault, node: Pubkey) -> None:
    """One vault's account with the other's tokens, both ways round."""
    other = world.open_vault()

    with world.refused("E_WRONG_ACCOUNT"):
        world.capture(vault, [(node, 1)], accounts={TOKENS: other.tokens})
    with world.refused("E_CAP_SIGNATURE"):
        world.capture(vault, [(node, 1)], accounts={VAULT: other.address, TOKENS: other.tokens})
    with world.refused("E_WRONG_ACCOUNT"):
        world.capture(other, [(node, 1)], accounts={TOKENS: vault.tokens})


def test_a_token_account_of_the_vault_that_is_not_its_own(world: World, vault: Vault, node: Pubkey) -> None:
    extra = world.extra_token_account(vault.address)
    world.mint_into(extra, 1_000)

    with world.refused("E_WRONG_ACCOUNT"):
        world.capture(vault, [(node, 1)], accounts={TOKENS: extra})


def test_tokens_of_another_mint(world: World, vault: Vault, node: Pubkey) -> None:
    """Worthless ones, which the attacker mints: in the vault's place, and into a payee who holds both."""
    worthless = world.new_mint()
    mine = world.token_account(vault.address, worthless, amount=DEPOSIT)
    theirs = world.token_account(world.key().pubkey(), worthless)

    with world.refused("E_WRONG_ACCOUNT"):
        world.capture(vault, [(theirs, 1)], accounts={TOKENS: mine})
    with world.refused("E_NOTHING_PAYABLE"):
        world.capture(vault, [(theirs, 1)])


def test_a_payee_of_another_token_program(world: World, vault: Vault, node: Pubkey) -> None:
    """The same bytes under Token-2022, whose accounts can charge fees on arrival: left out."""
    found = world.svm.get_account(node)
    assert found is not None
    lookalike = world.key().pubkey()
    world.put(lookalike, bytes(found.data), Pubkey.from_string("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb"))

    with world.refused("E_NOTHING_PAYABLE"):
        world.capture(vault, [(lookalike, 1)])


def test_another_token_program(world: World, vault: Vault, node: Pubkey) -> None:
    with world.refused("E_WRONG_ACCOUNT"):
        world.capture(vault, [(node, 1)], accounts={TOKEN_PROGRAM: world.program_id})


def test_the_vault_as_its_own_payee_through_another_list(world: World, vault: Vault, node: Pubkey) -> None:
    """Paying the vault itself would raise settled and move nothing: the vault's own account is not payable."""
    with world.refused("E_NOTHING_PAYABLE"):
        world.capture(vault, [(vault.tokens, 5)])
    world.capture(vault, [(vault.tokens, 5), (node, 1)])
    assert (world.state(vault).settled, world.balance(vault.tokens)) == (1, DEPOSIT - 1)


def test_malformed_data_and_account_lists(world: World, vault: Vault, node: Pubkey) -> None:
    [cap, good] = world.capturing(vault, [(node, 1)], before=[world.cap(vault, 1_000)])
    data, metas = bytes(good.data), list(good.accounts)

    def attempt(data: bytes, metas: list[AccountMeta]) -> None:
        world.send([cap, Instruction(world.program_id, data, metas)], [vault.operator.capture_key])

    bad_lengths = [data[:-1], data + b"\0", data[:1], data[:12], data[:11] + b"\x00" + data[12:], b"", b"\xff"]
    for wrong in [*bad_lengths, data[:11] + bytes([17]) + bytes(8 * 17 + 32), data[:11] + b"\xff" + data[12:]]:
        with world.refused("E_DATA"):
            attempt(wrong, metas)
    for listed in (metas[:-1], [*metas, metas[-1]], [], [metas[-1]] * 41):
        with world.refused("E_ACCOUNTS"):
            attempt(data, listed)
    assert len(bytes(world.svm.get_account(vault.address).data)) == VAULT_SIZE
