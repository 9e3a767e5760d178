"""Image archives made in tests: by the book, and by an enemy."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

from torg_host.oci_archive import ARCHITECTURES

BUSYBOX = Path("/usr/bin/busybox")
Entry = tuple[str, bytes | str | None]  # name; content, "-> link", "=> hard link", or None for a directory


def layer(*entries: Entry) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, what in entries:
            header = tarfile.TarInfo(name)
            header.mode = 0o755
            match what:
                case None:
                    header.type = tarfile.DIRTYPE
                case str() if what.startswith("-> "):
                    header.type, header.linkname = tarfile.SYMTYPE, what[3:]
                case str() if what.startswith("=> "):
                    header.type, header.linkname = tarfile.LNKTYPE, what[3:]
                case _:
                    pass
            data = what if isinstance(what, bytes) else b""
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def busybox(*extra: Entry) -> bytes:
    links: list[Entry] = [(f"bin/{name}", "-> busybox") for name in ("sh", "cat", "echo", "ls", "id")]
    folders: list[Entry] = [("bin", None), ("etc", None), ("work", None)]
    return layer(*folders[:2], ("bin/busybox", BUSYBOX.read_bytes()), *links, *extra)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def write_image(path: Path, layers: list[bytes], *, kind: str = "oci", compressed: bool = False, **changes: Any) -> str:
    """Returns the digest of the configuration. `changes`: members of the configuration, or `diff_ids`."""
    diff_ids = changes.pop("diff_ids", [sha256(data) for data in layers])
    config: dict[str, Any] = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sh", "-c", "echo default"], "WorkingDir": "/bin"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        **changes,
    }
    described = json.dumps(config).encode()
    stored = [gzip.compress(data) if compressed else data for data in layers]
    files: dict[str, bytes] = {}
    if kind == "docker":
        names = [f"{number}/layer.tar" for number in range(len(stored))]
        files = {"config.json": described, **dict(zip(names, stored, strict=True))}
        files["manifest.json"] = json.dumps([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": names}]).encode()
    else:
        blobs = [described, *stored]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "config": {"digest": sha256(described), "size": len(described)},
                "layers": [{"digest": sha256(data), "size": len(data)} for data in stored],
            }
        ).encode()
        index = {"schemaVersion": 2, "manifests": [{"digest": sha256(manifest), "size": len(manifest)}]}
        files = {f"blobs/sha256/{sha256(data)[7:]}": data for data in [*blobs, manifest]}
        files |= {"index.json": json.dumps(index).encode(), "oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return sha256(described)
