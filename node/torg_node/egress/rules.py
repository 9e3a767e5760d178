"""What a job's proxy lets through. Pure; standard library only, since the proxy's process loads little."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from torg_host.addresses import Address, AddressRange, is_neighbour, is_public

SMTP_PORT = 25
MAX_NAME = 253
_PORTS = {"http": 80, "https": 443}


class Refused(Exception):
    """The proxy's answer to the job: `status` of HTTP, and why in one line."""

    def __init__(self, why: str, status: int = 403) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Destination:
    name: str  # lower case, without a trailing dot; or an address
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class EgressRules:
    """`allow`: `name:port` as in the job's spec; None: every name. `opened`: networks that the node's owner lends besides the
    public internet."""

    allow: tuple[str, ...] | None
    opened: tuple[AddressRange, ...] = ()

    def check_name(self, to: Destination) -> None:
        """Before anything is resolved: a name that is not on the list is not even asked for, as a query is a message too."""
        if to.port == SMTP_PORT:
            raise Refused("port 25 (mail) is never open")
        if self.allow is not None and not any(_fits(item, to) for item in self.allow):
            raise Refused(f"{to} is not on the job's list (network.allow)")

    def usable(
        self, to: Destination, found: Sequence[Address], *, own: Sequence[Address], near: Sequence[AddressRange]
    ) -> list[Address]:
        """Of what a name resolved to, what may be connected to. `own`: those of `found` where this host answers itself."""
        fine = [
            address
            for address in found
            if any(address.version == opened.version and address in opened for opened in self.opened)
            or (is_public(address) and address not in own and not is_neighbour(address, near))
        ]
        if not fine:
            raise Refused(f"{to} is not on the public internet")
        return fine


def destination(authority: str, default_port: int | None = None) -> Destination:
    """Of CONNECT's `name:port` or a URL's authority. Raises Refused (400) for anything odd."""
    try:
        parts = urlsplit(f"//{authority}")
        name, port = parts.hostname, parts.port or default_port
    except ValueError:
        name, port = None, None
    if not name or port is None or "@" in authority or parts.path or parts.query or parts.fragment:
        raise Refused("not a destination: name:port", 400)
    return named(name, port)


def named(name: str, port: int) -> Destination:
    name = name.lower().removesuffix(".")
    odd = not name.isascii() or any(letter.isspace() or not letter.isprintable() for letter in name) or "%" in name
    if not 0 < len(name) <= MAX_NAME or odd or not 0 < port <= 65535:
        raise Refused("not a destination: name:port", 400)
    return Destination(name, port)


def destination_of_url(url: str) -> tuple[Destination, str]:
    """Of a plain request's absolute URL, and what the origin is asked for."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Refused("not a URL", 400) from None
    if parts.scheme != "http":
        raise Refused("this is a proxy: absolute http:// URLs, or CONNECT", 400)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return destination(parts.netloc, _PORTS[parts.scheme]), path


def literal(name: str) -> Address | None:
    """An address that was written instead of a name. Only the canonical spelling: 0x7f.1 and 017700000001 are names to us."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _fits(item: str, to: Destination) -> bool:
    name, _, port = item.rpartition(":")
    if int(port) != to.port:
        return False
    return to.name.endswith(name[1:]) if name.startswith("*.") else to.name == name
