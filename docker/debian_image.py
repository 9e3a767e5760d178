#!/usr/bin/env python3
"""Images of well-known names made from Debian's packages, without a registry: for nodes and tests that reach none.

    python docker/debian_image.py nginx --output nginx.tar.gz
    docker load --input nginx.tar.gz

What runs is the software of that name as Debian ships it, fetched by apt and unpacked; the packages' own scripts do not run, and what
they would have done is written below. `ubuntu` holds Debian's shell and core utilities, which are what Ubuntu ships too, and no more.
"""

from __future__ import annotations

import argparse
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torg_node.executors.docker_archive import Entry, File, Folder, ImageArchive, ImageConfig, Link, image_archive

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # the kernel's words and the engines'
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MERGED = ("bin", "sbin", "lib", "lib64")  # Debian's links into /usr
_NOT_NEEDED = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/")
_ACCOUNTS = (
    File(
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    ),
    File("etc/group", b"root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"),
    File("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files dns\n"),
)
_LIBC = ("libc6", "libcrypt1")
_SHELL = (*_LIBC, "base-files", "bash", "dash", "coreutils", "grep", "sed", "findutils", "hostname", "libacl1", "libattr1", "libgmp10",
          "libpcre2-8-0", "libselinux1", "libtinfo6")  # fmt: skip
_SH = (Link("usr/bin/sh", "dash"),)


class Recipe(NamedTuple):
    packages: tuple[str, ...]
    entries: tuple[Entry, ...] = ()  # what the packages' scripts would have made
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    workdir: str = ""
    volumes: tuple[str, ...] = ()


_APPLETS = [
    "[",
    "awk",
    "base64",
    "basename",
    "cat",
    "chmod",
    "chown",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dirname",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "free",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "hostname",
    "httpd",
    "id",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mktemp",
    "mv",
    "nc",
    "nproc",
    "ps",
    "printf",
    "pwd",
    "readlink",
    "rm",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tail",
    "tar",
    "tee",
    "test",
    "timeout",
    "top",
    "touch",
    "tr",
    "true",
    "uname",
    "uniq",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
]
RECIPES = {
    "debian": Recipe(_SHELL, _SH, cmd=("bash",)),
    "ubuntu": Recipe(_SHELL, _SH, cmd=("bash",)),
    "busybox": Recipe(
        ("busybox-static",),
        tuple(Link(f"usr/bin/{name}", "busybox") for name in _APPLETS),
        cmd=("sh",),
    ),
    "python": Recipe(
        (*_SHELL, "python3", "python3-minimal", "libpython3-stdlib", "python3.11", "python3.11-minimal", "libpython3.11-minimal",
         "libpython3.11-stdlib", "libexpat1", "zlib1g", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1",
         "libncursesw6", "libreadline8", "media-types"),
        (*_SH, Link("usr/bin/python", "python3")),
        cmd=("python3",),
    ),
    "redis": Recipe(
        (*_SHELL, "redis-server", "redis-tools", "util-linux", "libcap-ng0", "libatomic1", "libjemalloc2", "liblzf1", "libssl3", "libsystemd0",
         "libcap2", "libgcrypt20", "libgpg-error0", "liblzma5", "libzstd1", "liblz4-1", "libhiredis0.14", "liblua5.1-0", "lua-bitop",
         "lua-cjson", "libstdc++6", "libgcc-s1"),
        (
            *_SH,
            File("etc/passwd", _ACCOUNTS[0].data + b"redis:x:999:999::/data:/bin/sh\n"),
            File("etc/group", _ACCOUNTS[1].data + b"redis:x:999:\n"),
            Folder("data"),
            # What the official image's entrypoint does: gives the data to its own account and becomes it, when it is root.
            File(
                "usr/local/bin/docker-entrypoint.sh",
                b'#!/bin/sh\nset -e\nif [ "$(id -u)" = 0 ]; then\n  find . \\! -user redis -exec chown redis "{}" +\n'
                b'  exec setpriv --reuid=redis --regid=redis --clear-groups "$0" "$@"\nfi\nexec "$@"\n',
                0o755,
            ),
        ),
        entrypoint=("docker-entrypoint.sh",),
        cmd=("redis-server", "--save", "", "--dir", "/data"),
        workdir="/data",
    ),
    "dpkg": Recipe(  # Debian with what installs packages into it
        (*_SHELL, "dpkg", "libc-bin", "tar", "libbz2-1.0", "liblzma5", "libmd0", "libzstd1", "zlib1g", "diffutils", "debconf", "perl-base"),
        (*_SH, File("var/lib/dpkg/status", b""), Folder("var/lib/dpkg/info"), Folder("var/lib/dpkg/updates"),
         Folder("var/lib/dpkg/triggers")),
        cmd=("bash",),
    ),
    "nginx": Recipe(
        (*_SHELL, "nginx", "nginx-common", "libssl3", "zlib1g"),
        (
            *_SH,
            Folder("run", 0o1777),  # any user's, like a job's: a volume keeps the rights of the folder below it
            Folder("var/lib/nginx", 0o1777),
            Link("etc/nginx/sites-enabled/default", "/etc/nginx/sites-available/default"),
            Link("var/www/html/index.html", "/usr/share/nginx/html/index.html"),
            Link("var/log/nginx/access.log", "/dev/stdout"),
            Link("var/log/nginx/error.log", "/dev/stderr"),
        ),
        cmd=("nginx", "-g", "daemon off;"),
        volumes=("/run", "/var/lib/nginx"),
    ),
}  # fmt: skip


def debian_image(name: str, tag: str | None = None) -> ImageArchive:
    """Needs apt with its lists. Raises CalledProcessError when a package cannot be had."""
    recipe = RECIPES[name]
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    entries: dict[str, Entry] = {
        entry.path: entry for link in _MERGED for entry in (Folder(f"usr/{link}"), Link(link, f"usr/{link}"))
    }
    entries |= {path: Folder(path) for path in ("dev", "proc", "sys", "root", "run", "work")}
    entries |= {path: Folder(path, 0o1777) for path in ("tmp", "var/tmp")}
    for package in fetched(recipe.packages):
        entries |= {entry.path: entry for entry in unpacked(package)}
    entries |= {entry.path: entry for entry in (*_ACCOUNTS, *recipe.entries)}
    config = ImageConfig(architecture, env=(_PATH, "LANG=C.UTF-8"), volumes=recipe.volumes, cmd=recipe.cmd)
    config = replace(config, entrypoint=recipe.entrypoint, workdir=recipe.workdir)
    return image_archive(tag or f"{name}:latest", with_folders(entries), config)


_fetched: dict[str, bytes] = {}  # images share packages, and apt is slow to begin


def fetched(packages: Sequence[str]) -> list[bytes]:
    """The packages' files, as Debian's archive has them."""
    missing = [name for name in packages if name not in _fetched]
    if missing:
        with tempfile.TemporaryDirectory(prefix="torg-packages-") as folder:
            Path(folder).chmod(0o777)  # apt fetches as a user of its own; a new folder of ours, gone after this
            run = ["apt-get", "download", "-qq", *missing]
            subprocess.run(run, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=300)
            for path in Path(folder).glob("*.deb"):
                _fetched[path.name.partition("_")[0]] = path.read_bytes()
    return [_fetched[name] for name in packages]


def unpacked(package: bytes) -> list[Entry]:
    done = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", "/dev/stdin"], input=package, capture_output=True, check=True, timeout=60
    )
    found: list[Entry] = []
    files: dict[str, File] = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            path = merged(member.name.removeprefix("./").strip("/"))
            if not path or path in _MERGED or f"{path}/".startswith(_NOT_NEEDED):
                continue
            if member.isdir():
                found.append(Folder(path, member.mode & 0o777))
            elif member.issym():
                found.append(Link(path, member.linkname))
            elif member.islnk() and (other := files.get(merged(member.linkname.removeprefix("./")))):
                found.append(File(path, other.data, other.mode))
            elif member.isfile() and (data := archive.extractfile(member)) is not None:
                files[path] = File(path, data.read(), member.mode & 0o777)
                found.append(files[path])
    return found


def merged(path: str) -> str:
    top, slash, _ = path.partition("/")
    return f"usr/{path}" if slash and top in _MERGED else path


def with_folders(entries: dict[str, Entry]) -> list[Entry]:
    """Each entry after the folders that it is in; those that no package names are made."""
    for path in list(entries):
        for parent in Path(path).parents:
            if str(parent) != ".":
                entries.setdefault(str(parent), Folder(str(parent)))
    return [entries[path] for path in sorted(entries)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes an image of a well-known name from Debian's packages.")
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tag", help="default: NAME:latest")
    arguments = parser.parse_args()
    try:
        image = debian_image(arguments.name, arguments.tag)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"Debian's packages cannot be had here: {error}; try apt-get update\n")
        return 1
    arguments.output.write_bytes(image.data)
    sys.stdout.write(f"{image.tag} {image.image_id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
