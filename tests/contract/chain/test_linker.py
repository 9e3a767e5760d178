"""The linker of the vault program: small C programs that run, and what a Solana program cannot have, refused with the reason."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from solders.instruction import Instruction
from solders.pubkey import Pubkey

from tests.support.svm import World

PROGRAM = Path(__file__).resolve().parents[3] / "chain" / "program"
CONSTANTS_AND_CALLS = """
typedef unsigned char u8;
typedef unsigned long u64;
extern void sol_log_(const char *, u64);
static const char *const WORDS[2] = {"from", "a constant"};
__attribute__((noinline)) static u64 second(u64 n) { sol_log_(WORDS[n], n ? 10 : 4); return n; }
u64 entrypoint(u8 *input) { return second(*(u64 *)input == 0) - 1; }
"""


def linker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vault_linker", PROGRAM / "linker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def compiled(tmp_path: Path, source: str) -> bytes:
    (tmp_path / "x.c").write_text(source)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding", "-mcpu=v2", "-Os"]
    subprocess.run([*compiler, "-fno-asynchronous-unwind-tables", "-c", "x.c", "-o", "x.o"], cwd=tmp_path, check=True)
    return (tmp_path / "x.o").read_bytes()


def test_constants_pointers_to_them_inner_calls_and_syscalls_work(tmp_path: Path) -> None:
    world, address = World(), Pubkey.new_unique()
    world.svm.add_program(address, linker().link(compiled(tmp_path, CONSTANTS_AND_CALLS)))

    transaction = world.sign([Instruction(address, b"", [])], [world.bank])
    logs = world.svm.simulate_transaction(transaction).meta().logs()

    assert "Program log: a constant" in logs
    assert f"Program {address} success" in logs


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("int other(void) { return 0; }", "no function named entrypoint"),
        ("long counter; long entrypoint(char *i) { return counter += *i; }", r"section \.bss: writable data"),
        ("extern long counter; long entrypoint(char *i) { return counter + *i; }", "'counter': no such data"),
        ("int count = 5; int entrypoint(char *i) { return count += *i; }", r"section \.data: writable data"),
        ("long missing(long); long entrypoint(char *i) { return missing(*i) + 1; }", "undefined function 'missing'"),
    ],
    ids=["no entrypoint", "a writable global", "data of elsewhere", "writable data", "an unknown function"],
)
def test_what_a_program_cannot_have(tmp_path: Path, source: str, reason: str) -> None:
    link = linker()

    with pytest.raises(link.LinkError, match=reason):
        link.link(compiled(tmp_path, source))


@pytest.mark.parametrize("junk", [b"", b"\x7fELF", bytes(200), b"MZ" + bytes(300)])
def test_what_is_no_object_file(junk: bytes) -> None:
    link = linker()

    with pytest.raises(link.LinkError, match="not a little-endian 64-bit eBPF object"):
        link.link(junk)
