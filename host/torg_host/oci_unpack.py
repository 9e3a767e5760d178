# Paths are text here: trees have hundred thousands of members.
# ruff: noqa: PTH101, PTH102, PTH108, PTH112, PTH113, PTH114, PTH115, PTH120, PTH123, PTH208, PTH211
"""Layers of an image applied below one directory, as a container engine would, for machines without an engine.

The directory belongs to the caller alone while this runs. Names are resolved inside of it: an absolute link, or one that climbs, means
the image's own root. What no container can use here (devices, set-user-id bits) is left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from pathlib import Path

from torg_host.archive_read import CHUNK_BYTES, MAX_HEADER_BYTES
from torg_host.oci_archive import HashingReader, ImageFile, image_invalid, image_too_large, layer_content

MAX_FILES = 500_000
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_MOST_LINKS = 40
_NOBODY = 65534


def unpack_image(image: ImageFile, root: Path, max_bytes: int, first_id: int | None = None) -> None:
    """Into `root`, which exists and is empty. `first_id`: owners are kept, as ids of the host from this one on (needs root). Raises Invalid `image_archive_invalid`, TooLarge `image_too_large`; blocks for long."""
    tree = _Tree(root.resolve(), max_bytes, first_id)
    with image.path.open("rb") as file:
        for layer in image.layers:
            with layer_content(file, layer) as content:
                try:
                    tree.apply(content)
                except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError) as error:
                    raise image_invalid(f"a layer cannot be read: {error}") from error


class _Tree:
    def __init__(self, root: Path, max_bytes: int, first_id: int | None) -> None:
        self._root, self._max_bytes, self._first_id = str(root), max_bytes, first_id
        self._bytes = self._files = 0
        self._own(self._root)

    def apply(self, content: HashingReader) -> None:
        made: set[str] = set()  # by this very layer: whiteouts are about those below
        content.header_budget = MAX_HEADER_BYTES
        with tarfile.open(fileobj=content, mode="r:") as tar:  # type: ignore[call-overload]  # a reader is enough
            while (info := tar.next()) is not None:
                content.header_budget = None
                tar.members = []  # tarfile remembers every member otherwise
                self._count(info)
                self._member(tar, info, made)
                content.header_budget = MAX_HEADER_BYTES
            content.header_budget = None

    def _count(self, info: tarfile.TarInfo) -> None:
        self._files += 1
        self._bytes += info.size
        if self._bytes > self._max_bytes or self._files > MAX_FILES:
            raise image_too_large(self._max_bytes)

    def _member(self, tar: tarfile.TarFile, info: tarfile.TarInfo, made: set[str]) -> None:
        parts = [part for part in info.name.split("/") if part not in {"", "."}]
        if not parts:
            return
        if ".." in parts or "\0" in info.name:
            raise ValueError(f"a path with ..: {info.name}")
        folder, name = self._folder(parts[:-1]), parts[-1]
        place = f"{folder}/{name}"
        if name == _OPAQUE:
            self._empty(folder, made)
        elif name.startswith(_WHITEOUT):
            _remove(f"{folder}/{name.removeprefix(_WHITEOUT)}")
        else:
            self._make(tar, info, place)
            made.add(place)

    def _make(self, tar: tarfile.TarFile, info: tarfile.TarInfo, place: str) -> None:
        mode = info.mode & 0o777
        if info.isdir():
            if os.path.islink(place) or not os.path.isdir(place):
                _remove(place)
                os.mkdir(place)
            self._own(place, info.uid, info.gid)
            os.chmod(place, mode | 0o700 | info.mode & stat.S_ISVTX)
            return
        if info.issym():
            _remove(place)
            os.symlink(info.linkname, place)
            self._own(place, info.uid, info.gid)
        elif info.islnk():
            parts = [part for part in info.linkname.split("/") if part not in {"", "."}]
            source = f"{self._folder(parts[:-1])}/{parts[-1]}"
            if ".." in parts or not (os.path.islink(source) or os.path.isfile(source)):
                raise ValueError(f"a link to what is not there: {info.linkname}")
            if source != place:
                _remove(place)
                os.link(source, place, follow_symlinks=False)
        elif info.isreg() and (data := tar.extractfile(info)) is not None:
            _remove(place)
            with open(place, "xb") as file:
                shutil.copyfileobj(data, file, CHUNK_BYTES)
            self._own(place, info.uid, info.gid)
            os.chmod(place, mode | 0o400)

    def _folder(self, parts: list[str]) -> str:
        """The real directory of these names inside the root, made where it is missing; links are followed inside only."""
        waiting, at, links = list(reversed(parts)), self._root, 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                at = at if at == self._root else os.path.dirname(at)
                continue
            place = f"{at}/{part}"
            if os.path.islink(place):
                links += 1
                if links > _MOST_LINKS:
                    raise ValueError("links in a circle")
                target = os.readlink(place)
                at = self._root if target.startswith("/") else at
                waiting += [item for item in reversed(target.split("/")) if item not in {"", "."}]
                continue
            if not os.path.isdir(place):
                _remove(place)
                os.mkdir(place, 0o755)
                self._own(place)
            at = place
        return at

    def _own(self, place: str, uid: int = 0, gid: int = 0) -> None:
        """Ids that no container has become nobody's."""
        if self._first_id is not None:
            uid, gid = (one if 0 <= one < _NOBODY else _NOBODY for one in (uid, gid))
            os.chown(place, self._first_id + uid, self._first_id + gid, follow_symlinks=False)

    def _empty(self, folder: str, made: set[str]) -> None:
        for name in os.listdir(folder):
            place = f"{folder}/{name}"
            if place not in made and not any(item.startswith(f"{place}/") for item in made):
                _remove(place)


def _remove(place: str) -> None:
    if os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place)
