"""The part of SOCKS 5 (RFC 1928) that a client needs to be connected: no authentication, CONNECT only."""

from __future__ import annotations

import asyncio
import ipaddress

from torg_node.egress.rules import Destination, Refused, named

VERSION = b"\x05"
GRANTED = b"\x05\x00\x00\x01" + bytes(6)
_NO_AUTHENTICATION, _NO_METHOD, _CONNECT = 0, 0xFF, 1


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Destination:
    """The destination; the version's byte of the greeting has been read. Raises Refused."""
    methods = await reader.readexactly((await reader.readexactly(1))[0])
    if _NO_AUTHENTICATION not in methods:
        writer.write(bytes([5, _NO_METHOD]))
        raise EOFError
    writer.write(bytes([5, _NO_AUTHENTICATION]))
    version, command, _, kind = await reader.readexactly(4)
    if version != VERSION[0] or command != _CONNECT:
        raise Refused("only CONNECT: no UDP, no listening", 400)
    match kind:
        case 1:
            name = str(ipaddress.IPv4Address(await reader.readexactly(4)))
        case 4:
            name = str(ipaddress.IPv6Address(await reader.readexactly(16)))
        case 3:
            length = (await reader.readexactly(1))[0]
            name = (await reader.readexactly(length)).decode("ascii", "replace")
        case _:
            raise Refused("no such kind of address", 400)
    return named(name, int.from_bytes(await reader.readexactly(2)))


def refusal(refused: Refused) -> bytes:
    code = {400: 7, 403: 2, 502: 4}[refused.status]  # not supported; not allowed; host unreachable
    return bytes([5, code, 0, 1]) + bytes(6)
