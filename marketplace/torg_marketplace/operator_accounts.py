"""What the operator does at the command line about credit and API keys; safe beside a marketplace that runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from pydantic import ValidationError

from torg_chain.network import LOCALNET_PROGRAM_ID
from torg_chain.rpc import ChainClient
from torg_chain.vault_operations import open_vault
from torg_marketplace.flow.api_keys import api_key_page, create_api_key, revoke_api_key
from torg_marketplace.flow.credit import credit_view, grant_credit
from torg_marketplace.flow.unit import Market
from torg_marketplace.flow.vaults import refresh_vault
from torg_marketplace.opening import open_beside
from torg_marketplace.settings import Settings
from torg_marketplace.storage.account_models import CreditVaultRow
from torg_protocol.accounts import DEFAULT_SCOPES, ApiKeyRequest, Scope
from torg_protocol.errors import Conflict, Invalid
from torg_protocol.ids import AccountId
from torg_protocol.money import format_amount, parse_amount
from torg_protocol.quantities import parse_duration_ms

_KEY_OPTIONS = {"name": "name", "scopes": "--scope", "spend_cap": "--spend-cap", "expires_in_s": "--expires"}
_KEY_HINT = "--expires is of a minute at least, --spend-cap more than nothing; see key-create --help"


async def run_command(arguments: argparse.Namespace, settings: Settings, say: Callable[[str], None]) -> int:
    """Answers with JSON. Raises TorgError."""
    async with open_beside(settings, asks_chain=arguments.command == "credit-open") as market:
        say(json.dumps(await _run(arguments, market), indent=2))
    return 0


async def _run(arguments: argparse.Namespace, market: Market) -> object:
    decimals = market.network.decimals
    match arguments.command:
        case "credit-open":
            return await _open(market, parse_amount(arguments.deposit, decimals, field="--deposit"))
        case "credit-grant":
            async with market.transaction() as unit:
                amount = parse_amount(arguments.amount, decimals) * (-1 if arguments.take_back else 1)
                return (await grant_credit(unit, AccountId(arguments.account), amount)).wire()
        case "credit-show":
            async with market.reading() as unit:
                return (await credit_view(unit, AccountId(arguments.account))).wire()
        case "key-create":
            return await _create_key(arguments, market)
        case "key-list":
            async with market.reading() as unit:
                page = await api_key_page(unit, AccountId(arguments.account), cursor=None, limit=200)
            return page.wire()
        case _:
            async with market.transaction() as unit:
                return (await revoke_api_key(unit, None, arguments.key)).wire()


async def _create_key(arguments: argparse.Namespace, market: Market) -> object:
    decimals = market.network.decimals
    try:
        request = ApiKeyRequest(
            name=arguments.name,
            scopes=tuple(Scope(scope) for scope in arguments.scope or DEFAULT_SCOPES),
            spend_cap=parse_amount(arguments.spend_cap, decimals, field="--spend-cap"),
            expires_in_s=parse_duration_ms(arguments.expires) // 1000,
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = _KEY_OPTIONS.get(str(first["loc"][0]), "key")
        message = f"not an API key that can be made: {first['msg']}"
        raise Invalid(message, code="key_invalid", field=option, value=first["input"], hint=_KEY_HINT) from error
    except ValueError as error:
        raise Invalid(f"not an API key that can be made: {error}", code="key_invalid", field="key") from error
    async with market.transaction() as unit:
        account = AccountId(arguments.account or unit.new_id("acct"))
        if arguments.credit:
            await grant_credit(unit, account, parse_amount(arguments.credit, decimals, field="--credit"))
        return (await create_api_key(unit, account, request)).wire()


async def _open(market: Market, deposit: int) -> object:
    """Pays from the credit wallet; on a localnet the faucet fills it first. Returns when the vault is finalized and known here."""
    wallet, network = market.credit_key, market.network
    if wallet is None:
        raise Invalid("this marketplace has no credit key", code="credit_closed")
    async with ChainClient(network.rpc_url) as chain:
        if network.program_id == LOCALNET_PROGRAM_ID:
            await chain.faucet(wallet.pubkey(), deposit)
        have = await chain.token_balance(wallet.pubkey(), network.mint_pubkey)
        if have < deposit:
            raise Conflict(
                "the credit wallet does not hold that much",
                code="credit_wallet_empty",
                field="--deposit",
                value=format_amount(deposit, network.decimals),
                hint=f"it holds {format_amount(have, network.decimals)}; send tokens, and SOL for fees, to {wallet.pubkey()}",
            )
        grace_s = max(market.policy.min_vault_grace_s, 3_600)
        _, address = await open_vault(
            chain, network, depositor=wallet, signer=wallet.pubkey(), grace_s=grace_s, deposit=deposit
        )
    await refresh_vault(market, str(address))
    async with market.transaction() as unit:
        unit.session.add(CreditVaultRow(address=str(address), opened_at_ms=unit.now_ms))
    return {"vault": str(address), "wallet": str(wallet.pubkey()), "deposit": deposit}
