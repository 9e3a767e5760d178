"""`ports:` in a job file: what it says, what it refuses, and that specs without it are what they were."""

from __future__ import annotations

from typing import Any

import pytest

from torg_protocol.errors import Invalid
from torg_protocol.jobspec import load_job_spec


def _spec(ports: object) -> dict[str, Any]:
    return {"version": 1, "command": ["serve"], "ports": ports}


def test_ports_survive_the_wire() -> None:
    spec = load_job_spec(_spec([{"port": 8888, "name": "web", "health": {"http": "/health"}}, {"port": 9000}]))

    assert load_job_spec(spec.wire()) == spec
    assert spec.ports[0].health.http == "/health"
    assert spec.ports[1].health.tcp is True


def test_a_spec_without_ports_has_the_digest_that_it_always_had() -> None:
    spec = load_job_spec({"version": 1, "command": ["true"], "resources": {"gpus": 1, "min_vram": "8GiB"}})

    assert spec.digest == "sha256:7789ee55513b26366a8e6983da8feda91f85ec5359654c615cefb2a4f7c5d05c"
    assert "ports" not in spec.wire()


@pytest.mark.parametrize(
    ("ports", "field", "says"),
    [
        ([{"port": 0}], "ports.0.port", "at least 1"),
        ([{"port": 1}, {"port": 1}], "ports", "the port 1 is there twice"),
        ([{"port": 1, "name": "web"}, {"port": 2, "name": "web"}], "ports", "the name web is there twice"),
        ([{"port": 1, "health": {}}], "ports.0.health", "one of http: /path and tcp: true"),
        ([{"port": 1, "health": {"tcp": True, "expect_status": 200}}], "ports.0.health", "needs http"),
        ([{"port": 1, "health": {"http": "health"}}], "ports.0.health.http", "begins with /"),
    ],
)
def test_a_wrong_port_is_refused_by_its_field(ports: object, field: str, says: str) -> None:
    with pytest.raises(Invalid) as refused:
        load_job_spec(_spec(ports))

    assert (refused.value.code, refused.value.field) == ("spec_invalid", field)
    assert says in refused.value.message


def test_a_misspelt_key_inside_a_list_is_told_its_neighbours() -> None:
    with pytest.raises(Invalid) as refused:
        load_job_spec(_spec([{"port": 1, "helth": {"tcp": True}}]))

    assert refused.value.hint == 'did you mean "health"?'
