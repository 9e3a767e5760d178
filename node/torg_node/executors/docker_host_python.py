"""`host-python` on an engine: the same image as the sandbox's, with nothing to build and no registry.

An empty image holds only links and mount points; what `torg_host.sandbox.images.host_python` names is bound into it read-only. The
engine must therefore see the same files as the agent: an agent in a container needs real images.
"""

from __future__ import annotations

from pathlib import Path

from torg_host.sandbox.command import etc_files
from torg_host.sandbox.images import HOST_PYTHON, host_python, host_python_digest
from torg_node.executors.docker_archive import Entry, File, Folder, ImageArchive, ImageConfig, Link, image_archive
from torg_node.executors.docker_request import HOSTNAME, JOB_USER_ID, RunnableImage
from torg_node.executors.port import Mount, PreparedImage

SKELETON_TAG = "torg/host-python:1"
_FOLDERS = ("dev", "etc", "opt", "proc", "run", "sbin", "sys", "usr", "var", "workspace")
_ENGINES_OWN = ("/sbin", "/sys")  # the engine puts its init into the first and mounts the second itself


def skeleton_archive(architecture: str) -> ImageArchive:
    """The empty image. Equal on every host with the same links into /usr."""
    links = [Link(place.lstrip("/"), says) for says, place in host_python().links if place not in _ENGINES_OWN]
    etc = {
        name: text for name, text in etc_files(JOB_USER_ID, JOB_USER_ID).items() if name not in {"hosts", "hostname"}
    }
    entries: list[Entry] = [
        *(Folder(path) for path in _FOLDERS),
        Folder("tmp", 0o1777),
        Link("var/tmp", "../tmp"),
        *links,
        *(File(f"etc/{name}", text.encode()) for name, text in sorted(etc.items())),
    ]
    return image_archive(SKELETON_TAG, entries, ImageConfig(architecture=architecture))


def host_python_image(skeleton_id: str) -> RunnableImage:
    image = host_python()
    mounts = tuple(
        Mount(source=bind.source, target=bind.target)
        for bind in image.binds
        if not bind.target.startswith(_ENGINES_OWN)
    )
    return RunnableImage(skeleton_id, mounts=mounts, env={"USER": "job", "HOSTNAME": HOSTNAME, **dict(image.env)})


def sleeper_image(skeleton_id: str) -> RunnableImage:
    """What the alarm runs in. Only /usr: an agent in a container has a Python that the engine's host does not have."""
    return RunnableImage(skeleton_id, mounts=(Mount(source=Path("/usr"), target="/usr"),))


def prepared_host_python() -> PreparedImage:
    return PreparedImage(reference=HOST_PYTHON, digest=host_python_digest())
