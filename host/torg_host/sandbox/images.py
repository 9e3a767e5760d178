"""What a container's root is made of.

    host-python     the host's /usr, read-only, and the running interpreter's virtual environment at /opt/venv
    oci-dir:/path   an unpacked image: its top-level entries, read-only

`host-python` shows /usr of this host to the job (which holds no secrets on a sane host) and its results depend on this host; its digest
is the sha256 of this canonical JSON: {"distributions": ["name==version", ...sorted], "machine": ..., "python": "3.11.2"}. The digest of
`oci-dir` is the sha256 over all paths, kinds, modes and contents, see `tree_digest`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from torg_protocol.errors import NotFound

HOST_PYTHON = "host-python"
OCI_DIRECTORY = "oci-dir:"
VENV = "/opt/venv"
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
IMAGE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # links into /usr, or directories on old hosts
MADE_BY_THE_SANDBOX = frozenset({"dev", "proc", "sys", "tmp", "run"})


@dataclass(frozen=True, slots=True)
class SandboxMount:
    """A host file or directory at a place in the container."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    reference: str
    binds: tuple[SandboxMount, ...]
    links: tuple[tuple[str, str], ...]  # (what the link says, where it is)
    env: tuple[tuple[str, str], ...]
    has_etc: bool  # False: the sandbox makes a small /etc

    def covers(self, target: str) -> bool:
        """Whether a mount at `target` would meet the image's own files (which are read-only) or hide them."""
        own = [bind.target for bind in self.binds] + [place for _, place in self.links]
        return any(f"{target}/".startswith(f"{place}/") or f"{place}/".startswith(f"{target}/") for place in own)


def host_python(prefix: Path = Path(sys.prefix), base_prefix: Path = Path(sys.base_prefix)) -> Image:
    """The image of the interpreter with these prefixes (default: the running one)."""
    binds = [SandboxMount(Path("/usr"), "/usr")]
    links = []
    for name in MERGED:
        place = Path("/") / name
        if place.is_symlink():
            links.append((str(place.readlink()), f"/{name}"))
        elif place.is_dir():
            binds.append(SandboxMount(place, f"/{name}"))
    # Without these, libraries that Debian picks through alternatives (BLAS) are not found, the loader is slower, and whoever draws a plot is told
    # that there is no configuration of fonts.
    etc = (Path("/etc/ld.so.cache"), Path("/etc/alternatives"), Path("/etc/fonts"))
    wanted = (*etc, Path("/sys/devices/system/cpu"))
    binds.extend(SandboxMount(file, str(file)) for file in wanted if file.exists())
    path = SYSTEM_PATH
    if prefix != base_prefix:
        binds.append(SandboxMount(prefix.resolve(), VENV))
        path = f"{VENV}/bin:{path}"
    if not base_prefix.resolve().is_relative_to("/usr"):
        binds.append(SandboxMount(base_prefix.resolve(), str(base_prefix)))
        path = f"{path}:{base_prefix}/bin"
    return Image(HOST_PYTHON, tuple(binds), tuple(links), (("PATH", path),), has_etc=False)


@functools.cache
def host_python_digest() -> str:
    found = {f"{one.metadata['Name']}=={one.version}" for one in importlib.metadata.distributions()}
    description = {
        "distributions": sorted(found, key=str.lower),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def oci_directory(root: Path) -> Image:
    """An unpacked image. Raises NotFound `image_not_found`. The caller decides which directories may be images."""
    if not root.is_dir():
        raise NotFound("no such image directory", code="image_not_found", field="image", value=f"{OCI_DIRECTORY}{root}")
    binds, links = [], []
    for entry in sorted(root.iterdir()):
        if entry.name in MADE_BY_THE_SANDBOX:
            continue
        if entry.is_symlink():
            links.append((str(entry.readlink()), f"/{entry.name}"))
        else:
            binds.append(SandboxMount(entry, f"/{entry.name}"))
    has_etc = (root / "etc").is_dir()
    return Image(f"{OCI_DIRECTORY}{root}", tuple(binds), tuple(links), (("PATH", IMAGE_PATH),), has_etc)


def tree_digest(root: Path) -> str:
    """sha256 over sorted lines `path NUL kind mode NUL (link target | sha256 of content)`. Reads every file: run in a thread."""
    whole = hashlib.sha256()
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(names + files):
            path = Path(directory) / name
            status = path.lstat()
            content = ""
            if path.is_symlink():
                content = str(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            line = f"{path.relative_to(root)}\0{status.st_mode:o}\0{content}\n"
            whole.update(line.encode(errors="surrogateescape"))
    return "sha256:" + whole.hexdigest()
