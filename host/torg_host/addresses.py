"""Which addresses are the public internet, and which are this host or its neighbours. For whoever connects on a stranger's behalf."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
AddressRange = ipaddress.IPv4Network | ipaddress.IPv6Network
# Public by the registry, and yet ways into private IPv4 networks: NAT64, 6to4, Teredo.
_DETOURS = tuple(ipaddress.ip_network(name) for name in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
_ROUTE_UP = 1
# Wider routes without a router are a tunnel to everywhere (PPP, a VPN's 0.0.0.0/1), not a neighbourhood.
_WIDEST_LAN_V4, _WIDEST_LAN_V6 = 8, 32


def is_public(address: Address) -> bool:
    """Not private, loopback, link-local (cloud metadata), carrier NAT, multicast, reserved, nor a detour to one of them."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in detour for detour in _DETOURS):
            return False
    return address.is_global and not address.is_multicast


def literal_address(host: str) -> Address | None:
    """None for a name. Also the old ways to write IPv4 that resolvers still take: 2130706433, 0x7f.1, 127.1."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None


def is_own(address: Address) -> bool:
    """Whether the host itself answers there, whatever the address looks like. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False  # no way there at all
        return bool(ipaddress.ip_address(str(probe.getsockname()[0]).partition("%")[0]) == address)


def is_neighbour(address: Address, ranges: Sequence[AddressRange]) -> bool:
    return any(address.version == near.version and address in near for near in ranges)


def neighbour_ranges(proc: Path = Path("/proc/net")) -> tuple[AddressRange, ...]:
    """What this host reaches without a router: a LAN may well use public addresses. Read from the kernel's routes."""
    return (*_on_link_v4(proc / "route"), *_on_link_v6(proc / "ipv6_route"))


def _on_link_v4(table: Path) -> Iterator[AddressRange]:
    for line in _lines(table)[1:]:
        _name, destination, gateway, flags, _, _, _, mask, *_ = line.split()
        if int(flags, 16) & _ROUTE_UP and int(gateway, 16) == 0:
            network, netmask = (socket.inet_ntoa(struct.pack("=I", int(word, 16))) for word in (destination, mask))
            found = ipaddress.IPv4Network(f"{network}/{netmask}", strict=False)
            if found.prefixlen >= _WIDEST_LAN_V4:
                yield found


def _on_link_v6(table: Path) -> Iterator[AddressRange]:
    for line in _lines(table):
        destination, length, _, _, gateway, *_ = line.split()
        if int(gateway, 16) == 0 and int(length, 16) >= _WIDEST_LAN_V6:
            yield ipaddress.IPv6Network((int(destination, 16), int(length, 16)), strict=False)


def _lines(table: Path) -> list[str]:
    try:
        return table.read_text().splitlines()
    except OSError:
        return []  # a kernel without IPv6
