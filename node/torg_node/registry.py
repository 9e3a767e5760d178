"""What a registry says about an image before anything of it is fetched: how much will come.

Asked with the node's strict client, so an image's name leads this host to no private address; registries that the owner names are asked
wherever they are. Without credentials: what a registry does not tell everybody is unknown here (None), and the engine, which may know more, is
left to try. Protocol: OCI distribution 1.1 and its Docker forerunner.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx

from torg_host.addresses import AddressRange
from torg_node.executors.errors import ImageForbidden
from torg_node.input_client import Allowance, InputClient, InputInvalid, NotPublic

_ANSWERS_WITHIN_S = 20.0
_HUB, _HUB_HOST = "docker.io", "registry-1.docker.io"
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_ANYWHERE: tuple[AddressRange, ...] = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class ImageName:
    """`registry` as it is written ("docker.io" when it is not); `reference`: a tag, or a digest."""

    registry: str
    repository: str
    reference: str

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Of what an engine takes for an image's name."""
        name, _, digest = text.partition("@")
        first, slash, rest = name.partition("/")
        has_host = bool(slash) and (any(mark in first for mark in ".:") or first == "localhost")
        registry, path = (first, rest) if has_host else (_HUB, name)
        repository, _, tag = path.partition(":")
        if registry == _HUB and "/" not in repository:
            repository = f"library/{repository}"
        return cls(registry, repository, digest or tag or "latest")

    @property
    def base_url(self) -> str:
        host = _HUB_HOST if self.registry == _HUB else self.registry
        return f"{'http' if _is_loopback(host) else 'https'}://{host}/v2/{self.repository}"


async def packed_bytes(image: str, architecture: str, private_registries: Sequence[str] = ()) -> int | None:
    """The bytes that a pull of `image` for linux on `architecture` ("amd64") fetches; None where that cannot be told.

    Raises ImageForbidden `registry_private` when the name leads to a registry that is neither public nor one of `private_registries`.
    """
    name = ImageName.parse(image)
    opened = _ANYWHERE if name.registry in private_registries else ()
    async with InputClient(None, Allowance(0), opened) as client:
        try:
            async with asyncio.timeout(_ANSWERS_WITHIN_S):
                return await _packed_bytes(client, name, architecture)
        except NotPublic as error:
            raise ImageForbidden(
                f"{name.registry} is not on the public internet, and this node's owner has not opened it to jobs",
                code="registry_private",
                field="image",
                value=image,
                hint="name an image of a public registry; the owner may list it under private_registries",
            ) from error
        except (InputInvalid, httpx.HTTPError, KeyError, TypeError, ValueError, TimeoutError):
            return None


async def _packed_bytes(client: InputClient, name: ImageName, architecture: str) -> int | None:
    asking = _Asking(client, name)
    document = await asking.manifest(name.reference)
    if document is not None and "manifests" in document:
        fitting = [
            item["digest"]
            for item in document["manifests"]
            if (item.get("platform") or {}).get("os") == "linux"
            and item["platform"].get("architecture") == architecture
        ]
        document = await asking.manifest(fitting[0]) if fitting else None
    if document is None:
        return None
    return sum(int(item["size"]) for item in [document["config"], *document["layers"]])


class _Asking:
    """The requests for one image; remembers the token that a registry wants to see from everybody."""

    def __init__(self, client: InputClient, name: ImageName) -> None:
        self._client, self._name = client, name
        self._headers = {"accept": ", ".join((*_MANIFESTS, *_INDEXES))}

    async def manifest(self, reference: str) -> dict[str, Any] | None:
        url = f"{self._name.base_url}/manifests/{reference}"
        answer = await self._client.ask(url, self._headers)
        if answer.status == httpx.codes.UNAUTHORIZED and (token := await self._token(answer.headers)) is not None:
            self._headers["authorization"] = f"Bearer {token}"
            answer = await self._client.ask(url, self._headers)
        if answer.status != httpx.codes.OK:
            return None
        document: dict[str, Any] = json.loads(answer.body)
        return document

    async def _token(self, headers: Mapping[str, str]) -> str | None:
        """What anybody gets at the place that the registry names."""
        scheme, _, rest = headers.get("www-authenticate", "").partition(" ")
        challenge = dict(_CHALLENGE.findall(rest))
        if scheme.lower() != "bearer" or not challenge.get("realm", "").startswith(("https://", "http://")):
            return None
        asked = {"service": challenge.get("service", ""), "scope": f"repository:{self._name.repository}:pull"}
        answer = await self._client.ask(f"{challenge['realm']}?{urlencode(asked)}", {})
        if answer.status != httpx.codes.OK:
            return None
        found: dict[str, str] = json.loads(answer.body)
        return found.get("token") or found.get("access_token")


def _is_loopback(host: str) -> bool:
    """Where engines speak plain HTTP unasked."""
    name = host.rpartition(":")[0] or host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
