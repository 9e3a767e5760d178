"""Inputs in a job file: what may be asked for, from which hosts it comes, what it asks of a node."""

from __future__ import annotations

from typing import Any

import pytest

from torg_protocol.errors import Invalid
from torg_protocol.ids import Digest
from torg_protocol.jobspec import BlobRef, JobSpec, load_job_spec
from torg_protocol.secrets import check_secret_names

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
        ({"kind": "ftp"}, "inputs.0", "not one of: 'named', 'blob', 'url', 's3', 'huggingface', 'ollama'"),
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


def test_a_name_of_data_gives_way_to_the_blob_that_it_stands_for() -> None:
    found = load_job_spec(
        {
            "version": 1,
            "inputs": [{"data": "mnist", "path": "/data"}],
            "tasks": [{"name": "a", "command": ["x"], "inputs": [{"data": "words", "path": "/words"}]}],
        }
    )
    assert found.named_data() == [("inputs.0.data", "mnist"), ("tasks.0.inputs.0.data", "words")]

    blobs = {name: BlobRef(digest=Digest(f"sha256:{number * 64}"), size_bytes=7) for name, number in NAMES.items()}
    pinned = found.with_data(blobs)

    assert pinned.named_data() == []
    assert [(item.name, item.path, item.digest[7:8]) for item in pinned.input_files()] == [
        ("mnist", "/data", "1"),
        ("words", "/words", "2"),
    ]
    assert [field for field, _ in pinned.blobs()] == ["inputs.0", "tasks.0.inputs.0"]
    assert load_job_spec(pinned.wire()) == pinned


NAMES = {"mnist": "1", "words": "2"}


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"data": "Mnist", "path": "/data"}, "inputs.0.data"),
        ({"data": "mnist"}, "inputs.0.path"),
        ({"data": "mnist", "path": "/data", "size": 1}, "inputs.0.size"),
        ({**URL, "bearer_token": "a b"}, "inputs.0.bearer_token"),
        (
            {"kind": "s3", "url": "s3://bucket", "path": "/s", "credentials": {"access_key_id": "A"}},
            "inputs.0.credentials.secret_access_key",
        ),
    ],
)
def test_what_is_wrong_with_names_and_credentials_is_named_where_it_stands(item: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        spec(item)
    assert refused.value.data["problems"][0]["field"] == field


def test_an_input_may_name_only_secrets_that_the_job_has() -> None:
    asked = spec({**URL, "bearer_token": "HF_TOKEN"})
    check_secret_names(asked, ["HF_TOKEN"])
    with pytest.raises(Invalid) as refused:
        check_secret_names(asked, ["HF_TOKENS"])

    assert (refused.value.code, refused.value.field) == ("secret_unknown", "inputs.0.bearer_token")
    assert refused.value.hint == 'did you mean "HF_TOKENS"?'
