"""Which format a document has, told by its content; and its translation. A format's module loads when one of its files is read."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torg.importers.kubernetes_objects import Other, workloads_in
from torg.importers.network import network_of
from torg.importers.root import root_of
from torg.importers.surroundings import Surroundings
from torg.importers.translation import Translation

KNOWN = "Nosana job definitions, docker-compose files, Kubernetes Jobs, Pods and Deployments, Akash SDL, dstack tasks"
_DSTACK_TYPES = {"task", "service", "dev-environment", "fleet", "volume", "gateway"}


def format_of(raw: dict[str, Any]) -> str | None:
    """The name of the foreign format's module; None: it is one of ours, or of nothing that is known."""
    keys = raw.keys()
    if isinstance(raw.get("ops"), list) and (raw.get("type") == "container" or any(map(_is_operation, raw["ops"]))):
        return "nosana"
    if "apiVersion" in keys:
        return "kubernetes"
    if {"services", "profiles", "deployment"} <= keys:
        return "akash"
    if isinstance(raw.get("services"), dict):
        return "compose"
    if str(raw.get("type")) in _DSTACK_TYPES and "version" not in keys:
        return "dstack"
    return None


def _with_texts_for_keys(value: Any) -> Any:
    """YAML's keys may be numbers, yes or nothing; those of these formats are texts."""
    if isinstance(value, dict):
        return {str(key): _with_texts_for_keys(inner) for key, inner in value.items()}
    return [_with_texts_for_keys(inner) for inner in value] if isinstance(value, list) else value


def _is_operation(op: object) -> bool:
    return isinstance(op, dict) and str(op.get("type", "")).startswith("container/")


def jobs_among(raws: Sequence[dict[str, Any]]) -> list[int]:
    """Of the documents of one file those that are jobs. Only Kubernetes puts what belongs to a job into documents beside it."""
    if all(format_of(raw) == "kubernetes" for raw in raws):
        return workloads_in(raws)
    return list(range(len(raws)))


def translation_of(
    raw: dict[str, Any], surroundings: Surroundings | None = None, others: Sequence[Other] = ()
) -> Translation | None:
    """None for a job file of our own. `surroundings`: what a compose file may name; `others`: what stands beside it in a Kubernetes file. Raises
    Invalid (code "spec_invalid") with all problems of a foreign file."""
    name = format_of(raw)
    if name is None:
        return None
    raw = _with_texts_for_keys(raw)
    module = importlib.import_module(f"torg.importers.{name}")
    around = {"compose": surroundings, "kubernetes": others}
    translation: Translation = module.translate(raw, around[name]) if name in around else module.translate(raw)
    network, remark = network_of(translation.spec)
    is_root, about_root = root_of(translation.spec)
    spec = {**translation.spec, **({"network": network} if network else {}), **({"root": True} if is_root else {})}
    remarks = (about_root, remark) if about_root is not None else (remark,)
    return replace(translation, spec=spec, dropped=(*translation.dropped, *remarks))
