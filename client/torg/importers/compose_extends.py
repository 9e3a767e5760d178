"""`extends` of docker-compose: a service that takes over what another one of the same file says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_TAKEN_OVER = {"depends_on", "links", "volumes_from", "extends"}
_REPLACED = {"command", "entrypoint"}  # lists that do not grow


def extended(services: Mapping[str, Any]) -> dict[str, Any]:
    """With each `extends` within the file followed; one that leads elsewhere, or round in a circle, stays where it is."""
    return {name: _whole(str(name), services, ()) for name in services}


def _whole(name: str, services: Mapping[str, Any], seen: tuple[str, ...]) -> Any:
    service = services[name]
    base = _base_of(service)
    if base is None or base not in services or base in (*seen, name) or not isinstance(services[base], Mapping):
        return service
    inherited = _whole(base, services, (*seen, name))
    kept = {key: value for key, value in inherited.items() if key not in _NOT_TAKEN_OVER}
    own = {key: value for key, value in service.items() if key != "extends"}
    return {**kept, **{key: _merged(key, kept[key], value) if key in kept else value for key, value in own.items()}}


def _base_of(service: Any) -> str | None:
    said = service.get("extends") if isinstance(service, Mapping) else None
    if isinstance(said, Mapping) and said.keys() == {"service"}:
        said = said["service"]
    return said if isinstance(said, str) else None


def _merged(key: str, inherited: Any, own: Any) -> Any:
    if key == "environment":
        return {**_by_name(inherited), **_by_name(own)}
    if isinstance(inherited, Mapping) and isinstance(own, Mapping):
        return {
            **inherited,
            **{name: _merged(name, inherited[name], one) if name in inherited else one for name, one in own.items()},
        }
    if isinstance(inherited, list) and isinstance(own, list) and key not in _REPLACED:
        return [*inherited, *(item for item in own if item not in inherited)]
    return own


def _by_name(variables: Any) -> dict[str, Any]:
    if isinstance(variables, Mapping):
        return dict(variables)
    pairs = (str(item).partition("=") for item in variables if item is not None) if isinstance(variables, list) else ()
    return {name: value if equals else None for name, equals, value in pairs}
