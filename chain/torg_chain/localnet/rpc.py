"""The JSON-RPC methods: those that clients of a real cluster use, and our own for tests.

Our own: torg_faucet(owner, base_units), torg_advance_clock(seconds), torg_advance_slots(count), torg_status(), torg_drop(count)
(the next transactions are accepted and never land), torg_reorg(slots) (a fork takes the newest slots back).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web
from solders.instruction import CompiledInstruction
from solders.message import MessageV0, from_bytes_versioned
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from torg_chain.instructions import ED25519_PROGRAM
from torg_chain.localnet.cluster import Cluster, Refused
from torg_chain.localnet.encoding import (
    account_json,
    decode_transaction,
    error_json,
    return_data_json,
    token_account_amount,
    token_amount_json,
    token_balances_json,
)
from torg_chain.localnet.faults import Faults
from torg_chain.localnet.params import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    MIN_SLOT_NOT_REACHED,
    PREFLIGHT_FAILURE,
    UNSUPPORTED_VERSION,
    RpcError,
    config_at,
    encoding_at,
    level_at,
    matches_filters,
    pubkey_of,
)
from torg_chain.localnet.subscriptions import SubscriptionHub

MAX_MULTIPLE_ACCOUNTS = 100


class Methods:
    """One public method per RPC method; `params` as the client sent them."""

    def __init__(self, cluster: Cluster, faults: Faults) -> None:
        self._cluster, self._faults = cluster, faults
        chain = {
            "getHealth": lambda _: "ok",
            "getVersion": lambda _: {"solana-core": "4.0.0-torg-localnet", "feature-set": 0},
            "getGenesisHash": lambda _: str(cluster.genesis),
            "getSlot": self._slot,
            "getBlockHeight": self._slot,
            "getTransactionCount": lambda _: len(cluster.landed),
            "getLatestBlockhash": self._latest_blockhash,
            "isBlockhashValid": lambda p: self._context(p[0] in cluster.blockhashes),
            "getMinimumBalanceForRentExemption": lambda p: cluster.rent(p[0]),
            "getFeeForMessage": self._fee,
            "getRecentPrioritizationFees": lambda _: [{"slot": cluster.slot, "prioritizationFee": 0}],
        }
        accounts = {
            "getBalance": lambda p: self._context(cluster.lamports(pubkey_of(p[0]), level_at(p, 1)), level_at(p, 1)),
            "getAccountInfo": self._account_info,
            "getMultipleAccounts": self._multiple_accounts,
            "getTokenAccountBalance": self._token_balance,
            "getProgramAccounts": self._program_accounts,
            "requestAirdrop": lambda p: cluster.airdrop(pubkey_of(p[0]), int(p[1])),
        }
        transactions = {
            "sendTransaction": self._send,
            "simulateTransaction": self._simulate,
            "getSignatureStatuses": self._statuses,
            "getSignaturesForAddress": self._signatures,
            "getTransaction": self._transaction,
        }
        own = {
            "torg_faucet": lambda p: cluster.faucet(pubkey_of(p[0]), int(p[1])),
            "torg_advance_clock": lambda p: cluster.advance_clock(int(p[0])),
            "torg_advance_slots": lambda p: cluster.advance_slots(int(p[0])),
            "torg_drop": lambda p: faults.drop_the_next(int(p[0])),
            "torg_reorg": lambda p: len(cluster.reorg(int(p[0]))),
            "torg_status": lambda _: {
                "slot": cluster.slot,
                "unix_time_s": cluster.unix_time_s,
                "transactions": len(cluster.landed),
            },
        }
        self.table: dict[str, Callable[[list[Any]], Any]] = {**chain, **accounts, **transactions, **own}

    def _context(self, value: Any, level: str = "processed") -> dict[str, Any]:
        return {"context": {"slot": self._cluster.slot_at(level), "apiVersion": "4.0.0"}, "value": value}

    def _slot(self, params: list[Any]) -> int:
        """At the asked commitment: a finalized slot lies behind by as many slots as finality takes."""
        return self._cluster.slot_at(level_at(params, 0))

    def _latest_blockhash(self, params: list[Any]) -> Any:
        blockhash, last_valid = self._cluster.blockhash_at(level_at(params, 0))
        return self._context({"blockhash": blockhash, "lastValidBlockHeight": last_valid}, level_at(params, 0))

    def _fee(self, params: list[Any]) -> Any:
        """Signatures that a precompile verifies cost what a transaction's own do."""
        message = from_bytes_versioned(base64.b64decode(params[0]))
        carried = [bytes(one.data) for one in message.instructions if _is_ed25519(message.account_keys, one)]
        signatures = message.header.num_required_signatures + sum(data[0] for data in carried if data)
        return self._context(5000 * signatures)

    def _account_info(self, params: list[Any]) -> Any:
        account = self._cluster.account(pubkey_of(params[0]), level_at(params, 1))
        return self._context(account_json(account, encoding_at(params, 1)), level_at(params, 1))

    def _multiple_accounts(self, params: list[Any]) -> Any:
        encoding, level = encoding_at(params, 1), level_at(params, 1)
        if len(params[0]) > MAX_MULTIPLE_ACCOUNTS:
            raise RpcError(INVALID_PARAMS, f"Too many inputs provided; max {MAX_MULTIPLE_ACCOUNTS}")
        found = [self._cluster.account(pubkey_of(key), level) for key in params[0]]
        return self._context([account_json(account, encoding) for account in found], level)

    def _token_balance(self, params: list[Any]) -> Any:
        account = self._cluster.account(pubkey_of(params[0]), level_at(params, 1))
        amount = token_account_amount(account)
        if amount is None or account is None:
            raise RpcError(INVALID_PARAMS, "Invalid param: could not find account")
        decimals = self._decimals(Pubkey(bytes(account.data)[:32]))
        return self._context(token_amount_json(amount, decimals), level_at(params, 1))

    def _decimals(self, mint: Pubkey) -> int:
        account = self._cluster.account(mint)
        return bytes(account.data)[44] if account is not None else 0

    def _program_accounts(self, params: list[Any]) -> Any:
        filters = (config_at(params, 1).get("filters")) or []
        found = self._cluster.program_accounts(pubkey_of(params[0]), level_at(params, 1))
        encoding = encoding_at(params, 1)
        return [
            {"pubkey": str(key), "account": account_json(account, encoding)}
            for key, account in found
            if matches_filters(bytes(account.data), filters)
        ]

    def _send(self, params: list[Any]) -> str:
        transaction = _parse_transaction(params)
        skip_preflight = bool(config_at(params, 1).get("skipPreflight"))
        try:
            self._cluster.check(transaction)
            if not skip_preflight:
                self._preflight(transaction)
            if self._faults.drops():
                return str(transaction.signatures[0])
            return self._cluster.submit(transaction)
        except Refused as refused:
            if refused.reason is None:
                raise RpcError(INVALID_PARAMS, str(refused)) from refused
            if skip_preflight:
                return str(transaction.signatures[0])  # dropped without a word, as a real cluster does
            raise RpcError(
                PREFLIGHT_FAILURE, str(refused), _simulation(refused.reason, refused.logs, refused.units)
            ) from refused

    def _preflight(self, transaction: VersionedTransaction) -> None:
        result = self._cluster.simulate(transaction)
        if hasattr(result, "err"):
            reason, meta = error_json(result.err()), result.meta()
            units = meta.compute_units_consumed()
            raise Refused(f"Transaction simulation failed: {json.dumps(reason)}", reason, list(meta.logs()), units)

    def _simulate(self, params: list[Any]) -> Any:
        transaction, config = _parse_transaction(params), config_at(params, 1)
        try:
            if not config.get("replaceRecentBlockhash"):
                self._cluster.check(transaction)
        except Refused as refused:
            return self._context(_simulation(refused.reason, refused.logs, 0))
        result = self._cluster.simulate(transaction, verify=bool(config.get("sigVerify")))
        meta = result.meta()
        error = error_json(result.err()) if hasattr(result, "err") else None
        return self._context(_simulation(error, list(meta.logs()), meta.compute_units_consumed()))

    def _statuses(self, params: list[Any]) -> Any:
        answers: list[Any] = []
        for signature in params[0]:
            landed = self._cluster.landed.get(signature)
            if landed is None:
                answers.append(None)
                continue
            level = self._cluster.level(landed.slot)
            confirmations = None if level == "finalized" else self._cluster.slot - landed.slot
            status = {"Ok": None} if landed.error is None else {"Err": landed.error}
            answers.append(
                {
                    "slot": landed.slot,
                    "confirmations": confirmations,
                    "err": landed.error,
                    "status": status,
                    "confirmationStatus": level,
                }
            )
        return self._context(answers)

    def _signatures(self, params: list[Any]) -> Any:
        config, found = config_at(params, 1), self._cluster.by_address.get(params[0], [])[::-1]
        if (here := self._cluster.slot_at(level_at(params, 1))) < (config.get("minContextSlot") or 0):
            raise RpcError(MIN_SLOT_NOT_REACHED, "Minimum context slot has not been reached", {"contextSlot": here})
        if config.get("before") in found:
            found = found[found.index(config["before"]) + 1 :]
        if config.get("until") in found:
            found = found[: found.index(config["until"])]
        answers = []
        for signature in found[: config.get("limit", 1000)]:
            landed = self._cluster.landed[signature]
            level = self._cluster.level(landed.slot)
            answers.append(
                {
                    "signature": signature,
                    "slot": landed.slot,
                    "err": landed.error,
                    "memo": None,
                    "blockTime": landed.time_s,
                    "confirmationStatus": level,
                }
            )
        return answers

    def _transaction(self, params: list[Any]) -> Any:
        landed = self._cluster.landed.get(params[0])
        if landed is None or landed.slot > self._cluster.slot_at(level_at(params, 1)):
            return None
        config = params[1] if len(params) > 1 and isinstance(params[1], dict) else {}
        message = VersionedTransaction.from_bytes(landed.raw).message
        version: int | str = 0 if isinstance(message, MessageV0) else "legacy"
        if version == 0 and config.get("maxSupportedTransactionVersion") is None:
            raise RpcError(UNSUPPORTED_VERSION, "Transaction version (0) is not supported by the requesting client")
        meta = {
            "err": landed.error,
            "status": {"Ok": None} if landed.error is None else {"Err": landed.error},
            "fee": landed.meta.fee(),
            "preBalances": [account.lamports if account else 0 for account in landed.before],
            "postBalances": [account.lamports if account else 0 for account in landed.after],
            "innerInstructions": [],
            "logMessages": list(landed.meta.logs()),
            "preTokenBalances": token_balances_json(landed.before, self._decimals),
            "postTokenBalances": token_balances_json(landed.after, self._decimals),
            "rewards": [],
            "loadedAddresses": {
                "writable": [str(key) for key in landed.accounts.loaded_writable],
                "readonly": [str(key) for key in landed.accounts.loaded_readonly],
            },
            "computeUnitsConsumed": landed.meta.compute_units_consumed(),
        }
        if (returned := return_data_json(landed.meta)) is not None:
            meta["returnData"] = returned
        encoded = [base64.b64encode(landed.raw).decode(), "base64"]
        return {
            "slot": landed.slot,
            "blockTime": landed.time_s,
            "transaction": encoded,
            "meta": meta,
            "version": version,
        }


def make_app(cluster: Cluster, faults: Faults | None = None, hub: SubscriptionHub | None = None) -> web.Application:
    """JSON-RPC by POST, subscriptions by WebSocket, both at `/`, as a provider's URL has them."""
    methods = Methods(cluster, faults or Faults()).table
    hub = hub or SubscriptionHub(cluster)

    def answer(request: Any) -> dict[str, Any]:
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request.get("id") if isinstance(request, dict) else None}
        try:
            method = methods.get(request["method"])
            if method is None:
                raise RpcError(METHOD_NOT_FOUND, "Method not found")
            return {**reply, "result": method(request.get("params") or [])}
        except RpcError as error:
            return {**reply, "error": error.to_json()}
        except Refused as error:
            return {**reply, "error": {"code": INVALID_PARAMS, "message": str(error)}}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return {**reply, "error": {"code": INVALID_PARAMS, "message": f"Invalid params: {error}"}}

    async def handle(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        answers = [answer(item) for item in body] if isinstance(body, list) else answer(body)
        hub.publish()
        return web.json_response(answers)

    app = web.Application(client_max_size=1 << 20)
    app.router.add_post("/", handle)
    app.router.add_get("/", hub.serve)
    app.on_shutdown.append(hub.close)
    return app


def _is_ed25519(keys: Sequence[Pubkey], instruction: CompiledInstruction) -> bool:
    at = instruction.program_id_index
    return at < len(keys) and keys[at] == ED25519_PROGRAM


def _parse_transaction(params: list[Any]) -> VersionedTransaction:
    encoding = config_at(params, 1).get("encoding") or "base58"
    try:
        return VersionedTransaction.from_bytes(decode_transaction(params[0], encoding))
    except ValueError as error:
        raise RpcError(INVALID_PARAMS, f"failed to deserialize the transaction: {error}") from error


def _simulation(error: Any, logs: list[str], units: int) -> dict[str, Any]:
    return {
        "err": error,
        "logs": logs,
        "accounts": None,
        "unitsConsumed": units,
        "returnData": None,
        "innerInstructions": None,
        "replacementBlockhash": None,
    }
