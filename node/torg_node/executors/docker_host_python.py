"""`host-python`: the node's own Python environment as an image, with nothing to build and no registry.

An empty image holds only links and mount points; /usr and the Python environment of the agent are bound read-only. The job sees
the host's programs and libraries (no secrets live there) but nothing else of the host. Results depend on the host: meant
for demonstrations, tests and an owner's own jobs; work for strangers is pinned to an image's digest.
"""

from __future__ import annotations

import sys
from pathlib import Path

from torg_node.executors.docker_archive import Entry, File, Folder, ImageArchive, ImageConfig, Link, image_archive
from torg_node.executors.errors import ImageNotFound
from torg_node.executors.port import Mount

HOST_PYTHON = "host-python"
SKELETON_TAG = "torg/host-python:1"
_USR = Path("/usr")
_MERGED = ("bin", "lib", "lib64")  # /sbin stays a folder: the engine puts its own init there
_HOST_FILES = (Path("/etc/ld.so.cache"), Path("/etc/alternatives"))

_PASSWD = b"root:x:0:0:root:/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"


def skeleton_archive(architecture: str) -> ImageArchive:
    """The empty image. Equal on every host of that architecture."""
    folders = [Folder(path) for path in ("usr", "etc", "proc", "sys", "dev", "sbin", "run", "var", "job")]
    entries: list[Entry] = [
        *folders,
        Folder("tmp", 0o1777),
        Link("var/tmp", "../tmp"),
        *(Link(name, f"usr/{name}") for name in _MERGED),
        File("etc/passwd", _PASSWD),
        File("etc/group", _GROUP),
    ]
    return image_archive(SKELETON_TAG, entries, ImageConfig(architecture=architecture))


def host_python_mounts() -> tuple[Mount, ...]:
    """/usr, the interpreter's home where that is elsewhere, and the environment. Raises ImageNotFound on unusual hosts."""
    unmerged = [name for name in _MERGED if (Path("/") / name).exists() and not (Path("/") / name).is_symlink()]
    if unmerged:
        raise ImageNotFound(
            f"host-python needs a host whose /{unmerged[0]} is a link into /usr",
            field="image",
            value=HOST_PYTHON,
            hint="use an image from a registry",
        )
    homes = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    wanted = [_USR, *(home for home in dict.fromkeys(homes) if not home.is_relative_to(_USR))]
    wanted += [path for path in _HOST_FILES if path.exists()]
    return tuple(Mount(source=path, target=str(path)) for path in wanted)


def host_python_env() -> dict[str, str]:
    return {"PATH": f"{Path(sys.prefix).resolve()}/bin:/usr/local/bin:/usr/bin:/bin"}
