"""Where inputs come from: each kind's protocol, on top of the strict client. Writes below `target`, which does not exist before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from torg_node.input_client import InputClient, InputInvalid, InputUnavailable
from torg_protocol.inputs import HuggingFaceInput, OllamaInput, S3Input, UrlInput, is_plain_relative

if TYPE_CHECKING:
    from obstore.store import S3Store

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_OLLAMA_REGISTRY = "registry.ollama.ai"
_MAX_FILES = 100_000
_CLOSED = "not open to everybody, or not for these credentials"


Credentials = Mapping[str, str]  # by field of the input: the values of the secrets that it names
NONE: Credentials = MappingProxyType({})


async def fetch_url(client: InputClient, item: UrlInput, target: Path, credentials: Credentials = NONE) -> None:
    await client.download(item.url, target, digest=item.digest, headers=_bearer(credentials.get("bearer_token")))


async def fetch_s3(client: InputClient, item: S3Input, target: Path, credentials: Credentials = NONE) -> None:
    """Without credentials: buckets that everybody may read. Raises InputInvalid or InputUnavailable."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError  # S3 alone needs it
    from obstore.store import S3Store

    signing: dict[str, Any] = {
        name: credentials.get(f"credentials.{name}")
        for name in ("access_key_id", "secret_access_key", "session_token")
        if f"credentials.{name}" in credentials
    }
    store = S3Store(
        item.bucket,
        prefix=item.prefix or None,
        endpoint=item.endpoint or f"https://s3.{item.region}.amazonaws.com",
        region=item.region,
        **(signing or {"skip_signature": True}),
        virtual_hosted_style_request=False,
        client_options={"proxy_url": client.proxy_url, "allow_http": True, "timeout": "1h"},
        retry_config={"max_retries": 5},
    )
    try:
        if item.files:
            for name in item.files:
                await _s3_object(client, store, name, target)
            return
        found = 0
        async for name in _s3_names(store):
            found += 1
            await _s3_object(client, store, name, target)
        if not found:
            raise InputInvalid(f"{item.url}: nothing is there")
    except (FileNotFoundError, BaseError) as error:
        why = _first_line(error)
        # The library has classes for objects; of a bucket it only passes on the status.
        if isinstance(error, FileNotFoundError) or "404 Not Found" in why:
            raise InputInvalid(f"{item.url}: not there: {why}") from error
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or "403 Forbidden" in why:
            raise InputInvalid(f"{item.url}: {_CLOSED}, or its host is refused: {why}") from error
        raise InputUnavailable(f"{item.url} cannot be fetched: {why}") from error


async def _s3_names(store: S3Store) -> AsyncIterator[str]:
    import obstore

    found = 0
    async for page in obstore.list(store):
        for entry in page:
            found += 1
            if found > _MAX_FILES:
                raise InputInvalid(f"more than {_MAX_FILES} files")
            yield entry["path"]


async def _s3_object(client: InputClient, store: S3Store, name: str, target: Path) -> None:
    import obstore

    path = _inside(target, name)
    answer = await obstore.get_async(store, name)
    with path.open("wb") as file:
        async for piece in answer.stream(min_chunk_size=1 << 20):
            client.allowance.take(len(piece))
            await asyncio.to_thread(file.write, bytes(piece))


async def fetch_hugging_face(
    client: InputClient, item: HuggingFaceInput, target: Path, site: str, credentials: Credentials = NONE
) -> None:
    asking = _bearer(credentials.get("token"))
    revision = quote(item.revision, safe="")
    url: str | None = f"{site}/api/models/{item.repo}/tree/{revision}?recursive=true"
    wanted, there = set(item.files), set[str]()
    while url is not None:
        listing, headers = await client.json(url, asking)
        if not isinstance(listing, list):
            raise InputInvalid(f"{item.repo}: the list of its files is no list")
        for entry in listing:
            name = entry.get("path")
            if entry.get("type") != "file" or (wanted and name not in wanted):
                continue
            there.add(name)
            large = entry.get("lfs") or {}
            digest = f"sha256:{large['oid']}" if "oid" in large else None
            await client.download(
                f"{site}/{item.repo}/resolve/{revision}/{quote(name)}",
                _inside(target, name),
                digest=digest,
                size_bytes=entry.get("size"),
                headers=asking,
            )
        url = _next_page(headers.get("link", ""))
    if missing := sorted(wanted - there):
        raise InputInvalid(f"{item.repo} at {item.revision} has no {', '.join(missing)}")
    if not there:
        raise InputInvalid(f"{item.repo} at {item.revision} has no files")


async def fetch_ollama(client: InputClient, item: OllamaInput, target: Path, site: str) -> None:
    """As `ollama pull` would leave it, every blob checked against its digest."""
    name, _, tag = item.model.partition(":")
    name = name if "/" in name else f"library/{name}"
    tag = tag or "latest"
    manifest, _ = await client.json(f"{site}/v2/{name}/manifests/{tag}", {"accept": _MANIFEST})
    try:
        layers = {layer["digest"]: int(layer["size"]) for layer in [manifest["config"], *manifest["layers"]]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputInvalid(f"{item.model}: its manifest is not one") from error
    for digest, size_bytes in layers.items():
        path = _inside(target / "blobs", str(digest).replace(":", "-"))
        await client.download(f"{site}/v2/{name}/blobs/{digest}", path, digest=str(digest), size_bytes=size_bytes)
    _inside(target, f"manifests/{_OLLAMA_REGISTRY}/{name}/{tag}").write_text(json.dumps(manifest))


def _inside(target: Path, name: str) -> Path:
    """Names come from strangers. Raises InputInvalid for one that would leave the target."""
    if not is_plain_relative(str(name)):
        raise InputInvalid(f"{name!r} is not a name for a file")
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token}"}


def _next_page(link: str) -> str | None:
    address, _, relation = link.partition(">")
    return address.strip().lstrip("<") if 'rel="next"' in relation else None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
