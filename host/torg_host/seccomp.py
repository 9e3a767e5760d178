"""Which system calls a job may make. One table, two forms: a BPF program for bubblewrap, JSON for container engines.

An allow-list. What is known and dangerous answers EPERM, so that a program can tell; what is unknown answers ENOSYS, so that a C
library falls back (glibc does for clone3, and for whatever the next kernel brings). Of a call's arguments only those in registers
can be looked at, which is why clone3 (flags in memory) is not there at all, and `clone` is, without the namespace flags.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import tempfile
from dataclasses import dataclass
from typing import Any, Literal

from torg_protocol.errors import Unavailable


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
NAMESPACE_FLAGS = 0x7E020000
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. Not AF_VSOCK, the door from a virtual machine to its host, nor AF_PACKET, AF_ALG.
SOCKET_FAMILIES = (1, 2, 10, 16)
# PER_LINUX, UNAME26, their combination with 32 bits, and the query: what debuggers and old programs ask for.
PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)

# Escapes, sight of other processes, and large rarely fuzzed parts of the kernel: EPERM.
DENIED = _names(
    """
    acct add_key adjtimex bpf chroot clock_adjtime clock_settime create_module delete_module fanotify_init
    finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module io_uring_enter io_uring_register
    io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie migrate_pages XX
    mount mount_setattr move_mount move_pages name_to_handle_at nfsservctl open_by_handle_at open_tree
    perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace
    query_module quotactl quotactl_fd reboot request_key set_mempolicy_home_node setdomainname sethostname setns
    settimeofday stime swapoff swapon _sysctl sysfs syslog umount umount2 unshare uselib userfaultfd vhangup
    vm86 vm86old
    """
)

# Known, and better answered with "no such call" than with a refusal: programs have a fallback for exactly that.
ABSENT = ("clone3",)

ALLOWED = _names(
    """
    accept accept4 access alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chown32
    clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close
    close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group
    faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown
    fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
    futex_waitv futex_wake futimesat get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents
    getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit
    getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
    io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule
    landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listxattr
    llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack mbind membarrier
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
    mq_unlink mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat _newselect
    open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll
    ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64
    pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg
    remap_file_pages removexattr rename renameat renameat2 restart_syscall riscv_flush_icache riscv_hwprobe
    rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
    sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
    seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg
    sendto set_mempolicy set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32
    setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr
    shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigpending sigprocmask sigreturn
    socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2
    syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64
    timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime utimensat
    utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
    """
)


@dataclass(frozen=True, slots=True)
class ArgumentRule:
    """A verdict on `name` where its first argument, compared by `operator`, fits. The rules of one call exclude each other."""

    name: str
    allow: bool
    operator: Literal["EQ", "GT", "MASKED_EQ"]
    value: int  # for MASKED_EQ the mask
    masked_value: int = 0


ARGUMENT_RULES = (
    ArgumentRule("clone", True, "MASKED_EQ", NAMESPACE_FLAGS, 0),
    *(ArgumentRule("clone", False, "MASKED_EQ", 1 << bit, 1 << bit) for bit in range(32) if NAMESPACE_FLAGS & 1 << bit),
    *(ArgumentRule("socket", family in SOCKET_FAMILIES, "EQ", family) for family in range(max(SOCKET_FAMILIES) + 1)),
    ArgumentRule("socket", False, "GT", max(SOCKET_FAMILIES)),
    *(ArgumentRule("personality", True, "EQ", value) for value in PERSONALITIES),
)


@functools.cache
def bpf_program() -> bytes:
    """The filter as bubblewrap's `--seccomp` takes it, for this machine's architecture; any other ABI (x32, i386) is killed.

    Needs libseccomp 2 and pyseccomp (the node's and the marketplace's extras); Unavailable `seccomp_unavailable` without.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        raise Unavailable(
            f"the seccomp filter cannot be built: {error}",
            code="seccomp_unavailable",
            hint="Install libseccomp2 (Debian package) and pyseccomp (pip).",
        ) from error
    permitted, refused = pyseccomp.ALLOW, pyseccomp.ERRNO(errno.EPERM)
    program = pyseccomp.SyscallFilter(defaction=pyseccomp.ERRNO(errno.ENOSYS))
    calls = [(name, permitted) for name in ALLOWED] + [(name, refused) for name in DENIED]
    for name, verdict in calls:
        # A call that this architecture, or this libseccomp, does not know gets the default answer.
        with contextlib.suppress(OSError, ValueError):
            program.add_rule(verdict, name)
    for rule in ARGUMENT_RULES:
        argument = pyseccomp.Arg(0, getattr(pyseccomp, rule.operator), rule.value, rule.masked_value)
        program.add_rule(permitted if rule.allow else refused, rule.name, argument)
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def docker_profile() -> dict[str, Any]:
    """The same rules as an engine's seccomp profile. Engines before 22 ignore `defaultErrnoRet` and answer EPERM there too."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": [
            {"names": list(ALLOWED), "action": "SCMP_ACT_ALLOW"},
            {"names": list(DENIED), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM},
            {"names": list(ABSENT), "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS},
            *map(_docker_rule, ARGUMENT_RULES),
        ],
    }


def _docker_rule(rule: ArgumentRule) -> dict[str, Any]:
    argument = {"index": 0, "value": rule.value, "valueTwo": rule.masked_value, "op": f"SCMP_CMP_{rule.operator}"}
    verdict = {"action": "SCMP_ACT_ALLOW"} if rule.allow else {"action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}
    return {"names": [rule.name], "args": [argument], **verdict}
