"""An image as one file: what `docker save`, `podman save` or `skopeo copy ... oci-archive:` write. Read here without trust.

Both layouts are understood, OCI's and Docker's older one. Everything is checked by digest before it is used: the manifest, its
configuration, and each layer by the digest of its content. `oci_unpack` applies the layers.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import zstandard

from torg_host.archive_read import CHUNK_BYTES, MAX_HEADER_BYTES, MAX_WINDOW_BYTES
from torg_protocol.errors import Invalid, TooLarge

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MAX_MEMBERS, MAX_LAYERS, MAX_DOCUMENT_BYTES = 4096, 127, 4 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_PACKERS = {_GZIP: "gzip", _ZSTD: "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}


@dataclass(frozen=True, slots=True)
class Member:
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Layer:
    member: Member
    diff_id: str  # "sha256:..." of the uncompressed tar


@dataclass(frozen=True, slots=True)
class ImageFile:
    """`digest` is of the configuration, which names the layers by content: what engines call the image's id."""

    path: Path
    digest: str
    config_bytes: bytes
    layers: tuple[Layer, ...]

    @property
    def config(self) -> dict[str, Any]:
        """Env, Entrypoint, Cmd, WorkingDir, as the image declares them."""
        found = json.loads(self.config_bytes).get("config")
        return found if isinstance(found, dict) else {}


def read_image(path: Path, machine: str = platform.machine()) -> ImageFile:
    """Raises Invalid `image_archive_invalid` with what is wrong, for example an image of another architecture."""
    try:
        with path.open("rb") as file:
            members = _members(file)
            if "index.json" in members and "manifest.json" not in members:
                config, layers = _oci(file, members, ARCHITECTURES.get(machine, machine))
            else:
                config, layers = _docker(file, members)
    except (tarfile.TarError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise image_invalid(f"it cannot be read: {error}") from error
    document = json.loads(config)
    diff_ids = (document.get("rootfs") or {}).get("diff_ids") or []
    if document.get("os") != "linux" or document.get("architecture") != ARCHITECTURES.get(machine, machine):
        raise image_invalid(f"it is for {document.get('os')}/{document.get('architecture')}, this machine is {machine}")
    if not 0 < len(layers) == len(diff_ids) <= MAX_LAYERS:
        raise image_invalid(f"{len(layers)} layers, {len(diff_ids)} named; at most {MAX_LAYERS}")
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    return ImageFile(path, digest, config, tuple(Layer(*pair) for pair in zip(layers, map(str, diff_ids), strict=True)))


def check_image_archive(path: Path) -> None:
    """Whether it looks like an image, as far as can be said on a machine that will not run it. Raises Invalid `image_archive_compressed`,
    `image_archive_invalid`; OSError."""
    with path.open("rb") as file:
        head = file.read(6)
        packer = next((name for magic, name in _PACKERS.items() if head.startswith(magic)), None)
        if packer is not None:
            raise Invalid(
                f"the image archive is compressed with {packer}",
                code="image_archive_compressed",
                field="image",
                value=str(path),
                hint=f"unpack it first: {packer} -dk {path.name} (its layers may stay compressed)",
            )
        try:
            file.seek(0)
            members = _members(file)
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise image_invalid(f"{path} is no tar archive") from error
    if not {"manifest.json", "index.json"} & members.keys():
        raise image_invalid(
            f"{path} has neither a manifest.json nor an index.json (docker export writes a plain file tree)"
        )


def write_docker_archive(image: ImageFile, target: BinaryIO, max_bytes: int) -> None:
    """The same image in the layout that every engine loads. Raises Invalid for a layer that is not what the image says, TooLarge when they
    unpack to more than `max_bytes`."""
    unpacked = 0
    names = [f"{number}.tar" for number in range(len(image.layers))]
    config_name = f"{image.digest.removeprefix('sha256:')}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": None, "Layers": names}]).encode()
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar, image.path.open("rb") as file:
        for name, data in ((config_name, image.config_bytes), ("manifest.json", manifest)):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
        for name, layer in zip(names, image.layers, strict=True):
            unpacked += _size_of(file, layer, max_bytes - unpacked)
            header = tarfile.TarInfo(name)
            header.size = layer.member.size
            file.seek(layer.member.offset)
            tar.addfile(header, file)


def _size_of(file: BinaryIO, layer: Layer, max_bytes: int) -> int:
    """Unpacked, after it was checked."""
    with layer_content(file, layer) as content:
        while content.read(CHUNK_BYTES):
            if content.tell() > max_bytes:
                raise image_too_large(max_bytes)
        return content.tell()


@contextlib.contextmanager
def layer_content(file: BinaryIO, layer: Layer) -> Iterator[HashingReader]:
    """The uncompressed tar of a layer; at the end it must have been what the image said. Raises Invalid otherwise."""
    file.seek(layer.member.offset)
    magic = file.read(4)
    file.seek(layer.member.offset)
    part: Any = _Part(file, layer.member.size)
    if magic.startswith(_GZIP):
        part = gzip.GzipFile(fileobj=part)
    elif magic == _ZSTD:
        part = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(part, read_across_frames=True)
    reader = HashingReader(part)
    try:
        yield reader
        while reader.read(CHUNK_BYTES):
            pass
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise image_invalid(f"a layer cannot be unpacked: {error}") from error
    if reader.digest != layer.diff_id:
        raise image_invalid(f"a layer is not what the image says: {reader.digest} instead of {layer.diff_id}")


class HashingReader:
    """Forward only; what tarfile needs of a file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._hash, self._position = stream, hashlib.sha256(), 0
        self.header_budget: int | None = None

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def read(self, size: int) -> bytes:
        if self.header_budget is not None:
            self.header_budget -= size
            if self.header_budget < 0:
                raise tarfile.ReadError("headers too large")
        pieces = []
        while size > 0 and (piece := self._stream.read(min(size, CHUNK_BYTES))):
            pieces.append(piece)
            self._hash.update(piece)
            size -= len(piece)
            self._position += len(piece)
        return b"".join(pieces)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        while self._position < position:
            budget, self.header_budget = self.header_budget, None
            piece = self.read(min(position - self._position, CHUNK_BYTES))
            self.header_budget = budget
            if not piece:
                raise tarfile.ReadError("unexpected end of data")


# --- layouts ----------------------------------------------------------------------------------------------------------


def _oci(file: BinaryIO, members: Mapping[str, Member], architecture: str) -> tuple[bytes, list[Member]]:
    manifest = _manifest(file, members, json.loads(_document(file, members["index.json"])), architecture, depth=0)
    config = _blob(file, members, manifest["config"]["digest"])
    return config, [members[_blob_name(layer["digest"])] for layer in manifest["layers"]]


def _manifest(
    file: BinaryIO, members: Mapping[str, Member], index: Any, architecture: str, *, depth: int
) -> dict[str, Any]:
    """The one for this machine; an index may name indexes."""
    fitting = [
        item
        for item in index["manifests"]
        if (item.get("platform") or {}).get("architecture", architecture) == architecture
        and "attestation" not in str(item.get("annotations"))
    ]
    if len(fitting) != 1 or depth > 3:
        raise ValueError(f"{len(fitting)} images for {architecture} in it, one is expected")
    found: dict[str, Any] = json.loads(_blob(file, members, fitting[0]["digest"]))
    return found if "layers" in found else _manifest(file, members, found, architecture, depth=depth + 1)


def _docker(file: BinaryIO, members: Mapping[str, Member]) -> tuple[bytes, list[Member]]:
    manifests = json.loads(_document(file, members["manifest.json"]))
    if len(manifests) != 1:
        raise ValueError(f"{len(manifests)} images in it, one is expected")
    config = _document(file, members[manifests[0]["Config"]])
    return config, [members[name] for name in manifests[0]["Layers"]]


def _blob(file: BinaryIO, members: Mapping[str, Member], digest: str) -> bytes:
    data = _document(file, members[_blob_name(digest)])
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise ValueError(f"{digest} has other content")
    return data


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/", 1)


def _document(file: BinaryIO, member: Member) -> bytes:
    if member.size > MAX_DOCUMENT_BYTES:
        raise ValueError("a document in it is too large")
    file.seek(member.offset)
    return file.read(member.size)


def _members(file: BinaryIO) -> dict[str, Member]:
    """Where each regular file lies. Headers are bounded: tarfile would read gigabytes of them."""
    found: dict[str, Member] = {}
    reader = _Seeker(file)
    with tarfile.open(fileobj=reader, mode="r:") as tar:  # type: ignore[call-overload]  # a reader is enough
        while True:
            reader.budget = MAX_HEADER_BYTES
            if (info := tar.next()) is None:
                return found
            tar.members = []
            if info.isreg() and not info.issparse():
                found[os.path.normpath(info.name)] = Member(info.offset_data, info.size)
            if len(found) > MAX_MEMBERS:
                raise ValueError(f"more than {MAX_MEMBERS} files in it")


class _Seeker:
    def __init__(self, file: BinaryIO) -> None:
        self._file, self.budget = file, MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        self.budget -= size
        if self.budget < 0:
            raise tarfile.ReadError("headers too large")
        return self._file.read(size)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> int:
        return self._file.seek(position)


class _Part:
    """A stretch of a file as a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = self._file.read(size)
        self._left -= len(data)
        return data


def image_too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(
        "the image is larger than this node takes", code="image_too_large", field="image", limit_bytes=limit_bytes
    )


def image_invalid(why: str) -> Invalid:
    return Invalid(
        f"not an image archive that runs here: {why}",
        code="image_archive_invalid",
        field="image",
        hint="docker save, podman save or skopeo (oci-archive:) write one",
    )
