"""Secrets are worth something in one job of one client only, on the nodes they were sealed to."""

from __future__ import annotations

import base64

import pytest
from solders.keypair import Keypair

from torg_host.age import seal, unseal
from torg_protocol.errors import Invalid
from torg_protocol.ids import AccountId
from torg_protocol.jobspec import JobSpec, load_job_spec
from torg_protocol.secrets import MAX_SECRET_BYTES, SealedSecrets, content_of, secrets_in

NODES = [Keypair.from_seed(bytes([number]) * 32) for number in (1, 2)]
STRANGER = Keypair.from_seed(bytes([9]) * 32)
CLIENT = AccountId("client")
VALUES = {"TOKEN": b"hunter2", "key.pem": b"\x00\xff\n"}
SPEC = load_job_spec({"version": 1, "command": ["true"]})


def sealed_for(spec: JobSpec, client: AccountId = CLIENT) -> JobSpec:
    nodes = tuple(str(node.pubkey()) for node in NODES)
    data = seal(content_of(spec, client, VALUES), nodes)
    secrets = SealedSecrets(names=tuple(VALUES), nodes=nodes, sealed=base64.b64encode(data).decode())
    return spec.model_copy(update={"secrets": secrets})


def opened(spec: JobSpec, key: Keypair, client: AccountId = CLIENT) -> dict[str, bytes]:
    assert spec.secrets is not None
    return secrets_in(unseal(spec.secrets.data, key), spec, client)


@pytest.mark.parametrize("node", NODES)
def test_every_node_that_was_sealed_to_can_open_them_so_a_second_attempt_needs_no_client(node: Keypair) -> None:
    spec = load_job_spec(sealed_for(SPEC).wire())  # after a journey

    assert opened(spec, node) == VALUES
    assert spec.digest != SPEC.digest
    assert spec.without_secrets().digest == SPEC.digest
    assert "secrets" not in SPEC.wire()


def test_nobody_else_can() -> None:
    with pytest.raises(Invalid) as refused:
        opened(sealed_for(SPEC), STRANGER)

    assert refused.value.code == "cannot_unseal"
    assert "hunter2" not in str(refused.value)


def test_in_another_job_they_stay_closed() -> None:
    """A marketplace cannot put them into a job that prints them, nor pass them off as another client's."""
    thief = load_job_spec({**sealed_for(SPEC).wire(), "command": ["sh", "-c", "cat /run/secrets/*"]})

    for spec, client in ((thief, CLIENT), (sealed_for(SPEC), AccountId("thief"))):
        with pytest.raises(Invalid) as refused:
            opened(spec, NODES[0], client)
        assert refused.value.code == "secrets_misplaced"
        assert "hunter2" not in str(refused.value)


def test_names_are_part_of_the_deal() -> None:
    spec = sealed_for(SPEC)
    assert spec.secrets is not None
    renamed = spec.model_copy(update={"secrets": spec.secrets.model_copy(update={"names": ("OTHER",)})})

    with pytest.raises(Invalid, match="other names"):
        opened(renamed, NODES[0])


def test_changed_or_foreign_bytes_are_refused() -> None:
    good = seal(b"x", [str(NODES[0].pubkey())])

    for data in (good[:-1], good[:-1] + bytes([good[-1] ^ 1]), b"", b"age-encryption.org/v1\n"):
        with pytest.raises(Invalid) as refused:
            unseal(data, NODES[0])
        assert refused.value.code == "cannot_unseal"
    with pytest.raises(Invalid, match="not in the form"):
        secrets_in(b"{}", sealed_for(SPEC), CLIENT)


def test_what_is_no_key_cannot_be_sealed_to() -> None:
    with pytest.raises(Invalid) as refused:
        seal(b"x", ["not-a-key"])

    assert refused.value.code == "recipient_invalid"


def test_there_is_a_limit() -> None:
    with pytest.raises(Invalid) as refused:
        content_of(SPEC, CLIENT, {"BIG": bytes(MAX_SECRET_BYTES + 1)})

    assert refused.value.code == "secrets_too_large"


@pytest.mark.parametrize(
    ("secrets", "field"),
    [
        ({"names": ["../evil"], "nodes": ["a"], "sealed": "YQ=="}, "secrets.names.0"),
        ({"names": [".hidden"], "nodes": ["a"], "sealed": "YQ=="}, "secrets.names.0"),
        ({"names": [], "nodes": ["a"], "sealed": "YQ=="}, "secrets.names"),
        ({"names": ["A"], "nodes": [], "sealed": "YQ=="}, "secrets.nodes"),
        ({"names": ["A"], "nodes": ["a"], "sealed": "not base64!"}, "secrets.sealed"),
        ({"TOKEN": "hunter2"}, "secrets.names"),
    ],
)
def test_the_wire_form_is_strict(secrets: object, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        load_job_spec({"version": 1, "command": ["true"], "secrets": secrets})

    assert refused.value.field == field
