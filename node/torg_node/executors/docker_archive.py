"""Container images made from nothing: a `docker load` archive built in memory, with no registry, no daemon and no base image.

Equal entries give equal bytes, so an image's id is known before the engine sees it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Folder:
    path: str
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class File:
    path: str
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Link:
    path: str
    target: str


Entry = Folder | File | Link


@dataclass(frozen=True, slots=True)
class ImageArchive:
    """`data` is what the engine's load call takes; `image_id` is the id under which the engine will know the image."""

    tag: str
    image_id: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What the image says of itself. `architecture` in the engine's words: amd64, arm64."""

    architecture: str
    labels: Mapping[str, str] = field(default_factory=dict)
    env: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = ""


def image_archive(tag: str, entries: Sequence[Entry], config: ImageConfig) -> ImageArchive:
    """One layer with `entries`, all owned by root, all dated to the epoch."""
    layer = _tar([(_header(entry), entry.data if isinstance(entry, File) else b"") for entry in entries])
    described = _described(config, layer)
    config_digest = hashlib.sha256(described).hexdigest()
    manifest = [{"Config": f"{config_digest}.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
    members = {
        f"{config_digest}.json": described,
        "layer.tar": layer,
        "manifest.json": json.dumps(manifest).encode(),
    }
    archive = _tar([(_file_header(name, len(data), 0o644), data) for name, data in members.items()])
    return ImageArchive(tag, f"sha256:{config_digest}", gzip.compress(archive, compresslevel=1, mtime=0))


def _described(config: ImageConfig, layer: bytes) -> bytes:
    document = {
        "architecture": config.architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Labels": dict(config.labels),
            "Env": list(config.env),
            "Volumes": {path: {} for path in config.volumes},
            "Entrypoint": list(config.entrypoint),
            "Cmd": list(config.cmd),
            "WorkingDir": config.workdir,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "torg"}],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _header(entry: Entry) -> tarfile.TarInfo:
    match entry:
        case File():
            return _file_header(entry.path, len(entry.data), entry.mode)
        case Folder():
            header = tarfile.TarInfo(entry.path)
            header.type, header.mode = tarfile.DIRTYPE, entry.mode
            return header
        case Link():
            header = tarfile.TarInfo(entry.path)
            header.type, header.linkname = tarfile.SYMTYPE, entry.target
            return header


def _file_header(path: str, size: int, mode: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.size, header.mode = size, mode
    return header


def _tar(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for header, data in members:
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()
