"""The node's key and its pinned marketplace in one file under a password, and back: what a dead disk must not take along.

A file of JSON: scrypt (n 2^17, r 8, p 1) makes the key of ChaCha20-Poly1305 over the content; everything else of the folder can be lost. The journal is
not in it: what was countersigned is also with the marketplace, and a restored node asks where its offers stand.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from torg_node.settings import CONFIG_NAME, Settings
from torg_protocol.errors import Conflict, Invalid

KIND = "torg node backup 1"
LEAST_PASSWORD = 8  # characters
_LOG_N, _R, _P = 17, 8, 1


def back_up(settings: Settings, target: Path, password: str) -> None:
    """Raises Conflict `backup_exists`, Invalid `password_short`. The file is 0600."""
    if len(password) < LEAST_PASSWORD:
        raise Invalid(
            f"a password of less than {LEAST_PASSWORD} characters protects nothing",
            code="password_short",
            field="password",
        )
    content = {
        "key": json.loads(settings.key_path.read_text()),
        "config": (settings.data / CONFIG_NAME).read_text(),
    }
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    sealed = ChaCha20Poly1305(_key(password, salt)).encrypt(nonce, json.dumps(content).encode(), KIND.encode())
    parts = {"salt": salt, "nonce": nonce, "sealed": sealed}
    text = json.dumps({"kind": KIND, **{name: base64.b64encode(part).decode() for name, part in parts.items()}})
    _write_new(target, text, "backup_exists")


def restore(source: Path, data: Path, password: str) -> None:
    """Writes key and config into `data`. Raises Conflict `node_exists`, Invalid `backup_invalid` or `password_wrong`; then nothing is written."""
    if (data / CONFIG_NAME).exists() or (data / "node.json").exists():
        raise Conflict(
            "this folder holds a node already",
            code="node_exists",
            field="data",
            value=str(data),
            hint="choose another folder",
        )
    content = _open(source, password)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_new(data / "node.json", json.dumps(content["key"]), "node_exists")
    (data / CONFIG_NAME).write_text(content["config"])


def _open(source: Path, password: str) -> dict[str, Any]:
    try:
        found = json.loads(source.read_text())
        if found["kind"] != KIND:
            raise ValueError(found["kind"])
        salt, nonce, sealed = (base64.b64decode(found[name], validate=True) for name in ("salt", "nonce", "sealed"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Invalid("not a backup of a node", code="backup_invalid", field="file", value=str(source)) from error
    try:
        content: dict[str, Any] = json.loads(
            ChaCha20Poly1305(_key(password, salt)).decrypt(nonce, sealed, KIND.encode())
        )
    except (InvalidTag, ValueError) as error:
        raise Invalid(
            "the password is wrong, or the file was changed", code="password_wrong", field="password"
        ) from error
    return content


def _key(password: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=1 << _LOG_N, r=_R, p=_P).derive(password.encode())


def _write_new(path: Path, text: str, code: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise Conflict("this file is there already", code=code, field="file", value=str(path)) from error
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
