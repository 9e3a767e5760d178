"""What a job may reach: nothing (the default), a list of destinations, or the public internet. Never a private network.

One canonical form each: "none", "open", or a sorted list of `name:port` in lower case. Names are compared by the proxy of the node
before they are resolved; what they resolve to must be public besides.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

EgressKind = Literal["none", "allow", "open"]
EGRESS_KINDS: tuple[Literal["allow", "open"], ...] = ("allow", "open")  # what an offer may allow; "none" always is
HTTPS_PORT = 443
SMTP_PORT = 25  # never: mail from an owner's address would put it on every list of spammers
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})+")
_MAX_NAME = 253


class EgressList(BaseModel):
    """`allow`: "pypi.org:443", "*.example.org:443" (every name below, not the name itself), "203.0.113.7:22". Port 443 may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    egress: Literal["allow"] = "allow"
    allow: tuple[str, ...] = Field(min_length=1, max_length=64)

    @field_validator("allow")
    @classmethod
    def _canonical(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({_destination(item) for item in allow}))


def _kind_of_form(value: Any) -> str:
    return "word" if isinstance(value, str) else "list"


Network = Annotated[
    Annotated[Literal["none", "open"], Tag("word")] | Annotated[EgressList, Tag("list")], Discriminator(_kind_of_form)
]


def egress_kind(network: str | EgressList) -> EgressKind:
    """What an offer must allow for this."""
    if isinstance(network, EgressList):
        return "allow"
    return "open" if network == "open" else "none"


def _destination(text: str) -> str:
    name, separator, port = text.strip().lower().removesuffix(".").rpartition(":")
    if not separator:
        name, port = port, str(HTTPS_PORT)
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f'"{text}": a destination is written name:port, for example pypi.org:443')
    if int(port) == SMTP_PORT:
        raise ValueError(f'"{text}": port 25 (mail) is never open')
    return f"{_name(name.removesuffix('.'), text)}:{int(port)}"


def _name(name: str, text: str) -> str:
    if (address := _ipv4(name)) is not None:
        if not address.is_global or address.is_multicast:
            raise ValueError(f'"{text}": not an address on the public internet')
        return str(address)
    if len(name) > _MAX_NAME or _NAME.fullmatch(name) is None or name.rpartition(".")[2].isdigit():
        raise ValueError(
            f'"{text}": not a name such as pypi.org, *.example.org or an IPv4 address '
            "(names in other scripts: their xn-- form)"
        )
    if name.startswith("*.") and name.count(".") < 2:
        raise ValueError(f'"{text}": a wildcard needs two labels after the star, such as *.example.org')
    return name


def _ipv4(name: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(name)
    except ValueError:
        return None
