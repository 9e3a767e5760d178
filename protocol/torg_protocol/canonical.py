"""One byte string per JSON value, so that two parties hash and sign the same thing.

The subset of RFC 8785 (JCS) that we need: objects sorted by key, no white space, UTF-8, integers only. Floats are
refused: measured numbers travel as decimal strings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest


def canonical_json(value: object) -> bytes:
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(value: object) -> Digest:
    return sha256_digest(canonical_json(value))


def sha256_digest(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


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
