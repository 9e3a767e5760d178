"""Which versions of the node channel a party speaks, and what a version brought.

A node says the newest that it speaks in its hello; the marketplace answers with the version of the connection. Every release speaks the newest
version and the one before, so that neither side must be updated first:

- a field that an older party does not know is left out of what is sent and signed while it is empty (`exclude_if`), so that older ones verify;
- a message that it does not know is not sent to it: `SINCE`.

Conversations that were recorded with older releases are replayed by the tests (`tests/unit/protocol/recorded`).
"""

from __future__ import annotations

from typing import Any

from torg_protocol.errors import Invalid

PROTOCOL_VERSION = 2
OLDEST_PROTOCOL_VERSION = PROTOCOL_VERSION - 1
SPOKEN = tuple(range(OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION + 1))

TOO_OLD, UNKNOWN = "protocol_version_too_old", "protocol_version_unknown"

SINCE = {"refund": 2, "gang_members_left": 2, "suspended": 2}
"""Types of messages by the version that brought them; what is not named has been there from the first."""

_NOT_YET: dict[int, dict[str, Any]] = {1: {"body": {"use": {"cpu_energy_mj"}}, "gpus_out": True, "suspensions": True}}


def version_of_connection(newest_of_node: int) -> int:
    """What a marketplace of this release speaks with a node of that one.

    Raises Invalid `protocol_version_too_old`, which only an update of the node helps, and `protocol_version_unknown`, upon which a newer
    node says hello again in a version that both speak.
    """
    if newest_of_node < OLDEST_PROTOCOL_VERSION:
        raise Invalid(
            f"this node speaks version {newest_of_node} of the protocol, and this marketplace none older than {OLDEST_PROTOCOL_VERSION}",
            code=TOO_OLD,
            field="protocol_version",
            value=newest_of_node,
            hint="update it: pip install --upgrade 'torg[node]', then restart torg-node; running leases go on meanwhile",
            spoken=list(SPOKEN),
        )
    if newest_of_node > PROTOCOL_VERSION:
        raise Invalid(
            "this marketplace does not speak that version",
            code=UNKNOWN,
            field="protocol_version",
            value=newest_of_node,
            hint=f"it speaks {' and '.join(map(str, SPOKEN))}; a node that speaks one of them says hello again by itself",
            spoken=list(SPOKEN),
        )
    return newest_of_node


def unknown_to(version: int) -> dict[str, Any]:
    """Fields that are left out of every message to an older party, as pydantic's `exclude`. None of them is signed."""
    return _NOT_YET.get(version, {})


def is_spoken_in(message_type: str, version: int) -> bool:
    return SINCE.get(message_type, OLDEST_PROTOCOL_VERSION) <= version
