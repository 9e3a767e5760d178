"""The network of a gang: each member's container has one interface, `torg0`, with an address by its rank, and reaches the others' on all
ports, by packets that the agents carry over SSH connections from node to node through the gateway.

Each pair of members has one connection. The higher rank dials, the lower one answers; both know each other by the keys in the grant, which
the marketplace has signed. A member that has left for good is answered for (gang_resets). Over it go IP packets, each with its length before it. What cannot be sent is dropped, as networks do: TCP
sends it again. A packet is taken only from the member whose address it bears, for this member's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from dataclasses import dataclass, field

import asyncssh

from torg_host.overlay import MTU_BYTES
from torg_node.gang_addresses import address_of
from torg_node.gang_resets import Connections, reset_for, segment_of

log = logging.getLogger(__name__)
CHANNEL = "gang"  # the name under which a member asks another one for the line of packets
_MOST_WAITING_BYTES = 16 << 20  # for one peer
_READ_AT_ONCE = 64
_HEADER_BYTES = 20  # of IPv4 at least


@dataclass
class _Peer:
    """Packets for one other member, while there is a line to it or not yet."""

    address: bytes
    waiting: deque[bytes] = field(default_factory=deque)
    waiting_bytes: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    connections: Connections = field(default_factory=Connections)
    has_left: bool = False

    def put(self, packet: bytes) -> None:
        if self.waiting_bytes + len(packet) <= _MOST_WAITING_BYTES:
            self.waiting.append(packet)
            self.waiting_bytes += len(packet)
            self.news.set()

    def take_all(self) -> bytes:
        framed = b"".join(len(packet).to_bytes(4) + packet for packet in self.waiting)
        self.waiting.clear()
        self.waiting_bytes = 0
        self.news.clear()
        return framed


class GangNetwork:
    """Of one member. `descriptor`: of its interface (torg_host.overlay), which is closed with this. `is_elastic`: the gang goes on without
    members that leave, so connections are remembered; others end as a whole."""

    def __init__(self, descriptor: int, rank: int, size: int, *, is_elastic: bool) -> None:
        self.rank = rank
        self._is_elastic = is_elastic
        self._descriptor = descriptor
        self._own = address_of(rank).ip.packed
        self._peers = {other: _Peer(address_of(other).ip.packed) for other in range(size) if other != rank}
        self._by_address = {peer.address: peer for peer in self._peers.values()}
        self._closed = False
        asyncio.get_running_loop().add_reader(descriptor, self._read)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)

    def leave(self, rank: int) -> None:
        """That member is gone for good. Safe to repeat."""
        peer = self._peers.get(rank)
        if peer is None or peer.has_left:
            return
        log.info("rank %s goes on without rank %s", self.rank, rank)
        peer.has_left = True
        peer.take_all()
        for packet in peer.connections.resets():
            self._give(packet)

    def has_left(self, rank: int) -> bool:
        return self._peers[rank].has_left

    async def carry(self, other: int, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        """Packets from and to one member, until the line breaks."""
        peer = self._peers[other]
        log.info("rank %s is connected to rank %s", self.rank, other)
        sending = asyncio.create_task(self._send(peer, writer))
        try:
            with contextlib.suppress(asyncssh.Error, OSError, asyncio.IncompleteReadError):
                while True:
                    size = int.from_bytes(await reader.readexactly(4))
                    if not _HEADER_BYTES <= size <= MTU_BYTES:
                        log.warning("rank %s sent a packet of %s bytes: the line is closed", other, size)
                        return
                    self._write(peer, await reader.readexactly(size))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.close()

    async def _send(self, peer: _Peer, writer: asyncssh.SSHWriter[bytes]) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            while True:
                await peer.news.wait()
                writer.write(peer.take_all())
                await writer.drain()

    def _read(self) -> None:
        """From the container."""
        for _ in range(_READ_AT_ONCE):
            try:
                packet = os.read(self._descriptor, MTU_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("rank %s: its interface is gone: %s", self.rank, error)
                self.close()
                return
            if _source_of(packet) == self._own and (peer := self._by_address.get(packet[16:20])) is not None:
                self._send_to(peer, packet)

    def _send_to(self, peer: _Peer, packet: bytes) -> None:
        if not peer.has_left:
            if self._is_elastic:
                peer.connections.note(packet)
            peer.put(packet)
        elif (segment := segment_of(packet)) is not None and (reset := reset_for(segment)) is not None:
            self._give(reset)

    def _write(self, peer: _Peer, packet: bytes) -> None:
        """What a member sent."""
        if _source_of(packet) == peer.address and packet[16:20] == self._own and not peer.has_left:
            self._give(packet)

    def _give(self, packet: bytes) -> None:
        """To the container."""
        if not self._closed:
            with contextlib.suppress(OSError):  # full, or going down: dropped
                os.write(self._descriptor, packet)


def _source_of(packet: bytes) -> bytes | None:
    """None: not IPv4."""
    return packet[12:16] if len(packet) >= _HEADER_BYTES and packet[0] >> 4 == 4 else None
