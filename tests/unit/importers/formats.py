"""What the tests of all formats ask: a translation that is a valid job, what it lost, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from torg.importers.registry import format_of, translation_of
from torg.importers.translation import Translation
from torg_protocol.errors import Invalid
from torg_protocol.jobspec import JobSpec, load_job_spec


def parsed(text: str | dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(text) if isinstance(text, str) else text
    return raw


def translated(text: str | dict[str, Any], name: str) -> Translation:
    raw = parsed(text)
    assert format_of(raw) == name
    translation = translation_of(raw)
    assert translation is not None
    assert translation.format == name
    return translation


def spec_of(text: str | dict[str, Any], name: str) -> JobSpec:
    spec = dict(translated(text, name).spec)
    spec.pop("workspace", None)  # a folder in a file, a blob on the wire
    spec.pop("secrets", None)  # where they are in a file, sealed on the wire
    return load_job_spec(spec)


def lost(text: str | dict[str, Any], name: str) -> list[str]:
    return [item.path for item in translated(text, name).lost]


def left_out(text: str | dict[str, Any], name: str) -> list[str]:
    """Remarks, but for the one about the network, which every translation has."""
    dropped = translated(text, name).dropped
    return [item.path for item in dropped if not item.changes_meaning and item.path != "network"]


def problems(text: str | dict[str, Any]) -> dict[str, str]:
    with pytest.raises(Invalid) as refused:
        translation_of(parsed(text))
    assert refused.value.code == "spec_invalid"
    return {item["field"]: item["message"] for item in refused.value.data["problems"]}
