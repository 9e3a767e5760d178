"""What an archive may hold and where its members may go. Pure; each refusal has its own code and names the member.

Why links stay inside by these rules: a link is created in a real directory (`check_place` refuses to go through links), its
target is a row of `..` that does not climb above the root followed by plain names, and every link on the way obeys the same.
`..` after a plain name is refused since that name may be a link: `here -> .` and then `here/..` would leave the tree.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

from torg_protocol.errors import Conflict, Invalid, TooLarge

MAX_COMPONENT_BYTES = 255
IMPLIED = b"implied"  # a directory that no member named, only the path of another


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What an archive may hold. The defaults fit workspaces; outputs and checkpoints take the job's disk limit."""

    max_files: int = 100_000
    max_bytes: int = 64 << 30
    max_name_bytes: int = 1024
    max_depth: int = 64


def check_name(name: str, max_name_bytes: int, max_depth: int) -> str:
    """The member's path relative to the root, without `.` parts; "" for the root itself."""
    if name.startswith("/"):
        raise _refused("archive_absolute_path", "an absolute path", name)
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise _refused("archive_parent_path", "a path with ..", name)
    lengths = [len(part.encode(errors="surrogateescape")) for part in parts]
    if sum(lengths) + len(lengths) > max_name_bytes or max(lengths, default=0) > MAX_COMPONENT_BYTES:
        raise _refused("archive_name_too_long", "an overlong name", name[:80] + "...")
    if len(parts) > max_depth:
        raise _refused("archive_too_deep", "directories nested too deep", name)
    if any("\0" in part for part in parts):
        raise _refused("archive_broken", "a name with a zero byte", name)
    return "/".join(parts)


def check_place(name: str, kind: bytes, seen: Mapping[str, bytes]) -> None:
    """Refuses a second member of the same name, and one below something that is not a directory."""
    if name in seen and not (seen[name] == IMPLIED and kind == tarfile.DIRTYPE):
        raise _refused("archive_duplicate", "the same name twice", name)
    for parent in _parents(name):
        match seen.get(parent, IMPLIED):
            case tarfile.SYMTYPE:
                raise _refused("archive_through_link", "a path through a link", name)
            case kind_of_parent if kind_of_parent not in {tarfile.DIRTYPE, IMPLIED}:
                raise _refused("archive_broken", "a path through a file", name)


def note_place(name: str, kind: bytes, seen: dict[str, bytes]) -> None:
    """Remembers the member and the directories that it makes on its way."""
    seen[name] = kind
    for parent in _parents(name):
        seen.setdefault(parent, IMPLIED)


def check_link(name: str, target: str) -> None:
    """`target` of the symbolic link `name`, both as in the archive."""
    parts = [part for part in target.split("/") if part not in {"", "."}]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    outside = target.startswith("/") or not target or climbs > name.count("/") or ".." in parts[climbs:]
    if outside or "\0" in target:
        raise _refused("archive_link_outside", "a link that leaves the tree", name, target=target)


def _refused(code: str, what: str, member: str, **data: str) -> Invalid:
    return Invalid(f"the archive holds {what}", code=code, field="member", value=member, **data)


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def too_many(limit: int, member: str) -> TooLarge:
    return TooLarge(
        f"more than {limit} members", code="archive_too_many_files", field="member", value=member, limit_files=limit
    )


def too_large(limit: int, member: str) -> TooLarge:
    return TooLarge(
        f"more than {limit} bytes unpacked", code="archive_too_large", field="member", value=member, limit_bytes=limit
    )


def changed(member: str) -> Conflict:
    return Conflict(
        "a file changed while it was packed",
        code="archive_changed",
        field="member",
        value=member,
        hint="nothing was submitted: run it again when nothing writes there, or name it in .torgignore",
    )
