"""What requests carry, in the shapes of Solana's JSON-RPC; the same over HTTP and WebSocket."""

from __future__ import annotations

from typing import Any

from solders.pubkey import Pubkey

from torg_chain.localnet.encoding import decode_transaction

INVALID_PARAMS, METHOD_NOT_FOUND, PREFLIGHT_FAILURE, UNSUPPORTED_VERSION = -32602, -32601, -32002, -32015
MIN_SLOT_NOT_REACHED = -32016


class RpcError(Exception):
    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, **({} if self.data is None else {"data": self.data})}


def pubkey_of(text: str) -> Pubkey:
    return Pubkey.from_string(text)


def config_at(params: list[Any], index: int) -> dict[str, Any]:
    return params[index] if len(params) > index and isinstance(params[index], dict) else {}


def level_at(params: list[Any], index: int) -> str:
    """The commitment that is asked for."""
    return str(config_at(params, index).get("commitment") or "finalized")


def encoding_at(params: list[Any], index: int) -> str:
    """base58 on request; everything else (also jsonParsed, which a server may decline) as base64."""
    return "base58" if config_at(params, index).get("encoding") == "base58" else "base64"


def matches_filters(data: bytes, filters: list[dict[str, Any]]) -> bool:
    return all(_matches(data, one) for one in filters)


def _matches(data: bytes, one: dict[str, Any]) -> bool:
    if "dataSize" in one:
        return len(data) == int(one["dataSize"])
    compare = one["memcmp"]
    wanted = decode_transaction(compare["bytes"], compare.get("encoding") or "base58")
    return data[compare["offset"] : compare["offset"] + len(wanted)] == wanted
