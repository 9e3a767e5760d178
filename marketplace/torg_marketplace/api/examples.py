"""Examples of the OpenAPI document, by operation id: "request", or the status of a response. A test validates each."""

from __future__ import annotations

from typing import Any

_JOB_ID = "job_01kd3m2q7w8x9y0z1a2b3c4d5e"
_KEY_ID = "key_01kd3m2q7w8x9y0z1a2b3c4d5e"
_ACCOUNT = "acct_01kd3m2q7w8x9y0z1a2b3c4d5e"
_DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_SPEC: dict[str, Any] = {
    "version": 1,
    "name": "hello",
    "command": ["python", "-c", "print('hello')"],
    "resources": {"memory": "128MiB", "disk": "32MiB"},
    "limits": {"max_duration": "1m"},
}
_KEY: dict[str, Any] = {
    "key_id": _KEY_ID,
    "account": _ACCOUNT,
    "name": "ci",
    "scopes": ["jobs:read", "jobs:write"],
    "spend_cap": 10_000_000,
    "spent": 0,
    "held": 0,
    "created_at_ms": 1_764_111_600_000,
    "expires_at_ms": 1_766_703_600_000,
}

_VOLUME: dict[str, Any] = {
    "name": "runs",
    "generation": 3,
    "digest": _DIGEST,
    "size_bytes": 48_213_007,
    "made_by": _JOB_ID,
    "created_at_ms": 1_764_111_600_000,
    "stored_at_ms": 1_764_115_200_000,
    "used_at_ms": 1_764_115_200_000,
    "expires_at_ms": None,
    "writer": None,
    "users": [],
}

EXAMPLES: dict[str, dict[str, Any]] = {
    "get_volumes": {"200": {"volumes": [_VOLUME], "next_cursor": None, "total_bytes": 48_213_007}},
    "get_volume": {"200": _VOLUME},
    "put_volume_content": {
        "request": {"digest": _DIGEST, "size_bytes": 48_213_007, "generation": 2},
        "200": _VOLUME | {"made_by": None},
    },
    "delete_volume_content": {"200": _VOLUME},
    "post_quote": {
        "request": {"spec": _SPEC},
        "200": {
            "quote_id": "quote_AAAAAAAVXMAAAAAAAABbJQAAAZtlQy1gLXEWQrcmsEQBYnyp-6wy9evfgLJqSHXKtDyHIu4HnW0",
            "feasible": True,
            "nodes_considered": 3,
            "nodes_fitting": 2,
            "cheapest_price_per_gpu_hour": 1_000_000,
            "dearest_price_per_gpu_hour": 1_400_000,
            "billable_gpus": 1,
            "max_amount": 23_333,
            "expires_at_ms": 1_764_111_660_000,
        },
    },
    "post_job": {"request": {"spec": _SPEC}},
    "post_blob": {
        "request": {"digest": _DIGEST, "size_bytes": 4},
        "200": {
            "digest": _DIGEST,
            "url": f"https://market.example/blobs/{_DIGEST}?size=4&expires=1764115200000&signature=...",
        },
    },
    "post_key": {
        "request": {
            "name": "ci",
            "scopes": ["jobs:read", "jobs:write"],
            "spend_cap": 10_000_000,
            "expires_in_s": 2_592_000,
        },
        "201": {"key": _KEY, "secret": "torgkey_01kd3m2q7w8x9y0z1a2b3c4d5e_..."},
    },
    "get_keys": {"200": {"keys": [_KEY], "next_cursor": None}},
    "get_credit": {
        "200": {"account": _ACCOUNT, "granted": 10_000_000, "spent": 41, "held": 23_333, "available": 9_976_626}
    },
}
