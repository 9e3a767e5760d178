"""Secrets of a job: on the wire only sealed, to the keys of the nodes that may run it, and worth nothing outside of this very job.

The client seals before it submits, so it need not be there when a lease is granted, or granted again elsewhere; the job runs on no node that
it was not sealed to. The sealed content names the client and the digest of the spec without the secrets: whoever copies it into another
spec (other command, other workspace) gets an honest node's refusal.
"""

from __future__ import annotations

import base64
import binascii
import difflib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidationError, field_validator

from torg_protocol.canonical import canonical_json
from torg_protocol.documents import Wire
from torg_protocol.errors import Invalid
from torg_protocol.ids import AccountId, Digest
from torg_protocol.strict import Strict

if TYPE_CHECKING:
    from torg_protocol.jobspec import JobSpec

MAX_SECRETS, MAX_RECIPIENTS = 64, 64
MAX_SECRET_BYTES = 64 << 10  # all of a job's together
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]


class SealedSecrets(Strict):
    """`sealed`: base64 of an age file to the keys of `nodes`; `names` are those of the files that the job will find."""

    names: tuple[SecretName, ...] = Field(min_length=1, max_length=MAX_SECRETS)
    nodes: tuple[str, ...] = Field(min_length=1, max_length=MAX_RECIPIENTS)
    sealed: str = Field(max_length=4 * MAX_SECRET_BYTES, pattern=r"^[A-Za-z0-9+/]+={0,2}$")

    @field_validator("names", "nodes")
    @classmethod
    def _sorted(cls, items: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(items)))

    @property
    def data(self) -> bytes:
        try:
            return base64.b64decode(self.sealed, validate=True)
        except binascii.Error:
            raise Invalid("not base64", code="cannot_unseal", field="secrets.sealed") from None


class _Content(Wire):
    client: AccountId
    spec_digest: Digest  # of the spec without its secrets
    secrets: dict[str, str]  # base64


def check_secret_names(spec: JobSpec, known: Collection[str]) -> None:
    """Raises Invalid `secret_unknown`: an input, or a registry, names a secret that the job does not have."""
    for field, name in spec.secrets_needed():
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"write secrets: {{{name}: {{env: VARIABLE}}}}"
            problem = {"field": field, "message": "the job has no secret of this name", "value": name, "hint": hint}
            raise Invalid(
                "the job has no secret of this name",
                code="secret_unknown",
                field=field,
                value=name,
                hint=hint,
                problems=[problem],
            )


def content_of(spec: JobSpec, client: AccountId, secrets: Mapping[str, bytes]) -> bytes:
    """What is to be sealed, for this spec of this client. Raises Invalid `secrets_too_large`."""
    if sum(map(len, secrets.values())) > MAX_SECRET_BYTES:
        raise Invalid(
            f"secrets are at most {MAX_SECRET_BYTES >> 10} KiB together",
            code="secrets_too_large",
            field="secrets",
            hint="seal a key here, and send the data encrypted with it in the workspace",
        )
    encoded = {name: base64.b64encode(value).decode() for name, value in secrets.items()}
    return canonical_json(_Content(client=client, spec_digest=spec.without_secrets().digest, secrets=encoded).wire())


def secrets_in(content: bytes, spec: JobSpec, client: AccountId) -> dict[str, bytes]:
    """The secrets, if they were sealed for this spec of this client. Raises Invalid `secrets_misplaced`, without the content."""
    try:
        found = _Content.model_validate_json(content)
        values = {name: base64.b64decode(text, validate=True) for name, text in found.secrets.items()}
    except (ValidationError, ValueError):
        raise _misplaced("they are not in the form that clients seal") from None
    if found.client != client or found.spec_digest != spec.without_secrets().digest:
        raise _misplaced("they were sealed for another job")
    if spec.secrets is None or tuple(sorted(values)) != spec.secrets.names:
        raise _misplaced("other names than the job file says")
    return values


def _misplaced(why: str) -> Invalid:
    return Invalid(f"the job's secrets cannot be used: {why}", code="secrets_misplaced", field="secrets")
