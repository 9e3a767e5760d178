"""Address lookup tables: an account that is named in a transaction by one byte instead of 32.

Worth it where the same payees are paid again and again by more than MAX_PAYEES_SIGNED (or MAX_PAYEES_BY_ORDER) at once: the rent is
about 223,000 lamports per address, returned when the table is closed.
"""

from __future__ import annotations

from collections.abc import Sequence

from solders.address_lookup_table_account import AddressLookupTable, AddressLookupTableAccount
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.system_program import (
    CloseLookupTableParams,
    CreateLookupTableParams,
    DeactivateLookupTableParams,
    ExtendLookupTableParams,
    close_lookup_table,
    create_lookup_table,
    deactivate_lookup_table,
    extend_lookup_table,
)

from torg_chain.rpc import ChainClient
from torg_chain.sending import send_instructions

EXTEND_AT_ONCE = 20  # addresses that fit one extending transaction with room for a fee


async def make_table(chain: ChainClient, authority: Keypair, addresses: Sequence[Pubkey]) -> AddressLookupTableAccount:
    """A new table with these addresses, finalized, usable from the next slot on. Not safe to repeat: each call makes another one."""
    owner = authority.pubkey()
    made, address = create_lookup_table(
        CreateLookupTableParams(authority_address=owner, payer_address=owner, recent_slot=await chain.slot())
    )
    await send_instructions(chain, [made], [authority])
    await extend_table(chain, authority, address, addresses)
    return AddressLookupTableAccount(address, list(addresses))


async def extend_table(chain: ChainClient, authority: Keypair, table: Pubkey, addresses: Sequence[Pubkey]) -> None:
    """Adds addresses at the end. Not safe to repeat: they would be there twice (which does no harm but costs rent)."""
    owner = authority.pubkey()
    for start in range(0, len(addresses), EXTEND_AT_ONCE):
        extended = ExtendLookupTableParams(
            payer_address=owner,
            lookup_table_address=table,
            authority_address=owner,
            new_addresses=list(addresses[start : start + EXTEND_AT_ONCE]),
        )
        await send_instructions(chain, [extend_lookup_table(extended)], [authority])


async def deactivate_table(chain: ChainClient, authority: Keypair, table: Pubkey) -> None:
    """The first step of getting the rent back: from the next slot on it serves no transaction. It can be closed some 513 slots later."""
    off = DeactivateLookupTableParams(lookup_table_address=table, authority_address=authority.pubkey())
    await send_instructions(chain, [deactivate_lookup_table(off)], [authority])


async def close_table(chain: ChainClient, authority: Keypair, table: Pubkey) -> None:
    """All rent to the authority. Raises TransactionRejected while the table is active, or not yet for 513 slots inactive."""
    owner = authority.pubkey()
    closed = CloseLookupTableParams(lookup_table_address=table, authority_address=owner, recipient_address=owner)
    await send_instructions(chain, [close_lookup_table(closed)], [authority])


def parse_table(address: Pubkey, data: bytes) -> AddressLookupTableAccount:
    """Raises ValueError when the account is no lookup table."""
    return AddressLookupTableAccount(address, AddressLookupTable.deserialize(data).addresses)
