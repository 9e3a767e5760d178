"""What a job reads beside its workspace. The node fetches it before the job starts, so the job itself needs no network for it.

A blob comes from the marketplace's store, which every node reaches. Everything else comes from the internet, by the node's own strict
client: only from the hosts that the input names, never from a private address, and only onto nodes whose owner lends a way out. Where a
digest is known (blob, url, Ollama, large files of Hugging Face) the bytes are checked against it. All of it counts against `resources.disk`.

Credentials are never written here: `credentials`, `token` and `bearer_token` name secrets of the job (torg_protocol.secrets), which only the
node can open.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator

from torg_protocol.data import DATA_NAME
from torg_protocol.ids import Digest, is_digest, is_digest_of_bytes
from torg_protocol.secrets import SecretName
from torg_protocol.strict import Strict, check_container_path

MAX_INPUTS = 64
JOB_FOLDERS = ("/work", "/checkpoint", "/output", "/torg")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_S3 = "s3.amazonaws.com"


def _is_none(value: object) -> bool:
    return value is None


class _Input(Strict):
    path: str = Field(max_length=512)  # where the job sees it, read-only

    @field_validator("path")
    @classmethod
    def _is_container_path(cls, path: str) -> str:
        path = check_container_path(path)
        if any(path == folder or path.startswith(f"{folder}/") for folder in JOB_FOLDERS):
            raise ValueError(f'"{path}" is in a folder of the job\'s own; choose another, such as /data')
        return path

    @property
    def secret_fields(self) -> tuple[tuple[str, str], ...]:
        """Which of the job's secrets it needs: fields and names."""
        return ()


class DataInput(_Input):
    """Data that the account keeps under a name (`torg data put`), as a tree at `path`. Written as `{data: NAME, path: PATH}`. At submission the
    blob that the name stands for then takes its place, so that every attempt reads the same bytes, wherever the name moves later."""

    kind: Literal["named"] = "named"
    data: str = Field(pattern=DATA_NAME)

    @property
    def hosts(self) -> tuple[str, ...]:
        return ()


class BlobInput(_Input):
    """A blob of the marketplace's store, as `torg data put` makes them: a file at `path`, or, with `unpack`, the tree that a tar + zstd
    archive holds."""

    kind: Literal["blob"]
    digest: Digest
    size_bytes: int = Field(ge=0)
    unpack: bool = False
    # The name by which it was asked for. Left out of the wire form when there was none: older specs keep their digests.
    name: str | None = Field(default=None, pattern=DATA_NAME, exclude_if=_is_none)

    @field_validator("digest")
    @classmethod
    def _is_digest(cls, value: str) -> str:
        return _checked_digest(value)

    @property
    def hosts(self) -> tuple[str, ...]:
        return ()


class UrlInput(_Input):
    """One file at `path`, over https or http. What the address gives out may change; what the job reads may not: its digest is checked."""

    kind: Literal["url"]
    url: str = Field(max_length=2048)
    digest: Digest
    bearer_token: SecretName | None = Field(default=None, exclude_if=_is_none)  # the secret that holds it

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        return _checked_url(url)

    @field_validator("digest")
    @classmethod
    def _is_digest(cls, value: str) -> str:
        return _checked_digest(value, of_bytes=True)

    @property
    def hosts(self) -> tuple[str, ...]:
        return (_host(self.url),)

    @property
    def secret_fields(self) -> tuple[tuple[str, str], ...]:
        return _given(bearer_token=self.bearer_token)


class S3Credentials(Strict):
    """Names of the job's secrets that hold an access key's two parts, and the token of a temporary one."""

    access_key_id: SecretName
    secret_access_key: SecretName
    session_token: SecretName | None = None


class S3Input(_Input):
    """Objects of a bucket, as files below `path`; names are relative to the prefix. Without `files` everything below it. `endpoint`: of an
    S3-compatible store; default Amazon's. Without `credentials` the bucket must be one that everybody may read."""

    kind: Literal["s3"]
    url: str = Field(max_length=1024, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,62}(/[^\x00]*)?$")  # s3://bucket/prefix
    endpoint: str | None = Field(default=None, max_length=1024)
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]{2,32}$")
    files: tuple[str, ...] = Field(default=(), max_length=1000)
    credentials: S3Credentials | None = Field(default=None, exclude_if=_is_none)

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        return None if url is None else _checked_url(url).rstrip("/")

    @field_validator("files")
    @classmethod
    def _are_relative(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_files(files)

    @property
    def secret_fields(self) -> tuple[tuple[str, str], ...]:
        parts = {} if self.credentials is None else self.credentials.model_dump()
        return _given(**{f"credentials.{name}": secret for name, secret in parts.items()})

    @property
    def bucket(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def prefix(self) -> str:
        return urlsplit(self.url).path.strip("/")

    @property
    def hosts(self) -> tuple[str, ...]:
        if self.endpoint is not None:
            return (_host(self.endpoint),)
        return tuple(
            f"{name}:443"
            for name in (_S3, f"*.{_S3}", f"s3.{self.region}.amazonaws.com", f"*.s3.{self.region}.amazonaws.com")
        )


class HuggingFaceInput(_Input):
    """Files of a repository at a revision, below `path`. Without `files` all of them. A commit as the revision stays the same for
    ever; a branch moves. `token`: for private and gated repositories, the secret that holds it."""

    kind: Literal["huggingface"]
    repo: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=200)
    revision: str = Field(default="main", pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=200)
    files: tuple[str, ...] = Field(default=(), max_length=1000)
    token: SecretName | None = Field(default=None, exclude_if=_is_none)

    @field_validator("files")
    @classmethod
    def _are_relative(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_files(files)

    @property
    def secret_fields(self) -> tuple[tuple[str, str], ...]:
        return _given(token=self.token)

    @property
    def hosts(self) -> tuple[str, ...]:
        return ("huggingface.co:443", "*.huggingface.co:443", "*.hf.co:443")


class OllamaInput(_Input):
    """A model of Ollama's library, as its server's model folder has it: its OLLAMA_MODELS is `path`."""

    kind: Literal["ollama"]
    model: str = Field(
        pattern=r"^([a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*(:[A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=200
    )
    path: str = Field(default="/ollama/models", max_length=512)

    @property
    def hosts(self) -> tuple[str, ...]:
        return ("registry.ollama.ai:443", "*.r2.cloudflarestorage.com:443")


FetchedInput = BlobInput | UrlInput | S3Input | HuggingFaceInput | OllamaInput  # what is left when names are resolved


def _named_kind(value: object) -> object:
    """`{data: NAME, path: PATH}` needs no `kind`."""
    return {**value, "kind": "named"} if isinstance(value, dict) and "data" in value and "kind" not in value else value


Input = Annotated[DataInput | FetchedInput, Field(discriminator="kind"), BeforeValidator(_named_kind)]


def _given(**fields: str | None) -> tuple[tuple[str, str], ...]:
    return tuple((field, secret) for field, secret in fields.items() if secret is not None)


def _checked_digest(value: str, *, of_bytes: bool = False) -> str:
    if not (is_digest_of_bytes if of_bytes else is_digest)(value):
        raise ValueError('not a digest; write "sha256:" and 64 lower-case hex digits')
    return value


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        well_formed = False
    if not well_formed or re.search(r"[\s\x00]", url):
        raise ValueError("not an https:// or http:// address")
    if parts.username or parts.password:
        raise ValueError("an address with a password in it would be readable by the node and the marketplace")
    return url


def _host(url: str) -> str:
    """`name:port`, as lists of destinations have it."""
    parts = urlsplit(url)
    return f"{(parts.hostname or '').lower()}:{parts.port or _DEFAULT_PORTS[parts.scheme]}"


def _checked_files(files: tuple[str, ...]) -> tuple[str, ...]:
    for name in files:
        if not is_plain_relative(name):
            raise ValueError(f'"{name}" is not a relative path without ".."')
    return files


def is_plain_relative(name: str) -> bool:
    return (
        0 < len(name) <= 1024
        and not name.startswith("/")
        and "\0" not in name
        and all(part not in {"", ".", ".."} for part in name.split("/"))
    )
