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
    from torg_protocol.api import JobEvent, JobPage, JobView, LeaseView, MarketInfo, NodeView, Quote, ReferencePrice
    from torg_protocol.cases import AccountView, DisputeView
    from torg_protocol.jobspec import JobSpec
    from torg_protocol.open_values import is_known
    from torg_protocol.refunds import RefundView
    from torg_protocol.states import EndReason, JobState, LeaseState
    from torg_protocol.usage import SignedReceipt

_ANSWERS = {
    "torg_protocol.api": (
        "JobEvent",
        "JobPage",
        "JobView",
        "LeaseView",
        "MarketInfo",
        "NodeView",
        "Quote",
        "ReferencePrice",
    ),
    "torg_protocol.cases": (
        "AccountView",
        "DisputeView",
    ),
    "torg_protocol.jobspec": ("JobSpec",),
    "torg_protocol.refunds": ("RefundView",),
    "torg_protocol.states": (
        "EndReason",
        "JobState",
        "LeaseState",
    ),
    "torg_protocol.usage": ("SignedReceipt",),
}
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
    **{name: home for home, names in _ANSWERS.items() for name in names},
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
    "AccountView",
    "AsyncClient",
    "Client",
    "ClientConfig",
    "Conflict",
    "DigestMismatch",
    "DisputeView",
    "EndReason",
    "FunctionFailed",
    "Invalid",
    "JobEvent",
    "JobFailed",
    "JobPage",
    "JobSpec",
    "JobState",
    "JobView",
    "LeaseState",
    "LeaseView",
    "MarketInfo",
    "NodeView",
    "NotFound",
    "Quote",
    "ReceiptInvalid",
    "ReferencePrice",
    "RefundView",
    "SignedReceipt",
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
