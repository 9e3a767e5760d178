"""What every test of the vault program starts from."""

from __future__ import annotations

import pytest
from solders.pubkey import Pubkey

from tests.support.collateral import open_stake
from tests.support.svm import Vault, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def vault(world: World) -> Vault:
    """10 tokens in it, an hour of grace."""
    return world.open_vault(deposit=10_000_000)


@pytest.fixture
def node(world: World) -> Pubkey:
    """A node's token account."""
    return world.token_account(world.key().pubkey())


@pytest.fixture
def stake(world: World) -> Vault:
    """A node's collateral."""
    return open_stake(world)


@pytest.fixture
def client(world: World, vault: Vault) -> Vault:
    """A client's vault under the same operator; its depositor has a token account."""
    world.token_account(vault.depositor.pubkey())
    return vault
