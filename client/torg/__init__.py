"""Torg's SDK: submit work to a GPU marketplace, follow it, pull its results, verify what was paid.

>>> import torg
>>> async with torg.AsyncClient() as client: ...

Names are loaded on first use, so that `import torg` (and every CLI command) starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torg.client import AsyncClient
    from torg.config import ClientConfig, load_config
    from torg.errors import (
        Conflict,
        DigestMismatch,
        Invalid,
        JobFailed,
        NotFound,
        ReceiptInvalid,
        TorgError,
        Unavailable,
    )
    from torg.functions import FunctionFailed
    from torg.spec_file import SpecFile, read_spec_file, spec_from_mapping
    from torg.sync import Client
    from torg_protocol.open_values import is_known

_HOMES = {
    "AsyncClient": "torg.client",
    "Client": "torg.sync",
    "ClientConfig": "torg.config",
    "is_known": "torg_protocol.open_values",
    "load_config": "torg.config",
    "FunctionFailed": "torg.functions",
    "SpecFile": "torg.spec_file",
    "read_spec_file": "torg.spec_file",
    "spec_from_mapping": "torg.spec_file",
    **dict.fromkeys(
        (
            "Conflict",
            "DigestMismatch",
            "Invalid",
            "JobFailed",
            "NotFound",
            "ReceiptInvalid",
            "TorgError",
            "Unavailable",
        ),
        "torg.errors",
    ),
}

__all__ = [
    "AsyncClient",
    "Client",
    "ClientConfig",
    "Conflict",
    "DigestMismatch",
    "FunctionFailed",
    "Invalid",
    "JobFailed",
    "NotFound",
    "ReceiptInvalid",
    "SpecFile",
    "TorgError",
    "Unavailable",
    "is_known",
    "load_config",
    "read_spec_file",
    "spec_from_mapping",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'torg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What a shell or a notebook completes."""
    return __all__
