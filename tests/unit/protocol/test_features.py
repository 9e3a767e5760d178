"""What a job asks for that not every version of the node channel has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torg_protocol.features import FEATURES, features_asked, version_needed
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.versions import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, SPOKEN

RECORDED = Path(__file__).parent / "recorded" / f"version-{OLDEST_PROTOCOL_VERSION}.txt"
DIGEST, PIECES = "sha256:" + "1" * 64, "pieces:" + "1" * 64
PLAIN: dict[str, Any] = {"version": 1, "command": ["python", "train.py"]}
TASKS: dict[str, Any] = {"version": 1, "tasks": [{"name": "serve", "command": ["python", "serve.py"]}]}
BLOB = {"kind": "blob", "path": "/data", "size_bytes": 5, "unpack": True}

OLDER = [
    PLAIN,
    TASKS,
    TASKS | {"volumes": {"scratch": {}}},
    PLAIN | {"resources": {"gpus": 2}, "ports": [{"port": 8080}], "checkpoint": {"enabled": True}},
    PLAIN | {"workspace": {"digest": DIGEST, "size_bytes": 5}, "inputs": [BLOB | {"digest": DIGEST}]},
]
NEWER = [
    (PLAIN | {"volumes": ["models:/models"]}, "named volumes"),
    (TASKS | {"volumes": {"scratch": {"path": "/scratch"}}}, "named volumes"),
    (PLAIN | {"workspace": {"digest": PIECES, "size_bytes": 5}}, "blobs named by their pieces"),
    (PLAIN | {"inputs": [BLOB | {"digest": PIECES}]}, "blobs named by their pieces"),
    ({"version": 1, "tasks": [TASKS["tasks"][0] | {"ports": [{"port": 8080}]}]}, "ports of tasks"),
    (PLAIN | {"resources": {"gpus": 1, "gpu_fraction": 0.5}}, "parts of a GPU"),
    (PLAIN | {"spot": True}, "spot jobs"),
    (PLAIN | {"gang": {"size": 2}}, "gangs"),
    (PLAIN | {"outputs": ["a"], "verify": {"policy": "quorum"}}, "verification by quorum"),
    (PLAIN | {"verify": {"policy": "replay", "catalogue": "cnn"}}, "a price of verification"),
]


def asked(raw: dict[str, Any]) -> list[str]:
    return [each.name for each in features_asked(load_job_spec(raw))]


@pytest.mark.parametrize("raw", OLDER)
def test_what_every_version_has_is_for_every_node(raw: dict[str, Any]) -> None:
    assert asked(raw) == []
    assert version_needed(features_asked(load_job_spec(raw))) == OLDEST_PROTOCOL_VERSION


@pytest.mark.parametrize(("raw", "feature"), NEWER, ids=[feature for _, feature in NEWER])
def test_what_came_later_is_named(raw: dict[str, Any], feature: str) -> None:
    assert asked(raw) == [feature]
    assert version_needed(features_asked(load_job_spec(raw))) == PROTOCOL_VERSION


def test_what_the_grant_brings_counts_as_well() -> None:
    spec = load_job_spec(PLAIN)
    assert [each.name for each in features_asked(spec, [DIGEST, PIECES])] == ["blobs named by their pieces"]
    assert features_asked(spec, [DIGEST]) == ()


def test_every_feature_belongs_to_a_version_that_was() -> None:
    assert all(1 < each.since <= PROTOCOL_VERSION for each in FEATURES)
    assert len({each.name for each in FEATURES}) == len(FEATURES)
    assert len(SPOKEN) == 2  # "protocol N-1 has no ..." is said of the one before


def test_what_an_older_node_was_really_granted_asks_for_nothing_newer() -> None:
    messages = [json.loads(line[2:]) for line in RECORDED.read_text().splitlines() if line.startswith("<")]
    specs = [message["signed"]["grant"]["spec"] for message in messages if message["type"] == "grant"]
    assert specs
    assert [features_asked(JobSpec.model_validate(spec)) for spec in specs] == [()] * len(specs)
