"""Directory trees as single files: reproducible tar + zstd, and unpacking that trusts nothing in the archive.

`pack` gives equal bytes for equal trees (same zstandard version): sorted names, no times, no owners, modes 644 or 755.
Both directions stream, in constant memory but for one name per member.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import zstandard

from torg_host.archive_names import check_link, check_name, check_place, note_place
from torg_host.ignore import GIT_FILE, TORG_FILE, Rule, left_out, parse_rules
from torg_protocol.errors import Conflict, Invalid, TooLarge

CHUNK_BYTES = 1 << 20
ZSTD_LEVEL = 3
MAX_WINDOW_BYTES = 1 << 27  # what `zstd --ultra` may ask for; a header that wants more is refused, not allocated
MAX_HEADER_BYTES = 1 << 18  # tar's own headers between two members (long names); tarfile would read gigabytes of them
MAX_IGNORE_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PackedTree:
    digest: str  # "sha256:..." of the file that was written
    size_bytes: int  # of that file
    files: int
    unpacked_bytes: int
    skipped: tuple[str, ...] = ()  # with skip_odd: what could not be packed


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What an archive may hold. The defaults fit workspaces; outputs and checkpoints take the job's disk limit."""

    max_files: int = 100_000
    max_bytes: int = 64 << 30
    max_name_bytes: int = 1024
    max_depth: int = 64


@dataclass(frozen=True, slots=True)
class UnpackedTree:
    files: int
    unpacked_bytes: int


def sha256_file(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def pack(
    root: Path,
    destination_file: Path,
    *,
    ignore: bool = True,
    skip_odd: bool = False,
    limits: UnpackLimits | None = None,
) -> PackedTree:
    """Writes the tree below `root` to `destination_file`. Safe on a tree that a hostile process changes meanwhile.

    `ignore` applies ignore files (see `torg_host.ignore`). Links out of the tree, sockets, devices and pipes raise
    `archive_link_outside` or `archive_member_kind`; with `skip_odd` they are left out and listed. `archive_changed` when
    a file shrank while it was read: try again. No file is left behind on failure.
    """
    limits = limits or UnpackLimits()
    hashing: _HashingWriter | None = None
    try:
        with destination_file.open("wb") as file:
            hashing = _HashingWriter(file)
            compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
            with (
                compressor.stream_writer(cast("IO[bytes]", hashing), closefd=False) as stream,
                tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK_BYTES) as tar,
            ):
                packer = _Packer(tar, limits, skip_odd=skip_odd)
                packer.add_tree(root, ignore=ignore)
    except BaseException:
        destination_file.unlink(missing_ok=True)
        raise
    return PackedTree(
        "sha256:" + hashing.sha256.hexdigest(), hashing.size_bytes, packer.files, packer.bytes, tuple(packer.skipped)
    )


def unpack(source_file: Path, destination_dir: Path, limits: UnpackLimits | None = None) -> UnpackedTree:
    """Unpacks an archive that may be hostile. `destination_dir` must be absent or empty, and not a mount point itself.

    All or nothing: members go to a sibling directory that is renamed at the end. Refusals name the member and have these
    codes: archive_absolute_path, archive_parent_path, archive_link_outside, archive_through_link, archive_member_kind,
    archive_setuid, archive_duplicate, archive_name_too_long, archive_too_deep, archive_too_many_files,
    archive_too_large, archive_broken; and archive_destination_exists, disk_full.
    """
    limits = limits or UnpackLimits()
    if destination_dir.exists() and (not destination_dir.is_dir() or any(destination_dir.iterdir())):
        raise Conflict(
            "unpacking needs an absent or empty directory",
            code="archive_destination_exists",
            field="destination_dir",
            value=str(destination_dir),
        )
    parent = destination_dir.absolute().parent
    staging = Path(tempfile.mkdtemp(prefix=f".{destination_dir.name}.unpacking-", dir=parent))
    try:
        with source_file.open("rb") as file:
            unpacked = _unpack_stream(file, staging, limits)
        staging.chmod(0o755)
        staging.rename(destination_dir)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise TooLarge("no space left to unpack", code="disk_full", field="destination_dir") from error
        raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return unpacked


# --- packing ---------------------------------------------------------------------------------------------------------


class _HashingWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


class _Packer:
    """Walks by directory descriptors and never through a link, so a job that swaps a directory for a link while the
    agent packs as root gains nothing."""

    def __init__(self, tar: tarfile.TarFile, limits: UnpackLimits, *, skip_odd: bool) -> None:
        self._tar = tar
        self._limits = limits
        self._skip_odd = skip_odd
        self._ignore_file: str | None = None
        self.files = 0
        self.members = 0
        self.bytes = 0
        self.skipped: list[str] = []

    def add_tree(self, root: Path, *, ignore: bool) -> None:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if ignore:
                self._ignore_file = TORG_FILE if (root / TORG_FILE).is_file() else GIT_FILE
            self._add_directory(descriptor, "", ())
        finally:
            os.close(descriptor)

    def _add_directory(self, descriptor: int, path: str, rules: tuple[Rule, ...]) -> None:
        if path.count("/") > self._limits.max_depth:
            raise Invalid("directories nest too deep to pack", code="archive_too_deep", field="member", value=path)
        rules += self._rules_here(descriptor, path)
        for name in sorted(os.listdir(descriptor), key=os.fsencode):
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            member = path + name
            if self._ignore_file and left_out(member, stat.S_ISDIR(status.st_mode), rules):
                continue
            try:
                self._add_member(descriptor, name, member, status, rules)
            except Invalid as refusal:
                if not self._skip_odd or refusal.code not in {"archive_link_outside", "archive_member_kind"}:
                    raise
                self.skipped.append(member)

    def _add_member(self, parent: int, name: str, member: str, status: os.stat_result, rules: tuple[Rule, ...]) -> None:
        self.members += 1
        self._count(member, 0)
        if stat.S_ISDIR(status.st_mode):
            self._tar.addfile(_member_info(member, tarfile.DIRTYPE, 0o755))
            descriptor = _open_below(parent, name, member, os.O_DIRECTORY)
            try:
                self._add_directory(descriptor, member + "/", rules)
            finally:
                os.close(descriptor)
        elif stat.S_ISREG(status.st_mode):
            self._add_file(parent, name, member)
        elif stat.S_ISLNK(status.st_mode):
            info = _member_info(member, tarfile.SYMTYPE, 0o755)
            info.linkname = os.readlink(name, dir_fd=parent)
            check_link(member, info.linkname)
            self._tar.addfile(info)
        else:
            raise Invalid(
                "only files, directories and links can be packed",
                code="archive_member_kind",
                field="member",
                value=member,
                hint="Delete it or name it in .torgignore.",
            )

    def _add_file(self, parent: int, name: str, member: str) -> None:
        # O_NONBLOCK: should it have become a pipe since the stat, opening must not hang.
        with os.fdopen(_open_below(parent, name, member, os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _changed(member)
            info = _member_info(member, tarfile.REGTYPE, 0o755 if status.st_mode & 0o111 else 0o644)
            info.size = status.st_size
            self._count(member, info.size)
            try:
                self._tar.addfile(info, file)
            except OSError as error:
                if error.errno is None:  # tarfile's "unexpected end of data"
                    raise _changed(member) from error
                raise
        self.files += 1

    def _rules_here(self, descriptor: int, path: str) -> tuple[Rule, ...]:
        if self._ignore_file is None:
            return ()
        try:
            opened = os.open(self._ignore_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
        except OSError:
            return ()
        with os.fdopen(opened, "rb") as file:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                return ()
            return parse_rules(file.read(MAX_IGNORE_FILE_BYTES).decode(errors="replace"), path)

    def _count(self, member: str, size: int) -> None:
        self.bytes += size
        if self.members > self._limits.max_files:
            raise _too_many(self._limits.max_files, member)
        if self.bytes > self._limits.max_bytes:
            raise _too_large(self._limits.max_bytes, member)


def _open_below(parent: int, name: str, member: str, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=parent)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.ENXIO}:
            raise _changed(member) from error
        raise


def _member_info(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime, info.uid, info.gid = kind, mode, 0, 0, 0
    return info


# --- unpacking -------------------------------------------------------------------------------------------------------


class _ForwardReader:
    """What tarfile needs of a file, over a stream: reads, and seeks forward. `header_budget` bounds what tarfile may read
    between two members; without it a single hostile header grows until memory ends."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position = 0
        self.header_budget: int | None = MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        if self.header_budget is not None:
            self.header_budget -= size
            if self.header_budget < 0:
                raise tarfile.ReadError("headers too large")
        pieces = []
        while size > 0 and (piece := self._stream.read(min(size, CHUNK_BYTES))):
            pieces.append(piece)
            size -= len(piece)
            self._position += len(piece)
        return b"".join(pieces)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        while self._position < position:
            piece = self._stream.read(min(position - self._position, CHUNK_BYTES))
            if not piece:
                raise tarfile.ReadError("unexpected end of data")
            self._position += len(piece)


def _unpack_stream(file: BinaryIO, staging: Path, limits: UnpackLimits) -> UnpackedTree:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(file, read_across_frames=False, closefd=False) as stream:
            reader = _ForwardReader(stream)
            with tarfile.open(fileobj=reader, mode="r:") as tar:  # type: ignore[call-overload]  # a reader is enough
                return _unpack_members(tar, reader, staging, limits)
    except (tarfile.TarError, zstandard.ZstdError, ValueError, EOFError, OverflowError, RecursionError) as error:
        raise Invalid(f"the archive cannot be read: {error}", code="archive_broken") from error


def _unpack_members(tar: tarfile.TarFile, reader: _ForwardReader, staging: Path, limits: UnpackLimits) -> UnpackedTree:
    seen: dict[str, bytes] = {}
    files = total = 0
    for info in _members(tar, reader):
        name = check_name(info.name, limits.max_name_bytes, limits.max_depth)
        if name == "":
            continue  # the tree's own root, which some packers write
        check_place(name, info.type, seen)
        if len(seen) >= limits.max_files:
            raise _too_many(limits.max_files, name)
        total += info.size
        if total > limits.max_bytes:
            raise _too_large(limits.max_bytes, name)
        if info.mode & 0o6000:
            raise Invalid("set-user-id files are refused", code="archive_setuid", field="member", value=name)
        note_place(name, info.type, seen)
        files += _unpack_member(tar, info, name, staging)
    return UnpackedTree(files, total)


def _members(tar: tarfile.TarFile, reader: _ForwardReader) -> Iterator[tarfile.TarInfo]:
    while (info := tar.next()) is not None:
        reader.header_budget = None
        yield info
        reader.header_budget = MAX_HEADER_BYTES
        tar.members = []  # type: ignore[attr-defined]  # not in the stubs; tarfile remembers every member otherwise


def _unpack_member(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, staging: Path) -> int:
    target = staging / name
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if info.isdir():
        target.mkdir(mode=0o755, exist_ok=True)
        return 0
    if info.issym():
        check_link(name, info.linkname)
        target.symlink_to(info.linkname)
        return 0
    if info.type not in {tarfile.REGTYPE, tarfile.AREGTYPE} or info.issparse():
        raise Invalid(
            "only files, directories and symbolic links are unpacked",
            code="archive_member_kind",
            field="member",
            value=name,
        )
    content = tar.extractfile(info)
    if content is None:
        raise Invalid("a file without content", code="archive_broken", field="member", value=name)
    with target.open("xb") as file:
        shutil.copyfileobj(content, file, CHUNK_BYTES)
    target.chmod(0o755 if info.mode & 0o111 else 0o644)
    return 1


def _too_many(limit: int, member: str) -> TooLarge:
    return TooLarge(
        f"more than {limit} members", code="archive_too_many_files", field="member", value=member, limit_files=limit
    )


def _too_large(limit: int, member: str) -> TooLarge:
    return TooLarge(
        f"more than {limit} bytes unpacked", code="archive_too_large", field="member", value=member, limit_bytes=limit
    )


def _changed(member: str) -> Conflict:
    return Conflict("a file changed while it was packed", code="archive_changed", field="member", value=member)
