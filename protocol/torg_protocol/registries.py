"""Registries that give an image to those alone who show who they are.

Credentials are never written here: `registries` names secrets of the job (torg_protocol.secrets). The node shows them to that registry, itself
and through its container engine, and to nobody else; they are none of the files that the job sees.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from torg_protocol.secrets import SecretName
from torg_protocol.strict import Strict
from torg_protocol.tasks import is_pulled

HUB = "docker.io"
MAX_REGISTRIES = 16
_HUB_HOST = "registry-1.docker.io"
_HUB_TOO = frozenset({"index.docker.io", _HUB_HOST, "hub.docker.com"})
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:]{2,45}\])(?::[0-9]{1,5})?")


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
        registry, path = (first, rest) if has_host else (HUB, name)
        registry = HUB if registry == "index.docker.io" else registry
        repository, _, tag = path.partition(":")
        if registry == HUB and "/" not in repository:
            repository = f"library/{repository}"
        return cls(registry, repository, digest or tag or "latest")

    @property
    def base_url(self) -> str:
        host = _HUB_HOST if self.registry == HUB else self.registry
        return f"{'http' if self.is_on_loopback else 'https'}://{host}/v2/{self.repository}"

    @property
    def is_on_loopback(self) -> bool:
        """Where engines speak plain HTTP unasked."""
        name = self.registry.rpartition(":")[0] or self.registry
        try:
            return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False


class RegistryLogin(Strict):
    """Names of the job's secrets: those that hold a user's name and password (most registries' tokens are passwords, of any or of a
    certain name), or the one that holds a bearer token which the registry itself takes."""

    username: SecretName | None = Field(default=None, exclude_if=lambda value: value is None)
    password: SecretName | None = Field(default=None, exclude_if=lambda value: value is None)
    token: SecretName | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _one_way(self) -> RegistryLogin:
        given = (self.username is not None, self.password is not None, self.token is not None)
        if given not in {(True, True, False), (False, False, True)}:
            raise ValueError("write username and password, or token alone: each the name of a secret")
        return self

    @property
    def secret_fields(self) -> tuple[tuple[str, str], ...]:
        parts = {"username": self.username, "password": self.password, "token": self.token}
        return tuple((part, secret) for part, secret in parts.items() if secret is not None)


def _checked_host(host: str) -> str:
    if host in _HUB_TOO:
        raise ValueError(f'write "{HUB}": this is how images of it are named')
    if _HOST.fullmatch(host) is None or not (any(mark in host for mark in ".:") or host == "localhost"):
        raise ValueError(f'"{host}" is not a registry as images name it: ghcr.io, registry.example:5000')
    return host


RegistryHost = Annotated[str, AfterValidator(_checked_host)]


def registry_problems(registries: Mapping[str, RegistryLogin], images: Sequence[str]) -> list[tuple[str, str]]:
    """Credentials that would be of no use: fields and sentences."""
    asked = {ImageName.parse(image).registry for image in images if is_pulled(image)}
    others = f"; they come from {', '.join(sorted(asked))}" if asked else ""
    return [
        (f"registries.{host}", f"no image of this job comes from there{others}")
        for host in registries
        if host not in asked
    ]
