"""The table says the same in both its forms, and what must be refused is in it. That the kernel obeys is tested by probes."""

from __future__ import annotations

import json
import struct

from torg_host.seccomp import ABSENT, ALLOWED, ARGUMENT_RULES, DENIED, bpf_program, docker_profile


def test_no_call_is_in_two_lists() -> None:
    names = [*ALLOWED, *DENIED, *ABSENT, *{rule.name for rule in ARGUMENT_RULES}]

    assert len(names) == len(set(names))


def test_the_dangerous_ones_are_denied() -> None:
    dangerous = {
        *("io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl", "add_key", "request_key", "userfaultfd"),
        *("ptrace", "process_vm_readv", "process_vm_writev", "bpf", "perf_event_open", "unshare", "setns"),
        *("mount", "umount2", "move_mount", "open_tree", "fsopen", "fsmount", "pivot_root", "mount_setattr"),
        *("kexec_load", "init_module", "finit_module", "open_by_handle_at"),
    }

    assert dangerous <= set(DENIED)
    assert "clone3" in ABSENT


def test_the_bpf_program_is_whole_and_always_the_same() -> None:
    program = bpf_program()

    assert program == bpf_program.__wrapped__()
    assert len(program) % 8 == 0
    assert len(program) // 8 < 4096  # the kernel's limit on instructions
    code, _, _, _ = struct.unpack("HBBI", program[:8])
    assert code == 0x20  # first the architecture is loaded, since call numbers differ by it


def test_the_docker_profile_has_every_name_and_is_json() -> None:
    profile = json.loads(json.dumps(docker_profile()))

    by_action: dict[str, set[str]] = {}
    for rule in profile["syscalls"]:
        if "args" not in rule:
            by_action.setdefault(f"{rule['action']} {rule.get('errnoRet')}", set()).update(rule["names"])
    assert by_action == {
        "SCMP_ACT_ALLOW None": set(ALLOWED),
        "SCMP_ACT_ERRNO 1": set(DENIED),
        "SCMP_ACT_ERRNO 38": {"clone3"},
    }
    sockets = {
        rule["args"][0]["value"]
        for rule in profile["syscalls"]
        if rule["names"] == ["socket"] and rule["action"] == "SCMP_ACT_ALLOW"
    }
    assert sockets == {1, 2, 10, 16}
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
