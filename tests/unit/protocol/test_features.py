"""What a job asks for that not every version of the node channel has."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

from tests.support.grant_shape import shape
from torg_protocol.features import CALLED_BEFORE, FEATURES, READ_BY_OLDER, features_asked, version_needed
from torg_protocol.jobspec import JobSpec, Resources, load_job_spec
from torg_protocol.messages import Grant
from torg_protocol.versions import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION, SPOKEN

RECORDED = Path(__file__).parent / "recorded" / f"version-{OLDEST_PROTOCOL_VERSION}.txt"
OLDEST_GRANT = set((RECORDED.parent / f"grant-of-{RECORDED.name}").read_text().splitlines())
DIGEST, PIECES = "sha256:" + "1" * 64, "pieces:" + "1" * 64
PLAIN: dict[str, Any] = {"version": 1, "command": ["python", "train.py"]}
TASKS: dict[str, Any] = {"version": 1, "tasks": [{"name": "serve", "command": ["python", "serve.py"]}]}
BLOB = {"kind": "blob", "path": "/data", "size_bytes": 5, "unpack": True}
SERVING = TASKS["tasks"][0] | {"ports": [{"port": 8080}]}
WHEN_READY = {"task": "serve", "until": "ready"}
LOGIN = {"username": "who", "password": "what"}

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
    (
        {"version": 1, "tasks": [SERVING, {"name": "ask", "command": ["ask"], "depends_on": [WHEN_READY]}]},
        "waiting for a task's ports",
    ),
    (PLAIN | {"resources": {"gpus": 1, "gpu_fraction": 0.5}}, "parts of a GPU"),
    (PLAIN | {"resources": {"gpus": 1, "gpu_class": "|".join(["NVIDIA L40S"] * 6)}}, "long lists of GPU classes"),
    (PLAIN | {"image": "registry.example/a:1", "registries": {"registry.example": LOGIN}}, "private registries"),
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
    assert feature in asked(raw)
    assert set(asked(raw)) <= {feature, "ports of tasks"}  # nobody waits for a task's ports that has none
    assert version_needed(features_asked(load_job_spec(raw))) == PROTOCOL_VERSION


def test_what_the_grant_brings_counts_as_well() -> None:
    spec = load_job_spec(PLAIN)
    assert [each.name for each in features_asked(spec, [DIGEST, PIECES])] == ["blobs named by their pieces"]
    assert features_asked(spec, [DIGEST]) == ()


def undecided(grant: type[BaseModel]) -> list[str]:
    """What it can say and could not in the oldest version, and `features.py` says nothing about."""
    now = {
        f"{CALLED_BEFORE.get(name, name)}.{rest}" for name, _, rest in (line.partition(".") for line in shape(grant))
    }
    decided = [pattern for each in FEATURES for pattern in each.brings] + list(READ_BY_OLDER)
    return sorted(line for line in now - OLDEST_GRANT if not any(fnmatchcase(line, pattern) for pattern in decided))


def test_who_adds_to_the_job_file_or_the_grant_decides_whether_an_older_node_can_read_it() -> None:
    """A line here: is it a line in `FEATURES`, with whether a job asks for it? Or is it in `READ_BY_OLDER`, and why?"""
    assert undecided(Grant) == []


def test_a_new_field_a_new_value_and_a_new_limit_are_noticed() -> None:
    wider = create_model("Resources", __base__=Resources, shiny=(bool, False), gpus=(int, Field(0, ge=0, le=128)))
    isolation = (Literal["sandbox", "container", "gvisor", "enclave"], "sandbox")
    spec = create_model("JobSpec", __base__=JobSpec, resources=(wider, wider()), isolation=isolation)
    assert undecided(create_model("Grant", __base__=Grant, spec=(spec, ...))) == [
        "JobSpec.isolation is 'enclave'",
        "Resources.gpus maximum 128",
        "Resources.shiny type boolean",
    ]


def test_nothing_is_decided_that_is_not_there() -> None:
    new = shape(Grant) - OLDEST_GRANT
    patterns = [pattern for each in FEATURES for pattern in each.brings] + list(READ_BY_OLDER)
    assert [pattern for pattern in patterns if not any(fnmatchcase(line, pattern) for line in new)] == []
    assert {feature for _, feature in NEWER} >= {each.name for each in FEATURES if each.brings}


def test_every_feature_belongs_to_a_version_that_was() -> None:
    assert all(1 < each.since <= PROTOCOL_VERSION for each in FEATURES)
    assert len({each.name for each in FEATURES}) == len(FEATURES)
    assert len(SPOKEN) == 2  # "protocol N-1 has no ..." is said of the one before


def test_what_an_older_node_was_really_granted_asks_for_nothing_newer() -> None:
    messages = [json.loads(line[2:]) for line in RECORDED.read_text().splitlines() if line.startswith("<")]
    specs = [message["signed"]["grant"]["spec"] for message in messages if message["type"] == "grant"]
    assert specs
    assert [features_asked(JobSpec.model_validate(spec)) for spec in specs] == [()] * len(specs)
