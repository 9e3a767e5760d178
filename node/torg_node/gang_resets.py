"""What a host says that has none of the connections that it is asked about: for members of a gang that are gone, said in their place.

A member that is lost says nothing, and a program that waits for its next word would wait for half an hour. Resets (RFC 9293, section 3.5.2)
let it fail at once. Of each connection that the container has to another member the newest header is kept; when that member is gone, each
is reset with the number that the container expects next. What it sends afterwards is answered in the same way, so a reset that was not
taken (RFC 5961: the answer names the right number) is said again, rightly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

_TCP, _FIN, _SYN, _RST, _ACK = 6, 0x01, 0x02, 0x04, 0x10
_MOST_CONNECTIONS = 4_096  # to one member; beyond it the one that was silent for longest is forgotten
_IP_HEADER, _TCP_HEADER = 20, 20
_FLAGS_AT = 13  # in the TCP header
_HOPS = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """What the container has sent: IPv4 and TCP headers, as far as an answer needs them."""

    source: bytes
    destination: bytes
    ports: bytes  # source and destination, two bytes each
    sequence: int
    acknowledges: int
    flags: int
    length: int  # in sequence numbers: data, SYN and FIN


def _tcp_at(packet: bytes) -> int | None:
    """Where its TCP header begins. None for what is no TCP, or not the first fragment of it."""
    header = (packet[0] & 0x0F) * 4 if packet else 0
    if len(packet) < header + _TCP_HEADER or packet[9] != _TCP or int.from_bytes(packet[6:8]) & 0x1FFF:
        return None
    return header


def segment_of(packet: bytes) -> Segment | None:
    """None for what is no TCP, or not the first fragment of it. Both headers are enough of it."""
    header = _tcp_at(packet)
    if header is None:
        return None
    flags = packet[header + _FLAGS_AT]
    data = int.from_bytes(packet[2:4]) - header - (packet[header + 12] >> 4) * 4
    return Segment(
        source=packet[12:16],
        destination=packet[16:20],
        ports=packet[header : header + 4],
        sequence=int.from_bytes(packet[header + 4 : header + 8]),
        acknowledges=int.from_bytes(packet[header + 8 : header + 12]),
        flags=flags,
        length=max(0, data) + bool(flags & _SYN) + bool(flags & _FIN),
    )


def reset_for(segment: Segment) -> bytes | None:
    """The packet back to the container; None: a reset is not answered."""
    if segment.flags & _RST:
        return None
    if segment.flags & _ACK:
        sequence, acknowledges, flags = segment.acknowledges, 0, _RST
    else:
        sequence, flags = 0, _RST | _ACK
        acknowledges = (segment.sequence + segment.length) % 2**32
    tcp = segment.ports[2:4] + segment.ports[0:2] + sequence.to_bytes(4) + acknowledges.to_bytes(4)
    tcp += bytes([_TCP_HEADER // 4 << 4, flags]) + bytes(6)
    ends = segment.destination + segment.source
    pseudo = ends + bytes([0, _TCP]) + _TCP_HEADER.to_bytes(2)
    tcp = tcp[:16] + checksum(pseudo + tcp) + tcp[18:]
    ip = bytes([0x45, 0]) + (_IP_HEADER + _TCP_HEADER).to_bytes(2) + bytes(4) + bytes([_HOPS, _TCP, 0, 0]) + ends
    return ip[:10] + checksum(ip) + ip[12:] + tcp


def checksum(content: bytes) -> bytes:
    """RFC 1071; `content` is of even length."""
    total = sum(int.from_bytes(content[place : place + 2]) for place in range(0, len(content), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2)


class Connections:
    """Those of a container to one other member, each with the headers that the container sent last: they are read when it comes to that."""

    def __init__(self) -> None:
        self._newest: OrderedDict[bytes, bytes] = OrderedDict()  # by both ports

    def note(self, packet: bytes) -> None:
        """Of every packet, so it does little."""
        header = _tcp_at(packet)
        if header is None:
            return
        ports = packet[header : header + 4]
        if packet[header + _FLAGS_AT] & _RST:
            self._newest.pop(ports, None)
            return
        self._newest[ports] = packet[: header + _TCP_HEADER]
        self._newest.move_to_end(ports)
        if len(self._newest) > _MOST_CONNECTIONS:
            self._newest.popitem(last=False)

    def resets(self) -> Iterator[bytes]:
        """One for each, which are forgotten."""
        while self._newest:
            _, headers = self._newest.popitem()
            if (segment := segment_of(headers)) is not None and (packet := reset_for(segment)) is not None:
                yield packet
