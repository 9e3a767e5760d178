"""Solana Pay transfer requests: a URL (or its QR code) that any wallet app turns into a deposit, and how the deposit is found again.

https://docs.solanapay.com/spec: the recipient is a wallet, here the vault itself, never its token account; the wallet app adds the
reference, a key of nobody, to the transfer, and the transfer is found by it.
"""

from __future__ import annotations

import asyncio
from urllib.parse import quote, urlencode

from solders.pubkey import Pubkey

from torg_chain.network import Network
from torg_chain.rpc import ChainClient
from torg_chain.vault import token_account_of
from torg_protocol.errors import Unavailable
from torg_protocol.money import format_amount

_POLL_EVERY_S = 1.0


def transfer_request(network: Network, recipient: Pubkey, amount: int, reference: Pubkey, *, label: str) -> str:
    """`amount` in base units; in the URL it is a decimal in whole tokens, as the specification wants it."""
    fields = {
        "amount": format_amount(amount, network.decimals),
        "spl-token": network.mint,
        "reference": str(reference),
        "label": label,
    }
    return f"solana:{recipient}?{urlencode(fields, quote_via=quote)}"


async def received(chain: ChainClient, network: Network, recipient: Pubkey, reference: Pubkey) -> int:
    """Base units that finalized transactions with this reference have brought to the recipient. Anybody may put a reference on
    anything: only what arrived, of the right token and in the right account, counts."""
    account = token_account_of(recipient, network.mint_pubkey)
    return sum(await chain.received_by_reference(reference, account, network.mint_pubkey))


async def wait_for_payment(
    chain: ChainClient, network: Network, recipient: Pubkey, amount: int, reference: Pubkey, *, timeout_s: float
) -> int:
    """Until at least `amount` has arrived, finalized; returns what did. Raises Unavailable `payment_not_seen`: nothing is lost by
    that, a later payment is booked all the same."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while (seen := await received(chain, network, recipient, reference)) < amount:
        if asyncio.get_running_loop().time() > deadline:
            raise Unavailable(
                f"no such payment within {timeout_s:g} s",
                code="payment_not_seen",
                field="reference",
                value=str(reference),
                hint="when it comes later it counts too: torg vault status",
            )
        await asyncio.sleep(_POLL_EVERY_S)
    return seen
