"""Resets in the place of members that are gone: what the container's own kernel takes as an answer."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from torg_node.gang_addresses import gang_env
from torg_node.gang_network import GangNetwork
from torg_node.gang_resets import Connections, checksum, reset_for, segment_of
from torg_protocol.ids import JobId
from torg_protocol.jobspec import Gang

HERE, THERE = socket.inet_aton("10.88.0.2"), socket.inet_aton("10.88.0.4")
FIN, SYN, RST, PUSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10


def packet(
    flags: int, *, sequence: int = 7_000, acknowledges: int = 9_000, data: bytes = b"", port: int = 5_000
) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", port, 29_500, sequence, acknowledges, 5 << 4, flags, 512, 0, 0) + data
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0, HERE, THERE) + tcp


def answer(sent: bytes) -> tuple[int, int, int]:
    """Sequence, acknowledged, flags; everything else of the answer is checked."""
    segment = segment_of(sent)
    assert segment is not None
    reset = reset_for(segment)
    assert reset is not None
    assert (reset[12:16], reset[16:20], len(reset)) == (THERE, HERE, 40)
    assert checksum(reset[:20]) == checksum(reset[12:20] + bytes([0, 6, 0, 20]) + reset[20:]) == bytes(2)
    source, destination, sequence, acknowledged, _, flags = struct.unpack("!HHIIBB", reset[20:34])
    assert (source, destination) == (29_500, 5_000)
    return sequence, acknowledged, flags


@pytest.mark.parametrize("flags", [ACK, PUSH | ACK, FIN | ACK])
def test_a_connection_is_reset_with_the_number_that_is_expected_next(flags: int) -> None:
    assert answer(packet(flags, data=b"gradients")) == (9_000, 0, RST)


def test_a_new_connection_is_refused() -> None:
    assert answer(packet(SYN, acknowledges=0)) == (0, 7_001, RST | ACK)
    assert answer(packet(SYN, sequence=2**32 - 1)) == (0, 0, RST | ACK)


def test_a_reset_is_not_answered_nor_is_what_is_not_tcp() -> None:
    segment = segment_of(packet(RST))
    assert segment is not None
    assert reset_for(segment) is None
    udp = bytearray(packet(ACK))
    udp[9] = 17
    fragment = bytearray(packet(ACK))
    fragment[7] = 8
    for other in (bytes(udp), bytes(fragment), packet(ACK)[:30], b""):
        assert segment_of(other) is None


def test_all_open_connections_are_reset_once_by_what_was_sent_last() -> None:
    connections = Connections()
    for acknowledges in (9_000, 9_500):
        connections.note(packet(ACK, acknowledges=acknowledges))
    connections.note(packet(ACK, port=5_001))
    connections.note(packet(ACK, port=5_002))
    connections.note(packet(RST | ACK, port=5_002))
    resets = list(connections.resets())
    assert sorted(int.from_bytes(reset[22:24]) for reset in resets) == [5_000, 5_001]
    assert 9_500 in {int.from_bytes(reset[24:28]) for reset in resets}
    assert list(connections.resets()) == []


@pytest.mark.parametrize(("is_elastic", "resets"), [(True, 1), (False, 0)])
async def test_only_a_gang_that_goes_on_without_some_remembers_connections(is_elastic: bool, resets: int) -> None:
    inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    inside.setblocking(False)
    outside.setblocking(False)
    network = GangNetwork(outside.detach(), rank=1, size=4, is_elastic=is_elastic)
    try:
        inside.send(packet(ACK))
        async with asyncio.timeout(150):
            await network._peers[3].news.wait()
        network.leave(3)
        for _ in range(resets):
            assert inside.recv(100)[12:20] == THERE + HERE
        with pytest.raises(BlockingIOError):
            inside.recv(100)
    finally:
        network.close()
        inside.close()


def test_torchrun_is_told_how_many_are_enough() -> None:
    env = gang_env(2, Gang(size=4, min_size=3), JobId("job_1"))
    assert (env["PET_NNODES"], env["PET_RDZV_ENDPOINT"], env["PET_RDZV_ID"]) == ("3:4", "10.88.0.1:29500", "job_1")
    assert "is_host=0" in env["PET_RDZV_CONF"]
    assert "is_host=1" in gang_env(0, Gang(size=4, min_size=3), JobId("job_1"))["PET_RDZV_CONF"]
    whole = gang_env(2, Gang(size=4), JobId("job_1"))
    assert (whole["PET_NNODES"], whole["PET_NODE_RANK"], whole.get("PET_RDZV_BACKEND")) == ("4", "2", None)
