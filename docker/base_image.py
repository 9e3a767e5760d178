#!/usr/bin/env python3
"""Small images without a registry, a base image or a daemon: writes an archive that any engine loads.

    python docker/base_image.py busybox     --output busybox.tar.gz      static busybox (Debian: busybox-static), 2 MB
    python docker/base_image.py host-python --output skeleton.tar.gz     the empty image into which a node binds its Python
    docker load --input busybox.tar.gz

Equal inputs give equal bytes. Nodes need neither: they make and load the second one themselves.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

from torg_node.executors.docker_archive import Entry, File, Folder, ImageArchive, ImageConfig, Link, image_archive
from torg_node.executors.docker_host_python import skeleton_archive

BUSYBOX = Path("/usr/bin/busybox")
BUSYBOX_TAG = "torg/busybox:1"
FOLDERS = ("bin", "dev", "etc", "proc", "sys", "work")
COMMANDS = ("cat", "dd", "df", "echo", "false", "id", "ls", "sh", "sleep", "touch", "true")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # the kernel's words and the engines'


def busybox_entries() -> list[Entry]:
    return [
        *(Folder(name) for name in FOLDERS),
        Folder("tmp", 0o1777),
        File("bin/busybox", BUSYBOX.read_bytes(), 0o755),
        *(Link(f"bin/{name}", "busybox") for name in COMMANDS),
    ]


def make(kind: str, architecture: str) -> ImageArchive:
    if kind == "host-python":
        return skeleton_archive(architecture)
    return image_archive(BUSYBOX_TAG, busybox_entries(), ImageConfig(architecture, env=("PATH=/bin",)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes a small image without a registry.")
    parser.add_argument("kind", choices=["busybox", "host-python"])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.kind == "busybox" and not BUSYBOX.exists():
        sys.stderr.write(f"{BUSYBOX} is missing: apt-get install busybox-static\n")
        return 1
    image = make(arguments.kind, ARCHITECTURES.get(platform.machine(), platform.machine()))
    arguments.output.write_bytes(image.data)
    sys.stdout.write(f"{image.tag} {image.image_id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
