"""The linker of the vault program: small C programs that run, and what a Solana program cannot have, refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from solders.instruction import Instruction
from solders.pubkey import Pubkey

from tests.support.c_programs import compiled, linker
from tests.support.svm import World

CONSTANTS_AND_CALLS = """
typedef unsigned char u8;
typedef unsigned long u64;
extern void sol_log_(const char *, u64);
static const char *const WORDS[2] = {"from", "a constant"};
__attribute__((noinline)) static u64 second(u64 n) { sol_log_(WORDS[n], n ? 10 : 4); return n; }
u64 entrypoint(u8 *input) { return second(*(u64 *)input == 0) - 1; }
"""


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
