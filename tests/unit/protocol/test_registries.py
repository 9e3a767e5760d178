"""`registries:` in a job file: what it says, what it refuses, and that specs without it are what they were."""

from __future__ import annotations

from typing import Any

import pytest

from torg_protocol.errors import Invalid
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.secrets import check_secret_names

LOGIN = {"username": "USER", "password": "WORD"}


def spec(registries: Any, **fields: Any) -> JobSpec:
    return load_job_spec({"version": 1, "image": "ghcr.io/org/x:1", "registries": registries, **fields})


def test_it_names_secrets_and_nothing_else() -> None:
    asked = spec({"ghcr.io": LOGIN})

    assert asked.secrets_needed() == [("registries.ghcr.io.username", "USER"), ("registries.ghcr.io.password", "WORD")]
    check_secret_names(asked, ["USER", "WORD"])
    with pytest.raises(Invalid) as caught:
        check_secret_names(asked, ["USER", "WORDS"])
    assert (caught.value.code, caught.value.field) == ("secret_unknown", "registries.ghcr.io.password")


def test_a_secret_of_an_input_too_stays_a_file_of_the_job() -> None:
    inputs = [{"kind": "huggingface", "repo": "org/m", "token": "USER", "path": "/m"}]

    assert spec({"ghcr.io": LOGIN}).secrets_of_registries() == {"USER", "WORD"}
    assert spec({"ghcr.io": LOGIN}, inputs=inputs).secrets_of_registries() == {"WORD"}


def test_without_it_the_digest_is_what_it_was() -> None:
    assert "registries" not in load_job_spec({"version": 1, "command": ["true"]}).wire()


def test_the_wire_form_reads_back() -> None:
    for asked in (spec({"ghcr.io": LOGIN}), spec({"ghcr.io": {"token": "T"}})):
        assert load_job_spec(asked.wire()) == asked


@pytest.mark.parametrize(
    ("registries", "image", "message"),
    [
        ({"ghcr.io": {"username": "USER"}}, "ghcr.io/x", "write username and password, or token alone"),
        ({"ghcr.io": {**LOGIN, "token": "T"}}, "ghcr.io/x", "write username and password, or token alone"),
        ({"ghcr.io": {"password": "not a name!"}}, "ghcr.io/x", "registries.ghcr.io.password"),
        ({"index.docker.io": LOGIN}, "nginx", 'write "docker.io"'),
        ({"https://ghcr.io": LOGIN}, "ghcr.io/x", "is not a registry as images name it"),
        ({"GHCR.io": LOGIN}, "ghcr.io/x", "is not a registry as images name it"),
        ({"org": LOGIN}, "org/x", "is not a registry as images name it"),
        ({"quay.io": LOGIN}, "ghcr.io/x", "no image of this job comes from there; they come from ghcr.io"),
        ({"docker.io": LOGIN}, "blob:sha256:" + "0" * 64, "no image of this job comes from there"),
    ],
)
def test_what_is_of_no_use_is_refused(registries: Any, image: str, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        spec(registries, image=image, command=["true"])

    assert message in str(caught.value)


@pytest.mark.parametrize("image", ["nginx", "org/x:1", "docker.io/org/x", "index.docker.io/org/x"])
def test_docker_hub_has_one_name(image: str) -> None:
    assert spec({"docker.io": LOGIN}, image=image).registries


def test_tasks_have_registries_of_their_own() -> None:
    tasks = [{"name": "a", "image": "ghcr.io/org/a"}, {"name": "b", "image": "127.0.0.1:5000/b"}]

    assert len(spec({"ghcr.io": LOGIN, "127.0.0.1:5000": LOGIN}, tasks=tasks).registries) == 2
