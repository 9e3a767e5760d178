# The shim's child imports this, and pathlib alone would cost it 6 ms.
# ruff: noqa: PTH123
"""A user namespace of many ids, made by root for bubblewrap to enter as a plain user: `bwrap --userns`."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWUSER = 0x10000000


def make(first_host_id: int, ids: int, host_uid: int, host_gid: int) -> int:
    """Its descriptor. Ids 0 to `ids` are the host's from `first_host_id` on; `host_uid` owns it, who thereby may enter it, and nobody
    may make a further one inside. Call as root, single-threaded, where /proc is the host's. Raises OSError."""
    ready, ready_far = os.pipe()
    go, go_far = os.pipe()
    pid = os.fork()
    if pid == 0:
        _hold(ready_far, go, go_far, host_uid, host_gid)
    os.close(ready_far)
    os.close(go)
    try:
        said = os.read(ready, 4096)
        if said != b"ready":
            raise OSError(0, f"no user namespace: {said.decode(errors='replace')}")
        for kind in ("uid", "gid"):
            with open(f"/proc/{pid}/{kind}_map", "w") as file:
                file.write(f"0 {first_host_id} {ids}")
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(go_far)
        _, status = os.waitpid(pid, 0)
    if status != 0:
        os.close(descriptor)
        raise OSError(0, "further user namespaces could not be ruled out")
    return descriptor


def _hold(ready: int, go: int, go_far: int, host_uid: int, host_gid: int) -> None:
    """In the fork: makes the namespace, and forbids further ones once its ids are known."""
    code = 1
    try:
        os.close(go_far)
        os.setgroups([])
        os.setresgid(host_gid, host_gid, host_gid)
        os.setresuid(host_uid, host_uid, host_uid)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.write(ready, b"ready")
        os.read(go, 1)
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
        code = 0
    except OSError as error:
        os.write(ready, str(error).encode()[:4000])
    finally:
        os._exit(code)
