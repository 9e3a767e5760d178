"""Secrets of a job file: where each comes from on this computer, and to whom they are sealed before anything leaves it.

In a file: `secrets: {HF_TOKEN: {env: HF_TOKEN}, id_ed25519: {file: ~/.ssh/deploy_key}}`. On the wire: `torg_protocol.secrets`.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torg_protocol.api import NodeView
from torg_protocol.errors import Infeasible, Invalid
from torg_protocol.features import features_asked, version_needed
from torg_protocol.ids import AccountId
from torg_protocol.jobspec import WHOLE_GPU_MILLI, JobSpec
from torg_protocol.sealing import JOB_KEY
from torg_protocol.secrets import MAX_RECIPIENTS, MAX_SECRET_BYTES, MAX_SECRETS, SealedSecrets, content_of
from torg_protocol.states import NodeState

SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_ISOLATION = ("sandbox", "container", "gvisor")


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Exactly one of `env` (a variable of this process) and `file`."""

    name: str
    env: str | None = None
    file: Path | None = None

    def read(self) -> bytes:
        """Raises Invalid `secret_missing`, which never holds the value."""
        if self.env is not None:
            value = os.environb.get(os.fsencode(self.env))
            if value is None:
                raise _missing(self.name, f"the variable {self.env} is not set here")
            return value
        path = self.file or Path()
        try:
            with path.open("rb") as file:
                return file.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise _missing(self.name, f"{path}: {error.strerror}") from None


def sources_of(written: object, base: Path) -> tuple[SecretSource, ...]:
    """Of the `secrets` of a job file. Raises Invalid `spec_invalid` naming the field; `base`: what relative files are relative to."""
    if not isinstance(written, Mapping):
        raise _wrong("secrets", "a mapping is expected", "write it like secrets: {TOKEN: {env: TOKEN}}")
    if len(written) > MAX_SECRETS:
        raise _wrong("secrets", f"at most {MAX_SECRETS}", None)
    return tuple(
        _source(str(name), source, base) for name, source in sorted(written.items(), key=lambda item: str(item[0]))
    )


def _source(name: str, source: object, base: Path) -> SecretSource:
    field = f"secrets.{name}"
    if SECRET_NAME.fullmatch(name) is None:
        raise _wrong(field, "not a name for a file: letters, digits, _ . -", None)
    if name == JOB_KEY:
        raise _wrong(field, "this name is of the key of sealed jobs", "choose another")
    match source:
        case {"env": str(variable), **rest} if not rest and variable:
            return SecretSource(name, env=variable)
        case {"file": str(path), **rest} if not rest and path:
            return SecretSource(name, file=(base / Path(path).expanduser()).resolve())
    # What was written may be the secret itself: it is not repeated.
    raise _wrong(
        field, "says where the secret is, not what it is", f"{name}: {{env: VARIABLE}} or {name}: {{file: PATH}}"
    )


def seal_secrets(
    spec: JobSpec,
    sources: Iterable[SecretSource],
    offers: Iterable[NodeView],
    client: AccountId,
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> JobSpec:
    """`more`: secrets that are in no job file. The spec with its secrets, sealed to the nodes that may run it. Raises Invalid `secret_missing`; Infeasible `no_node_for_secrets`."""
    from torg_host.age import seal

    values = {source.name: source.read() for source in sources} | dict(more)
    nodes = recipients(spec, offers)
    if not nodes:
        raise Infeasible(
            "no node to seal the secrets to: none on this market fits the job",
            code="no_node_for_secrets",
            field="secrets",
            hint="torg quote says what is missing",
        )
    sealed = seal(content_of(spec, client, values), nodes)
    secrets = SealedSecrets(names=tuple(values), nodes=nodes, sealed=base64.b64encode(sealed).decode())
    return spec.model_copy(update={"secrets": secrets})


def recipients(spec: JobSpec, offers: Iterable[NodeView]) -> tuple[str, ...]:
    """The nodes that `placement.nodes` names; otherwise those that fit, the cheapest first, no more than one can seal to."""
    if spec.placement.nodes:
        return spec.placement.nodes
    found = sorted(
        (offer for offer in offers if _fits(spec, offer)), key=lambda offer: (offer.price_per_gpu_hour, offer.node)
    )
    return tuple(offer.node for offer in found[:MAX_RECIPIENTS])


def _fits(spec: JobSpec, offer: NodeView) -> bool:
    """Roughly: who is left out cannot run the job; who is not, the marketplace still decides about."""
    asked = spec.resources
    classes = {part.strip().lower() for part in asked.gpu_class.split("|")} if asked.gpu_class else set()
    return (
        offer.state is not NodeState.SUSPENDED
        and (not spec.spot or offer.spot_price_per_gpu_hour is not None)
        and offer.node not in spec.excluded_nodes
        and offer.gpus >= asked.gpus
        and asked.gpu_fraction >= WHOLE_GPU_MILLI // offer.gpu_slices
        and (not classes or offer.gpu_class.lower() in classes)
        and offer.cpu_millis >= asked.cpus
        and offer.memory_bytes >= asked.memory
        and offer.disk_bytes >= asked.disk
        and any(level in offer.isolation for level in _ISOLATION[_ISOLATION.index(spec.isolation) :])
        and spec.egress_wanted in {"none", *offer.egress}
        and (not spec.placement.regions or offer.region in spec.placement.regions)
        and (offer.protocol_version == 0 or offer.protocol_version >= version_needed(features_asked(spec)))
    )


def _missing(name: str, why: str) -> Invalid:
    return Invalid(f"the secret {name} cannot be read: {why}", code="secret_missing", field=f"secrets.{name}")


def _wrong(field: str, message: str, hint: str | None) -> Invalid:
    problem: dict[str, Any] = {"field": field, "message": message, "value": None, "hint": hint}
    return Invalid(f"job spec: {field}: {message}", code="spec_invalid", field=field, hint=hint, problems=[problem])
