"""Registries' credentials in foreign files. There they stand in plain text, or name a place of that platform; a job file of ours says where they are
on this computer: in variables, which the remark names. What the file itself holds of them is not taken over, and shown to nobody."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from torg.importers.reading import Part
from torg_protocol.registries import HUB, ImageName

_OF_ENVIRONMENT = re.compile(r"\$\{\{\s*(?:env|secrets)\.([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_HUBS = {"index.docker.io", "registry-1.docker.io", "hub.docker.com"}


def take_login(part: Part, image: str, around: dict[str, Any]) -> None:
    """`part`: a mapping with username and password, perhaps a host, for the registry of `image`. Fills `registries` and `secrets` of `around`."""
    registry = ImageName.parse(image).registry
    host = _host(part.text("host") or registry)
    username, password = part.text("username", needed=True), part.text("password", needed=True)
    part.remark("registries ask for no address", "email")
    part.finish()
    if host != registry:
        part.reading.drops.lose(part.path, "...", f"the image comes from {registry}, not from {host}")
        return
    stem = "REGISTRY_" + re.sub(r"[^A-Z0-9]+", "_", registry.upper()).strip("_")
    names = {"username": f"{stem}_USERNAME", "password": f"{stem}_PASSWORD"}
    variables = {
        field: _variable(text, names[field]) for field, text in (("username", username), ("password", password))
    }
    around.setdefault("registries", {})[registry] = names
    around.setdefault("secrets", {}).update({names[field]: {"env": variable} for field, variable in variables.items()})
    why = f"read from the variables {variables['username']} and {variables['password']} of this computer, and sealed; what the file says of them is not taken"
    part.reading.drops.remark(part.path, "...", why)


def _variable(text: str | None, default: str) -> str:
    named = _OF_ENVIRONMENT.fullmatch((text or "").strip())
    return named.group(1) if named else default


def _host(text: str) -> str:
    host = (urlsplit(text).netloc if "://" in text else text.partition("/")[0]).lower()
    return HUB if host in _HUBS else host
