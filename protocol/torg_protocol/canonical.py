"""One byte string per JSON value, so that two parties hash and sign the same thing.

The subset of RFC 8785 (JCS) that we need: objects sorted by key, no white space, UTF-8, integers only. Floats are
refused: measured numbers travel as decimal strings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_PLAIN = frozenset({str, int, bool, type(None)})
_KEYS = frozenset({str})


def canonical_json(value: object) -> bytes:
    if not _is_plain(value):
        _check(value, "$")
    return _ENCODER.encode(value).encode()


def digest_of(value: object) -> Digest:
    return sha256_digest(canonical_json(value))


def sha256_digest(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def _is_plain(value: object) -> bool:
    """The usual case, told quickly: nothing but JSON's own types, no floats. Others may have a canonical form all the same."""
    todo: list[Any] = [value]
    for item in todo:  # which grows meanwhile
        kind = type(item)
        if kind is dict:
            if not _KEYS.issuperset(map(type, item)):
                return False
            todo += [inner for inner in item.values() if type(inner) not in _PLAIN]
        elif kind is list or kind is tuple:
            todo += [inner for inner in item if type(inner) not in _PLAIN]
        elif kind not in _PLAIN:
            return False
    return True


def _check(value: object, path: str) -> None:
    if value is None or isinstance(value, str | int):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Invalid("keys must be strings", code="not_canonical", field=path, value=repr(key))
            _check(item, f"{path}.{key}")
        return
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]")
        return
    raise Invalid(f"{type(value).__name__} has no canonical form", code="not_canonical", field=path, value=repr(value))
