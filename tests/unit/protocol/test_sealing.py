"""What a sealed job may ask for, and what two submissions of one job file have in common."""

from __future__ import annotations

from typing import Any

import pytest

from torg_protocol.errors import Invalid
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.sealing import JOB_KEY, check_job_key

RECIPIENT = "age1" + "q" * 58
DIGEST = "sha256:" + "0" * 64


def spec(**changes: Any) -> JobSpec:
    raw = {"version": 1, "command": ["x"], "sealed": {"recipient": RECIPIENT}, "placement": {"nodes": ["n"]}}
    return load_job_spec({**raw, **changes})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"placement": {}}, "placement.nodes"),
        ({"verify": {"policy": "replay", "catalogue": "rnn"}}, "verify.policy"),
        ({"volumes": ["data:/data"]}, "volumes"),
        (
            {
                "command": [],
                "tasks": [{"name": "a", "command": ["x"], "inputs": [{"data": "mnist", "path": "/data"}]}],
            },
            "tasks.0.inputs.0",
        ),
        ({"inputs": [{"data": "mnist", "path": "/data"}]}, "inputs.0"),
        ({"inputs": [{"kind": "blob", "digest": DIGEST, "size_bytes": 1, "path": "/data"}]}, "inputs.0"),
        ({"sealed": {"recipient": "age1x"}}, "sealed.recipient"),
    ],
)
def test_what_the_marketplace_would_have_to_read_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        spec(**change)
    assert [problem["field"] for problem in refused.value.data["problems"]] == [field]


def test_a_job_that_nobody_could_open_is_refused() -> None:
    sealed = {"names": ["TOKEN"], "nodes": ["n"], "sealed": "AAAA"}
    for secrets in (None, sealed):
        with pytest.raises(Invalid) as refused:
            check_job_key(spec(secrets=secrets))
        assert refused.value.code == "job_key_missing"
    check_job_key(spec(secrets={**sealed, "names": ["TOKEN", JOB_KEY]}))
    check_job_key(spec(sealed=None))


def test_two_submissions_are_compared_without_what_is_encrypted() -> None:
    first = spec(workspace={"digest": DIGEST, "size_bytes": 1})
    second = spec(workspace={"digest": DIGEST[:-1] + "1", "size_bytes": 2}, sealed={"recipient": "age1" + "p" * 58})
    other = spec(command=["y"])

    assert first.without_what_is_sealed().digest == second.without_what_is_sealed().digest
    assert first.without_what_is_sealed().digest != other.without_what_is_sealed().digest
    open_job = spec(sealed=None, workspace={"digest": DIGEST, "size_bytes": 1})
    assert open_job.without_what_is_sealed().workspace == open_job.workspace
    assert "sealed" not in open_job.wire()
