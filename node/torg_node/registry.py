"""What a registry says about an image before anything of it is fetched: how much will come, and whether this job may have it.

Asked with the node's strict client, so an image's name leads this host to no private address; registries that the owner names are asked
wherever they are. What a registry does not tell everybody it is asked again with the job's own credentials, if the job has some, and only over
TLS or on this host's loopback. What it then does not tell is unknown here, and the engine, which may know more, is left to try. Protocol: OCI
distribution 1.1 and its Docker forerunner, with its token authentication.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import re
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx

from torg_host.addresses import AddressRange
from torg_node.executors.errors import ExecutorUnavailable, ImageForbidden, refused
from torg_node.executors.port import RegistryAuth
from torg_node.input_client import Allowance, Answer, InputClient, InputInvalid, NotPublic
from torg_protocol.registries import ImageName

_ANSWERS_WITHIN_S = 20.0
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
T = TypeVar("T")
_NOT_YOURS = frozenset({httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN})


async def packed_bytes(
    image: str, architecture: str, private_registries: Sequence[str] = (), auth: RegistryAuth | None = None
) -> int | None:
    """The bytes that a pull of `image` for linux on `architecture` ("amd64") fetches; None where that cannot be told.

    Raises ImageForbidden `registry_private` when the name leads to a registry that is neither public nor one of `private_registries`;
    RegistryRefused `registry_login_refused` when it does not take `auth`.
    """
    async with _asking(image, private_registries, auth) as asking:
        return await _unless_silent(_packed_bytes(asking, architecture))


async def may_have(image: str, digest: str, private_registries: Sequence[str], auth: RegistryAuth | None) -> bool:
    """Whether the registry of `image` gives out its manifest `digest` to who shows `auth`; False: there is no such manifest (any more).

    Raises RegistryRefused when it does not, ImageForbidden as `packed_bytes`, ExecutorUnavailable `registry_unavailable` when it says neither.
    """
    async with _asking(image, private_registries, auth) as asking:
        answer = await _unless_silent(asking.answer(digest))
    if answer is not None and answer.status in _NOT_YOURS:
        raise refused(image, f"HTTP status {answer.status}", shown=auth is not None)
    if answer is None or answer.status not in {httpx.codes.OK, httpx.codes.NOT_FOUND}:
        raise ExecutorUnavailable(
            f"{asking.name.registry} does not say whether this job may have {image}, which was pulled with somebody's credentials",
            code="registry_unavailable",
            field="image",
            value=image,
        )
    return answer.status == httpx.codes.OK


@asynccontextmanager
async def _asking(image: str, private_registries: Sequence[str], auth: RegistryAuth | None) -> AsyncIterator[_Asking]:
    name = ImageName.parse(image)
    opened = _ANYWHERE if name.registry in private_registries else ()
    async with InputClient(None, Allowance(0), opened) as client:
        try:
            yield _Asking(client, name, image, auth)
        except NotPublic as error:
            raise ImageForbidden(
                f"{name.registry} is not on the public internet, and this node's owner has not opened it to jobs",
                code="registry_private",
                field="image",
                value=image,
                hint="name an image of a public registry; the owner may list it under private_registries",
            ) from error


async def _unless_silent(asking: Awaitable[T]) -> T | None:
    """None where there is no answer, or none that follows the protocol."""
    try:
        async with asyncio.timeout(_ANSWERS_WITHIN_S):
            return await asking
    except NotPublic:
        raise
    except (InputInvalid, httpx.HTTPError, KeyError, TypeError, ValueError, TimeoutError):
        return None


async def _packed_bytes(asking: _Asking, architecture: str) -> int | None:
    document = await asking.manifest(asking.name.reference)
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
    """The requests for one image; remembers with what words the registry was content."""

    def __init__(self, client: InputClient, name: ImageName, image: str, auth: RegistryAuth | None) -> None:
        self.name = name
        self._client, self._image, self._auth = client, image, auth
        self._headers = {"accept": ", ".join((*_MANIFESTS, *_INDEXES))}

    async def manifest(self, reference: str) -> dict[str, Any] | None:
        """Raises RegistryRefused when credentials were shown in vain."""
        answer = await self.answer(reference)
        if answer.status in _NOT_YOURS and self._auth is not None:
            raise refused(self._image, f"HTTP status {answer.status}", shown=True)
        if answer.status != httpx.codes.OK:
            return None
        document: dict[str, Any] = json.loads(answer.body)
        return document

    async def answer(self, reference: str) -> Answer:
        url = f"{self.name.base_url}/manifests/{reference}"
        answer = await self._client.ask(url, self._headers)
        if answer.status == httpx.codes.UNAUTHORIZED and (words := await self._words(answer.headers)) is not None:
            self._headers["authorization"] = words
            answer = await self._client.ask(url, self._headers)
        return answer

    async def _words(self, headers: Mapping[str, str]) -> str | None:
        """What answers the registry's challenge; None when there is nothing to say."""
        scheme, _, rest = headers.get("www-authenticate", "").partition(" ")
        if self._auth is not None and self._auth.token:
            return f"Bearer {self._auth.token}"
        if scheme.lower() == "bearer":
            return await self._of_token_server(dict(_CHALLENGE.findall(rest)))
        return _basic(self._auth) if scheme.lower() == "basic" and self._auth is not None else None

    async def _of_token_server(self, challenge: Mapping[str, str]) -> str | None:
        """The token that is to be had at the place which the registry names: as this user, or as anybody. The password goes nowhere in clear."""
        realm = challenge.get("realm", "")
        if not realm.startswith(("https://", "http://")):
            return None
        is_safe = urlsplit(realm).scheme == "https" or self.name.is_on_loopback
        shown = {"authorization": _basic(self._auth)} if self._auth is not None and is_safe else {}
        asked = {"service": challenge.get("service", ""), "scope": f"repository:{self.name.repository}:pull"}
        answer = await self._client.ask(f"{realm}?{urlencode(asked)}", shown)
        if answer.status in _NOT_YOURS and shown:
            raise refused(self._image, f"its token server says HTTP status {answer.status}", shown=True)
        if answer.status != httpx.codes.OK:
            return None
        found: dict[str, str] = json.loads(answer.body)
        token = found.get("token") or found.get("access_token")
        return None if token is None else f"Bearer {token}"


def _basic(auth: RegistryAuth) -> str:
    return "Basic " + base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()
