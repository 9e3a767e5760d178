"""What a job file may say about its network, and that one meaning has one form."""

from __future__ import annotations

import pytest

from torg_protocol.errors import Invalid
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.network import EgressList, egress_kind


def spec(network: object) -> JobSpec:
    return load_job_spec({"version": 1, "command": ["true"], "network": network})


def test_no_network_is_the_default_and_leaves_older_digests_as_they_were() -> None:
    plain = load_job_spec({"version": 1, "command": ["true"]})

    assert egress_kind(plain.network) == "none"
    assert spec("none").digest == plain.digest
    assert plain.digest == "sha256:1ffdf09e7dcf3c1e675891244d0f564ba005adca793f1da5b1e440733848c222"


def test_a_list_is_sorted_lower_case_without_doubles_and_says_its_port() -> None:
    written = spec({"egress": "allow", "allow": ["PyPI.org", "*.Example.org:8443", "pypi.org.:443", "9.9.9.9:22"]})

    assert written.network == EgressList(allow=("*.example.org:8443", "9.9.9.9:22", "pypi.org:443"))
    assert egress_kind(written.network) == "allow"
    assert spec({"allow": ["9.9.9.9:22", "pypi.org", "*.example.org:8443"]}).digest == written.digest


@pytest.mark.parametrize(
    ("network", "field"),
    [
        ("opne", "network"),
        (7, "network"),
        (["pypi.org"], "network"),
        ({"egress": "deny", "allow": ["pypi.org"]}, "network.egress"),
        ({"egress": "allow", "alow": ["pypi.org"]}, "network.allow"),
        ({"egress": "allow", "allow": []}, "network.allow"),
        *(
            ({"allow": [destination]}, "network.allow")
            for destination in (
                "*",
                "*.org",
                "*.*.example.org",
                "localhost:80",
                "http://pypi.org/",
                "pypi.org:0",
                "pypi.org:65536",
                "pypi.org:25",
                "user@pypi.org",
                "10.0.0.1:80",
                "169.254.169.254:80",
                "127.1:80",
                "[::1]:80",
                "a..b",
                "-a.org",
                "ünï.org",
                "",
            )
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(network: object, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        spec(network)

    assert (refused.value.code, refused.value.field) == ("spec_invalid", field)
