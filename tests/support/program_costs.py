"""What each instruction of the vault program costs, in a transaction as its user sends it: bytes, compute units, lamports of fees."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.collateral import cancellation, execute, open_stake, propose
from tests.support.svm import HOUR_S, Landed, Vault, World
from torg_chain import instructions as program
from torg_chain.vault import CONFIG_SIZE, DISPUTE_DELAY_S


def measure_costs() -> dict[str, Landed]:
    """By the name of the row in SPEC.md. The same keys at every run, so the same figures."""
    costs: dict[str, Landed] = {}
    for name, step in STEPS.items():
        costs[name] = step(World())
    return costs


def _init_config(world: World) -> Landed:
    admin = world.wallet()
    made = program.init_config(
        world.program_id, admin.pubkey(), world.key().pubkey(), world.key().pubkey(), world.rent(CONFIG_SIZE)
    )
    return world.send([made], [admin])


def _set_capture_key(world: World) -> Landed:
    admin = world.operator.admin
    key = world.key().pubkey()
    return world.send([program.set_capture_key(world.program_id, world.operator.config, admin.pubkey(), key)], [admin])


def _open(world: World) -> Landed:
    depositor = world.wallet()
    world.token_account(depositor.pubkey(), amount=1_000)
    vault = world.planned(depositor)
    return world.send([*world.opening(vault), world.transfer(depositor, vault.tokens, 1_000)], [depositor])


def capture_of(payees: int, *, by_order: bool = False) -> Callable[[World], Landed]:
    def measured(world: World) -> Landed:
        vault = world.open_vault()
        nodes = [(world.token_account(world.key().pubkey()), 1) for _ in range(payees)]
        if by_order:
            return world.capture_by_order(vault, nodes, order=world.order(vault, nodes))
        return world.capture(vault, nodes)

    return measured


def _start_close(world: World) -> Landed:
    return world.start_close(world.open_vault())


def _cancel_close(world: World) -> Landed:
    vault = world.open_vault()
    world.start_close(vault)
    owner = vault.depositor
    return world.send([program.cancel_close(world.program_id, vault.address, owner.pubkey())], [owner])


def _finish_close(world: World) -> Landed:
    vault = world.open_vault()
    world.start_close(vault)
    world.pass_salt_window()
    world.wait(seconds=HOUR_S)
    return world.finish_close(vault)


def _finish_close_agreed(world: World) -> Landed:
    vault = world.open_vault()
    world.pass_salt_window()
    return world.finish_close(vault, agreed_by=world.operator.admin)


def _rotate_signer(world: World) -> Landed:
    vault = world.open_vault()
    owner, key = vault.depositor, world.key().pubkey()
    return world.send([program.rotate_signer(world.program_id, vault.address, owner.pubkey(), key)], [owner])


def _rescue(world: World) -> Landed:
    depositor = world.wallet()
    vault = world.planned(depositor)
    world.token_account(vault.address, amount=9)
    world.token_account(depositor.pubkey())
    rescuing = program.rescue(
        world.program_id,
        depositor=depositor.pubkey(),
        config=world.operator.config,
        mint=world.mint,
        salt=vault.salt,
    )
    return world.send([rescuing], [depositor])


def _stake_and_client(world: World) -> tuple[Vault, Vault]:
    client = world.open_vault()
    world.token_account(client.depositor.pubkey())
    return open_stake(world), client


def _propose_slash(world: World) -> Landed:
    return propose(world, *_stake_and_client(world))


def _execute_slash(world: World) -> Landed:
    stake, client = _stake_and_client(world)
    propose(world, stake, client)
    world.wait(seconds=DISPUTE_DELAY_S)
    return execute(world, stake, client)


def _cancel_slash(world: World) -> Landed:
    stake, client = _stake_and_client(world)
    propose(world, stake, client)
    return world.send([cancellation(world, stake)], [world.operator.admin])


STEPS: dict[str, Callable[[World], Landed]] = {
    "init_config": _init_config,
    "set_capture_key": _set_capture_key,
    "open, with the token account and a deposit": _open,
    "capture, 1 payee": capture_of(1),
    "capture, 10 payees": capture_of(10),
    "capture, 14 payees (as many as fit)": capture_of(14),
    "capture by order, 1 payee": capture_of(1, by_order=True),
    "capture by order, 8 payees (as many as fit)": capture_of(8, by_order=True),
    "start_close": _start_close,
    "cancel_close": _cancel_close,
    "finish_close": _finish_close,
    "finish_close, co-signed": _finish_close_agreed,
    "rotate_signer": _rotate_signer,
    "rescue": _rescue,
    "propose_slash": _propose_slash,
    "execute_slash": _execute_slash,
    "cancel_slash": _cancel_slash,
}
