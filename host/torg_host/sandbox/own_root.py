"""A container that runs as its image was made: as its own user, root if it names none, with a root directory that it may write to.

Root is root of a user namespace whose ids are 65,536 of the host that belong to nobody: outside of the container it may do what any
plain user may. It keeps the few capabilities that programs of a system need among their own files and processes, and can gain
none. What it writes goes to a folder on the job's own disk, whose size bounds it. An image's files must carry the same ids
(`torg_host.oci_unpack` gives them), or root in there would not own them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from torg_host.disk import delete_tree
from torg_protocol.errors import Invalid

# Above what systemd and useradd give to accounts and containers, below what 32-bit signed numbers hold.
FIRST_HOST_ID, IDS = 0x7000_0000, 1 << 16
# By their numbers: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, NET_BIND_SERVICE. Not SETPCAP, SETFCAP, MKNOD, SYS_CHROOT, NET_RAW.
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
}
NAMESPACES = ("ipc", "pid", "net", "uts", "cgroup")  # beside the user's and the mounts'
_UPPER, _WORK, _TMP = "upper", "work", "upper/tmp"
_MOST_PASSWD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class OwnRoot:
    """`layer`: a folder that takes what is written; what is in it goes at the start. `image`: an unpacked image with shifted ids, or
    None, when all files come by mounts. `uid`, `gid`: in the container."""

    layer: Path
    image: Path | None = None
    uid: int = 0
    gid: int = 0
    home: str = "/root"

    @property
    def host_uid(self) -> int:
        return FIRST_HOST_ID + self.uid

    @property
    def host_gid(self) -> int:
        return FIRST_HOST_ID + self.gid

    @property
    def capabilities(self) -> dict[str, int]:
        """None for any other user, as in any system."""
        return CAPABILITIES if self.uid == 0 else {}

    def options(self, root_place: str) -> list[str]:
        """Bubblewrap's, up to its root directory. The user namespace itself is made by `user_namespace`."""
        options = [f"--unshare-{name}" for name in NAMESPACES]
        options += ["--uid", str(self.uid), "--gid", str(self.gid), "--cap-drop", "ALL"]
        for name in self.capabilities:
            options += ["--cap-add", name]
        return [*options, "--bind", root_place, "/"]

    def mount(self, place: str) -> list[str | None]:
        """For `private_root.enter`: an overlay, or without an image the folder itself."""
        image = str(self.image) if self.image is not None else None
        return [place, image, str(self.layer / _UPPER), str(self.layer / _WORK)]

    def lay_out(self) -> None:
        """Empties and makes the folder. As root; `layer`'s parent must not be a job's to write to."""
        delete_tree(self.layer)
        self.layer.mkdir(mode=0o700, parents=True)
        folders = {_UPPER: 0o755, _WORK: 0o700, _TMP: 0o1777}
        if self.image is not None and _lacks_hosts(self.image / "etc"):
            folders[f"{_UPPER}/etc"] = 0o755
        for name, mode in folders.items():
            (self.layer / name).mkdir()
            (self.layer / name).chmod(mode)
            os.chown(self.layer / name, FIRST_HOST_ID, FIRST_HOST_ID)
        if f"{_UPPER}/etc" in folders:  # engines make this file for every container, so images come without
            hosts = self.layer / _UPPER / "etc" / "hosts"
            hosts.write_text("127.0.0.1 localhost torg\n::1 localhost\n")
            os.chown(hosts, FIRST_HOST_ID, FIRST_HOST_ID)


def ids_are_shifted(root: Path) -> bool:
    """Whether an unpacked image was made for containers with a root of their own."""
    return FIRST_HOST_ID <= root.stat().st_uid < FIRST_HOST_ID + IDS


def give_to(root: Path, uid: int, gid: int) -> None:
    """What is not some id's of the container becomes this one's; what already is keeps its owner, as a volume of an engine does.
    By descriptors and never through links: the tree may hold what an earlier task planted."""
    descriptor = os.open(root, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _give(descriptor, ".", uid, gid, itself=True)
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112  not what the name leads to by now
            return
        for _, directories, files, at in os.fwalk(".", dir_fd=descriptor, follow_symlinks=False):
            for name in directories + files:
                _give(at, name, uid, gid)
    finally:
        os.close(descriptor)


def user_of(says: str, image: Path) -> tuple[int, int, str]:
    """uid, gid and home of what an image's configuration names as its user: "", "0", "1000:100", "www-data", ... Raises Invalid `image_user_unknown`."""
    user, _, group = says.partition(":")
    accounts = [line.split(":") for line in _lines(image, "etc/passwd")]
    found = next((item for item in accounts if len(item) >= 7 and user in (item[0], item[2])), None)
    if user in {"", "0", "root"}:
        found = next((item for item in accounts if len(item) >= 7 and item[2] == "0"), None)
        uid, gid = 0, 0
    elif found is not None:
        uid, gid = _id(found[2], says), _id(found[3], says)
    else:
        uid, gid = _id(user, says), 0
    if group:
        groups = [line.split(":") for line in _lines(image, "etc/group")]
        named = next((item[2] for item in groups if len(item) >= 3 and item[0] == group), group)
        gid = _id(named, says)
    home = found[5] if found is not None and found[5].startswith("/") else ("/root" if uid == 0 else "/")
    return uid, gid, home


def _id(text: str, says: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < IDS - 1:
        return int(text)
    raise Invalid(
        "the image's user is none of its accounts, nor a number that a container has",
        code="image_user_unknown",
        field="image",
        value=says,
        hint=f"USER of an image is an account of its /etc/passwd, or a number below {IDS - 1}.",
    )


def _lines(image: Path, name: str) -> list[str]:
    """Of a file of the image, which may be a link that leads out of it: then it has none."""
    path = Path(os.path.realpath(image / name))
    if not path.is_relative_to(image.resolve()) or not path.is_file() or path.stat().st_size > _MOST_PASSWD_BYTES:
        return []
    return path.read_text(errors="replace").splitlines()


def _lacks_hosts(etc: Path) -> bool:
    if etc.is_symlink() or not etc.is_dir():
        return False
    hosts = etc / "hosts"
    return not hosts.is_symlink() and (not hosts.exists() or hosts.stat().st_size == 0)


def _give(at: int, name: str, uid: int, gid: int, *, itself: bool = False) -> None:
    found = os.fstat(at) if itself else os.stat(name, dir_fd=at, follow_symlinks=False)
    if FIRST_HOST_ID <= found.st_uid < FIRST_HOST_ID + IDS:
        return
    if itself:
        os.fchown(at, uid, gid)
    else:
        os.chown(name, uid, gid, dir_fd=at, follow_symlinks=False)


__all__ = ["FIRST_HOST_ID", "IDS", "OwnRoot", "give_to", "ids_are_shifted", "user_of"]
