"""What a subscriber is told, and when: each watch compares the cluster with what it told last, at its commitment level.

After a fork an account is told again as it is on the live one, and a transaction that lands again is told again, as on a real cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from solders.account import Account
from solders.pubkey import Pubkey
from solders.signature import Signature

from torg_chain.localnet.cluster import Cluster, Landed
from torg_chain.localnet.encoding import account_json
from torg_chain.localnet.params import (
    INVALID_PARAMS,
    RpcError,
    config_at,
    encoding_at,
    level_at,
    matches_filters,
    pubkey_of,
)

_GONE = Account(0, b"", Pubkey.default(), False, 0)


class Watch(Protocol):
    """`news` yields results of notifications; `is_done` after the last one."""

    is_done: bool

    def news(self) -> Iterator[Any]: ...


class SlotWatch:
    is_done = False

    def __init__(self, cluster: Cluster, _: list[Any]) -> None:
        self._cluster, self._told = cluster, cluster.slot

    def news(self) -> Iterator[Any]:
        if (slot := self._cluster.slot) != self._told:
            self._told = slot
            yield {"slot": slot, "parent": slot - 1, "root": self._cluster.slot_at("finalized")}


class RootWatch:
    is_done = False

    def __init__(self, cluster: Cluster, _: list[Any]) -> None:
        self._cluster, self._told = cluster, cluster.slot_at("finalized")

    def news(self) -> Iterator[Any]:
        if (root := self._cluster.slot_at("finalized")) != self._told:
            self._told = root
            yield root


class AccountWatch:
    is_done = False

    def __init__(self, cluster: Cluster, params: list[Any]) -> None:
        self._cluster, self._address = cluster, pubkey_of(params[0])
        self._level, self._encoding = level_at(params, 1), encoding_at(params, 1)
        self._told = cluster.account(self._address, self._level)

    def news(self) -> Iterator[Any]:
        now = self._cluster.account(self._address, self._level)
        if now != self._told:
            self._told = now
            yield in_context(self._cluster, self._level, account_json(now or _GONE, self._encoding))


class ProgramWatch:
    """Accounts that change or appear; one that is closed belongs to the program no more, and is not told."""

    is_done = False

    def __init__(self, cluster: Cluster, params: list[Any]) -> None:
        self._cluster, self._program = cluster, pubkey_of(params[0])
        self._level, self._encoding = level_at(params, 1), encoding_at(params, 1)
        self._filters = config_at(params, 1).get("filters") or []
        self._told = self._accounts()

    def _accounts(self) -> dict[Pubkey, Account]:
        found = self._cluster.program_accounts(self._program, self._level)
        return {key: account for key, account in found if matches_filters(bytes(account.data), self._filters)}

    def news(self) -> Iterator[Any]:
        now, told = self._accounts(), self._told
        self._told = now
        for key, account in now.items():
            if told.get(key) != account:
                value = {"pubkey": str(key), "account": account_json(account, self._encoding)}
                yield in_context(self._cluster, self._level, value)


class SignatureWatch:
    """One notification, as soon as the transaction has the level, also when it had it before."""

    def __init__(self, cluster: Cluster, params: list[Any]) -> None:
        self._cluster, self._signature = cluster, str(Signature.from_string(params[0]))
        self._level, self.is_done = level_at(params, 1), False

    def news(self) -> Iterator[Any]:
        landed = self._cluster.landed.get(self._signature)
        if landed is not None and landed.slot <= self._cluster.slot_at(self._level):
            self.is_done = True
            yield in_context(self._cluster, self._level, {"err": landed.error})


class LogsWatch:
    """`"all"`, or the transactions that mention one address."""

    is_done = False

    def __init__(self, cluster: Cluster, params: list[Any]) -> None:
        self._cluster, self._level = cluster, level_at(params, 1)
        self._mentioned = self._address_in(params[0])
        self._told_slot = cluster.slot_at(self._level)
        self._told = {(signature, landed.slot) for signature, landed in self._since(self._told_slot)}

    @staticmethod
    def _address_in(wanted: Any) -> Pubkey | None:
        if isinstance(wanted, str) and wanted in {"all", "allWithVotes"}:
            return None
        if not isinstance(wanted, dict) or len(wanted.get("mentions") or []) != 1:
            raise RpcError(INVALID_PARAMS, 'Invalid params: "all", or {"mentions": [one address]}')
        return pubkey_of(wanted["mentions"][0])

    def _since(self, slot: int) -> list[tuple[str, Landed]]:
        """What has the level and landed in this slot or later, oldest first."""
        newest, found = self._cluster.slot_at(self._level), []
        for signature, landed in reversed(self._cluster.landed.items()):
            if landed.slot < slot:
                break
            if landed.slot <= newest:
                found.append((signature, landed))
        return found[::-1]

    def news(self) -> Iterator[Any]:
        landed_since = self._since(self._told_slot)
        told, self._told = self._told, {(signature, landed.slot) for signature, landed in landed_since}
        self._told_slot = self._cluster.slot_at(self._level)
        for signature, landed in landed_since:
            mentioned = self._mentioned is None or self._mentioned in landed.accounts.keys
            if mentioned and (signature, landed.slot) not in told:
                value = {"signature": signature, "err": landed.error, "logs": list(landed.meta.logs())}
                yield in_context(self._cluster, self._level, value)


def in_context(cluster: Cluster, level: str, value: Any) -> dict[str, Any]:
    return {"context": {"slot": cluster.slot_at(level), "apiVersion": "4.0.0"}, "value": value}


WATCHES: dict[str, Callable[[Cluster, list[Any]], Watch]] = {
    "account": AccountWatch,
    "logs": LogsWatch,
    "program": ProgramWatch,
    "root": RootWatch,
    "signature": SignatureWatch,
    "slot": SlotWatch,
}
