"""Where a job file's secrets come from, and to whom they are sealed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from solders.keypair import Keypair

from torg.secret_sources import SecretSource, recipients, seal_secrets, sources_of
from torg.spec_file import spec_from_mapping
from torg_host.age import unseal
from torg_protocol.api import NodeView
from torg_protocol.errors import Infeasible, Invalid
from torg_protocol.ids import AccountId
from torg_protocol.jobspec import load_job_spec
from torg_protocol.secrets import secrets_in

KEYS = [Keypair.from_seed(bytes([number]) * 32) for number in (1, 2, 3)]
SPEC = load_job_spec({"version": 1, "command": ["true"], "network": "open"})


def offer(key: Keypair, **changes: Any) -> NodeView:
    fields = {
        "node": str(key.pubkey()),
        "state": "active",
        "liveness": "alive",
        "gpu_class": "cpu",
        "gpus": 0,
        "cpu_millis": 4000,
        "memory_bytes": 8 << 30,
        "disk_bytes": 8 << 30,
        "price_per_gpu_hour": 1,
        "slots": 1,
        "slots_free": 0,
        "executor": "sandbox",
        "isolation": ["sandbox"],
        "egress": ["allow", "open"],
        "region": "unknown",
        "inventory_source": "cpu",
    }
    return NodeView.model_validate({**fields, **changes})


def test_values_come_from_variables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(b"\x00key\n")
    monkeypatch.setenv("MY_TOKEN", "hunter2")

    file = spec_from_mapping(
        {"version": 1, "command": ["true"], "secrets": {"TOKEN": {"env": "MY_TOKEN"}, "k": {"file": "key"}}},
        base=tmp_path,
    )

    assert {source.name: source.read() for source in file.secrets} == {"TOKEN": b"hunter2", "k": b"\x00key\n"}
    assert file.check().secrets is None  # nothing of them is read, or goes anywhere, before it is submitted


@pytest.mark.parametrize(
    ("written", "field"),
    [
        ({"TOKEN": "hunter2"}, "secrets.TOKEN"),
        ({"TOKEN": {"value": "hunter2"}}, "secrets.TOKEN"),
        ({"TOKEN": {"env": "A", "file": "hunter2"}}, "secrets.TOKEN"),
        ({"../x": {"env": "A"}}, "secrets.../x"),
        (["hunter2"], "secrets"),
    ],
)
def test_a_secret_that_stands_in_the_file_is_refused_and_not_repeated(
    written: object, field: str, tmp_path: Path
) -> None:
    with pytest.raises(Invalid) as refused:
        sources_of(written, tmp_path)

    assert (refused.value.code, refused.value.field) == ("spec_invalid", field)
    assert "hunter2" not in str(refused.value.to_problem())


@pytest.mark.parametrize(
    "source", [SecretSource("A", env="NOT_SET_ANYWHERE"), SecretSource("A", file=Path("/no/such"))]
)
def test_what_is_not_there_is_named(source: SecretSource) -> None:
    with pytest.raises(Invalid) as refused:
        source.read()

    assert (refused.value.code, refused.value.field) == ("secret_missing", "secrets.A")


def test_they_are_sealed_to_the_nodes_that_fit_the_cheapest_first() -> None:
    cheap, dear, closed = KEYS
    offers = [
        offer(dear, price_per_gpu_hour=9),
        offer(cheap),
        offer(closed, egress=[]),
        *(offer(Keypair(), **odd) for odd in ({"memory_bytes": 1}, {"state": "suspended"}, {"isolation": []})),
    ]

    assert recipients(SPEC, offers) == (str(cheap.pubkey()), str(dear.pubkey()))
    spot = load_job_spec({**SPEC.wire(), "spot": True})
    both = [offer(key, spot_price_per_gpu_hour=1, protocol_version=known) for key, known in ((cheap, 1), (dear, 2))]
    assert recipients(spot, both) == (str(dear.pubkey()),), "the release before cannot read such a job"
    named = load_job_spec({**SPEC.wire(), "placement": {"nodes": [str(closed.pubkey())]}})
    assert recipients(named, offers) == (str(closed.pubkey()),)


def test_sealed_they_are_for_this_client_and_this_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    client = AccountId("me")

    spec = seal_secrets(SPEC, [SecretSource("TOKEN", env="MY_TOKEN")], [offer(KEYS[0])], client)

    assert spec.secrets is not None
    assert secrets_in(unseal(spec.secrets.data, KEYS[0]), spec, client) == {"TOKEN": b"hunter2"}
    assert "hunter2" not in spec.model_dump_json()


def test_with_nobody_to_seal_to_nothing_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    with pytest.raises(Infeasible) as refused:
        seal_secrets(SPEC, [SecretSource("TOKEN", env="MY_TOKEN")], [], AccountId("me"))

    assert refused.value.code == "no_node_for_secrets"
