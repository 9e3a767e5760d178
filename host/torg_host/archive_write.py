"""Walks a directory tree into a tar stream, the same bytes for the same tree. See `archive.pack`."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from pathlib import Path
from typing import BinaryIO

from torg_host.archive_pieces import PieceWriter
from torg_host.archive_rules import UnpackLimits, changed, check_link, too_large, too_many
from torg_host.ignore import GIT_FILE, TORG_FILE, Rule, left_out, parse_rules
from torg_protocol.errors import Invalid

MAX_IGNORE_FILE_BYTES = 1 << 20


class TreeWalk:
    """Walks by directory descriptors and never through a link, so a job that swaps a directory for a link while the
    agent packs as root gains nothing. What it meets is counted here, and used by who derives from it."""

    def __init__(self, limits: UnpackLimits, *, skip_odd: bool = False) -> None:
        self._limits = limits
        self._skip_odd = skip_odd
        self._ignore_file: str | None = None
        self.files = 0
        self.members = 0
        self.bytes = 0
        self.skipped: list[str] = []

    def _directory(self, member: str) -> None:
        """A directory begins."""

    def _link(self, member: str, target: str) -> None:
        """A link that does not leave the tree."""

    def _file(self, member: str, file: BinaryIO, status: os.stat_result) -> None:
        """A regular file, open for reading; counted already."""

    def add_file(self, path: Path) -> None:
        """One file as the whole tree; a link to it counts as the file."""
        real = path.resolve()
        descriptor = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.members += 1
            self._add_file(descriptor, real.name, path.name)
        finally:
            os.close(descriptor)

    def add_tree(self, root: Path, *, ignore: bool) -> None:
        if root.is_file():
            self.add_file(root)
            return
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if ignore:
                self._ignore_file = TORG_FILE if os.path.lexists(root / TORG_FILE) else GIT_FILE
            self._add_directory(descriptor, "", ())
        finally:
            os.close(descriptor)

    def _add_directory(self, descriptor: int, path: str, rules: tuple[Rule, ...]) -> None:
        if path.count("/") > self._limits.max_depth:
            raise Invalid("directories nest too deep to pack", code="archive_too_deep", field="member", value=path)
        rules += self._rules_here(descriptor, path)
        for name in sorted(os.listdir(descriptor), key=os.fsencode):
            member = path + name
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError as error:
                raise changed(member) from error
            except PermissionError as error:
                raise _unreadable(member, error) from error
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
            self._directory(member)
            descriptor = _open_below(parent, name, member, os.O_DIRECTORY)
            try:
                self._add_directory(descriptor, member + "/", rules)
            finally:
                os.close(descriptor)
        elif stat.S_ISREG(status.st_mode):
            self._add_file(parent, name, member)
        elif stat.S_ISLNK(status.st_mode):
            try:
                target = os.readlink(name, dir_fd=parent)
            except OSError as error:  # gone, or no link any more
                raise changed(member) from error
            try:
                check_link(member, target)
            except Invalid as refusal:
                raise Invalid(
                    "a link that leads out of the folder cannot be packed",
                    code=refusal.code,
                    field="member",
                    value=member,
                    hint=f"put there what it leads to ({target}), delete it, or name it in .torgignore",
                ) from refusal
            self._link(member, target)
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
                raise changed(member)
            self._count(member, status.st_size)
            self._file(member, file, status)
        self.files += 1

    def _rules_here(self, descriptor: int, path: str) -> tuple[Rule, ...]:
        if self._ignore_file is None:
            return ()
        member = path + self._ignore_file
        try:
            opened = os.open(self._ignore_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
        except FileNotFoundError:
            return ()
        except OSError as error:
            why = "it is a link" if error.errno == errno.ELOOP else error.strerror
            raise _rules_unreadable(member, why) from error
        try:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise _rules_unreadable(member, "it is no regular file")
            text = _read_at_most(opened, MAX_IGNORE_FILE_BYTES + 1)
        finally:
            os.close(opened)
        if len(text) > MAX_IGNORE_FILE_BYTES:
            raise _rules_unreadable(member, f"it has more than {MAX_IGNORE_FILE_BYTES >> 20} MiB")
        return parse_rules(text.decode(errors="replace"), path)

    def _count(self, member: str, size: int) -> None:
        self.bytes += size
        if self.members > self._limits.max_files:
            raise too_many(self._limits.max_files, member)
        if self.bytes > self._limits.max_bytes:
            raise too_large(self._limits.max_bytes, member)


class TreeWriter(TreeWalk):
    def __init__(self, tar: tarfile.TarFile, pieces: PieceWriter, limits: UnpackLimits, *, skip_odd: bool) -> None:
        super().__init__(limits, skip_odd=skip_odd)
        self._tar = tar
        self._pieces = pieces

    def _directory(self, member: str) -> None:
        self._tar.addfile(_member_info(member, tarfile.DIRTYPE, 0o755))
        self._pieces.after_member(member, 0)

    def _link(self, member: str, target: str) -> None:
        info = _member_info(member, tarfile.SYMTYPE, 0o755)
        info.linkname = target
        self._tar.addfile(info)
        self._pieces.after_member(member, 0)

    def _file(self, member: str, file: BinaryIO, status: os.stat_result) -> None:
        info = _member_info(member, tarfile.REGTYPE, 0o755 if status.st_mode & 0o111 else 0o644)
        info.size = status.st_size
        self._pieces.before_file(info.size)
        try:
            self._tar.addfile(info, file)
        except OSError as error:
            if error.errno is None:  # tarfile's "unexpected end of data"
                raise changed(member) from error
            raise
        self._pieces.after_member(member, info.size)


class TreeSizes(TreeWalk):
    """Only counts."""


def _read_at_most(descriptor: int, size: int) -> bytes:
    with os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read(size)


def _rules_unreadable(member: str, why: str | None) -> Invalid:
    """What it would keep at home may be a secret: nothing is packed without having read it."""
    return Invalid(
        f"this ignore file cannot be read: {why}",
        code="ignore_file_unreadable",
        field="member",
        value=member,
        hint="put a regular, readable file there, or delete it",
    )


def _open_below(parent: int, name: str, member: str, flags: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=parent)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.ENXIO}:
            raise changed(member) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise _unreadable(member, error) from error
        raise


def _unreadable(member: str, error: OSError) -> Invalid:
    return Invalid(
        f"a file of the folder cannot be read: {error.strerror}",
        code="archive_unreadable",
        field="member",
        value=member,
        hint="make it readable, or name it in .torgignore",
    )


def _member_info(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime, info.uid, info.gid = kind, mode, 0, 0, 0
    return info
