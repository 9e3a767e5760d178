"""The version before this one, as it was really spoken: recorded between a node and a marketplace of that release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torg_protocol.errors import Invalid
from torg_protocol.messages import (
    FROM_NODE,
    TO_NODE,
    Granted,
    Hello,
    ReceiptIssued,
    UsageCountersigned,
    Welcome,
)
from torg_protocol.usage import verify_receipt
from torg_protocol.versions import (
    OLDEST_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
    is_spoken_in,
    unknown_to,
    version_of_connection,
)

RECORDED = Path(__file__).parent / "recorded" / f"version-{OLDEST_PROTOCOL_VERSION}.txt"


def recorded(way: str) -> list[dict[str, Any]]:
    """ ">": what the node said; "<": what it heard."""
    return [json.loads(line[2:]) for line in RECORDED.read_text().splitlines() if line.startswith(way)]


def test_the_recording_holds_a_whole_conversation() -> None:
    said = {message["type"] for message in recorded(">")}
    heard = {message["type"] for message in recorded("<")}
    assert said == {"hello", "heartbeat", "lease_event", "log", "progress", "receipt_signed"}
    assert heard == {"welcome", "grant", "ack", "usage_countersigned", "receipt", "order", "stop"}
    events = {message["body"]["kind"] for message in recorded(">") if message["type"] == "lease_event"}
    assert {"accepted", "started", "exited", "reported", "usage"} <= events


@pytest.mark.parametrize(("way", "reader"), [(">", FROM_NODE), ("<", TO_NODE)], ids=["from-node", "to-node"])
def test_what_the_older_release_said_is_understood_and_said_again_without_a_difference(way: str, reader: Any) -> None:
    """So the older release reads, too, what this one writes of the same: no key that it would not know."""
    for message in recorded(way):
        said = json.loads(reader.validate_json(json.dumps(message)).model_dump_json())
        assert said == message, "a field that is new is left out while it is empty: Field(default=..., exclude_if=...)"


def test_what_the_older_release_signed_still_verifies() -> None:
    said = [FROM_NODE.validate_json(json.dumps(message)) for message in recorded(">")]
    heard = [TO_NODE.validate_json(json.dumps(message)) for message in recorded("<")]
    (hello,) = [message for message in said if isinstance(message, Hello)]
    (welcome,) = [message for message in heard if isinstance(message, Welcome)]
    assert hello.offer.is_valid()
    for message in heard:
        match message:
            case Granted():
                assert message.signed.grant.is_signed_by(welcome.marketplace, message.signed.signature)
            case UsageCountersigned():
                assert message.usage.record.is_signed_by(hello.offer.offer.node, message.usage.node_signature)
            case ReceiptIssued():
                assert verify_receipt(message.receipt, marketplace=welcome.marketplace) == []
            case _:
                pass


def test_versions_are_agreed_on_or_refused_with_the_way_out() -> None:
    assert version_of_connection(PROTOCOL_VERSION) == PROTOCOL_VERSION
    assert version_of_connection(PROTOCOL_VERSION - 1) == PROTOCOL_VERSION - 1
    with pytest.raises(Invalid) as old:
        version_of_connection(OLDEST_PROTOCOL_VERSION - 1)
    assert (old.value.code, old.value.field) == ("protocol_version_too_old", "protocol_version")
    assert "update it" in str(old.value)
    with pytest.raises(Invalid) as new:
        version_of_connection(PROTOCOL_VERSION + 1)
    assert (new.value.code, new.value.data["spoken"]) == ("protocol_version_unknown", [1, 2])


def test_a_kind_of_message_is_said_only_to_who_knows_it() -> None:
    assert is_spoken_in("grant", OLDEST_PROTOCOL_VERSION)
    assert is_spoken_in("refund", 2)
    assert not is_spoken_in("refund", 1)


def test_a_field_that_an_older_party_does_not_know_is_not_said_to_it() -> None:
    (exited,) = [
        message for message in recorded(">") if message["type"] == "lease_event" and message["body"]["kind"] == "exited"
    ][:1]
    measured = {**exited, "body": {**exited["body"], "use": {"cpu_energy_mj": 5, "gpu_energy_mj": 7}}}
    message = FROM_NODE.validate_json(json.dumps(measured))

    assert json.loads(message.model_dump_json(exclude=unknown_to(1)))["body"]["use"] == {"gpu_energy_mj": 7}
    assert json.loads(message.model_dump_json(exclude=unknown_to(2))) == measured
