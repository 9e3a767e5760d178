"""Where a webhook may go: what its URL says by itself, and what its name turns out to be.

A URL is somebody else's choice, and the process that sends may reach what its author may not. `target_of` reads a URL, `check_target` refuses what
can be refused without asking a name server, `check_addresses` what a name stands for. The operator may open networks, also for plain http.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from torg_host.addresses import Address, is_public, literal_address
from torg_protocol.errors import Forbidden, Invalid

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """`authority`: host and port as the URL has them, for the Host header."""

    host: str
    port: int
    authority: str
    plain: bool


def target_of(url: str) -> Target:
    """Raises Invalid `webhook_url_invalid` for what no connection can be made to."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = _PORTS[parts.scheme] if parts.port is None else parts.port
        if literal_address(host) is None:
            host.encode("idna")  # labels of 1 to 63 characters, as the name server will be asked
    except (KeyError, ValueError) as error:  # UnicodeError is one
        raise _no_target(url, str(error)) from error
    if not host or port == 0:
        raise _no_target(url, "no host" if not host else "port 0")
    return Target(host, port, parts.netloc, plain=parts.scheme == "http")


def check_target(target: Target, networks: Sequence[str]) -> None:
    """Before any name is looked up. Raises Forbidden `webhook_not_https`, `webhook_address_private`."""
    if target.plain and not networks:
        raise _not_https(target)
    if (address := literal_address(target.host)) is not None:
        check_addresses(target, (address,), networks)


def check_addresses(target: Target, addresses: Sequence[Address], networks: Sequence[str]) -> None:
    """Of all addresses that the host's name has: one that is not public is enough. Raises Forbidden `webhook_address_private`, `webhook_not_https`."""
    opened = [ipaddress.ip_network(name) for name in networks]
    for address in addresses:
        is_opened = any(address in network for network in opened)
        if not (is_opened or is_public(address)):
            raise Forbidden(
                "not an address on the public internet",
                code="webhook_address_private",
                field="url",
                value=target.host,
                hint="give a public address; the operator may open networks: TORG_MARKETPLACE_WEBHOOK_NETWORKS",
            )
        if target.plain and not is_opened:
            raise _not_https(target)


def _not_https(target: Target) -> Forbidden:
    return Forbidden(
        "webhooks are sent by https",
        code="webhook_not_https",
        field="url",
        value=target.host,
        hint="begin the URL with https://; plain http goes to networks only that the operator has opened",
    )


def _no_target(url: str, why: str) -> Invalid:
    return Invalid(
        f"nothing can be sent to this URL: {why}",
        code="webhook_url_invalid",
        field="url",
        value=url,
        hint="write it like https://ci.example/torg, with a port of 1 to 65535 if it needs one",
    )
