"""Inputs in a job file: what may be asked for, from which hosts it comes, what it asks of a node."""

from __future__ import annotations

from typing import Any

import pytest

from torg_protocol.errors import Invalid
from torg_protocol.jobspec import JobSpec, load_job_spec

DIGEST = "sha256:" + "0" * 64
URL = {"kind": "url", "url": "https://Example.org/a?b=c", "digest": DIGEST, "path": "/data/a"}


def spec(*inputs: dict[str, Any], **fields: Any) -> JobSpec:
    return load_job_spec({"version": 1, "command": ["x"], "inputs": list(inputs), **fields})


@pytest.mark.parametrize(
    ("item", "hosts"),
    [
        (URL, ("example.org:443",)),
        ({"kind": "blob", "digest": DIGEST, "size_bytes": 1, "path": "/a"}, ()),
        (
            {"kind": "s3", "url": "s3://bucket/p", "endpoint": "http://s3.example:9000/", "path": "/a"},
            ("s3.example:9000",),
        ),
        (
            {"kind": "huggingface", "repo": "org/model", "path": "/a"},
            ("huggingface.co:443", "*.huggingface.co:443", "*.hf.co:443"),
        ),
        ({"kind": "ollama", "model": "llama3:8b"}, ("registry.ollama.ai:443", "*.r2.cloudflarestorage.com:443")),
    ],
)
def test_each_kind_says_where_it_comes_from(item: dict[str, Any], hosts: tuple[str, ...]) -> None:
    job = spec(item)

    assert job.inputs[0].hosts == hosts
    assert job.egress_wanted == ("allow" if hosts else "none")
    assert load_job_spec(job.wire()) == job


def test_what_a_task_reads_counts_too_and_an_open_network_stays_open() -> None:
    task = {"name": "a", "command": ["x"], "inputs": [URL]}

    assert load_job_spec({"version": 1, "tasks": [task]}).egress_wanted == "allow"
    assert load_job_spec({"version": 1, "tasks": [task], "network": "open"}).egress_wanted == "open"


def test_a_spec_without_inputs_says_nothing_of_them() -> None:
    assert "inputs" not in spec().wire()


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"url": "ftp://x/y"}, "inputs.0.url", "not an https:// or http:// address"),
        ({"url": "https://x:y@z/"}, "inputs.0.url", "an address with a password in it would be readable"),
        ({"url": "https://x:99999/"}, "inputs.0.url", "not an https:// or http:// address"),
        ({"digest": "abc"}, "inputs.0.digest", "not a digest"),
        ({"path": "data"}, "inputs.0.path", "is not an absolute path"),
        ({"path": "/output/x"}, "inputs.0.path", "is in a folder of the job's own"),
        ({"kind": "ftp"}, "inputs.0", "not one of: 'blob', 'url', 's3', 'huggingface', 'ollama'"),
        ({"digset": DIGEST}, "inputs.0.digset", "unknown key"),
    ],
)
def test_what_is_wrong_is_named_where_it_stands(change: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(Invalid) as refused:
        spec({**URL, **change})
    problem = refused.value.data["problems"][0]

    assert problem["field"] == field
    assert message in problem["message"]


def test_two_things_do_not_go_to_one_place() -> None:
    with pytest.raises(Invalid) as refused:
        spec(URL, URL)
    assert refused.value.data["problems"][0]["message"] == "two things at /data/a"
