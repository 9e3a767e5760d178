"""The linker on small C programs: what it builds runs in the real runtime; what a Solana program cannot have is refused by name."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.litesvm import LiteSVM
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata
from solders.transaction_status import InstructionErrorCustom, TransactionErrorInstructionError

PROGRAM = Path(__file__).resolve().parents[3] / "chain" / "program"
EBPF = ("-target", "bpfel-freestanding", "-mcpu=v2", "-fno-asynchronous-unwind-tables", "-fno-sanitize=all")


def load_linker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("program_linker", PROGRAM / "linker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


linker = load_linker()


def compiled(source: str, folder: Path, *, level: str = "-Os", target: tuple[str, ...] = EBPF) -> bytes:
    (folder / "program.c").write_text(source)
    command = [sys.executable, "-m", "ziglang", "cc", *target, level, "-c", "program.c", "-o", "program.o"]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "program.o").read_bytes()


def run(program: bytes, data: bytes = b"") -> tuple[int, list[str]]:
    """What the entry point returned, and the log."""
    svm, payer, address = LiteSVM(), Keypair(), Pubkey.new_unique()
    svm.add_program(address, program)
    svm.airdrop(payer.pubkey(), 10**9)
    message = MessageV0.try_compile(payer.pubkey(), [Instruction(address, data, [])], [], svm.latest_blockhash())
    result = svm.send_transaction(VersionedTransaction(message, [payer]))
    if not isinstance(result, FailedTransactionMetadata):
        return 0, list(result.logs())
    error = result.err()
    assert isinstance(error, TransactionErrorInstructionError), error
    assert isinstance(error.err, InstructionErrorCustom), (error.err, result.meta().logs())
    return error.err.code, list(result.meta().logs())


CALLS = """
typedef unsigned long u64; typedef unsigned char u8;
__attribute__((noinline)) static u64 deep(u64 n) { return n < 2 ? 1 : n * deep(n - 1); }
__attribute__((noinline)) u64 twice(u64 n) { return deep(n) * 2; }
u64 entrypoint(u8 *input) { return twice(5 + (input == 0)); }
"""


@pytest.mark.parametrize("level", ["-Os", "-O0", "-O2"])
def test_calls_between_functions(tmp_path: Path, level: str) -> None:
    assert run(linker.link(compiled(CALLS, tmp_path, level=level)))[0] == 240


TABLES = """
typedef unsigned long u64; typedef unsigned char u8;
extern void sol_log_(const char *, u64);
static const char hello[] = "hello from a constant";
static const u64 big[4] __attribute__((aligned(32))) = {7, 11, 13, 17};
static const char *const names[3] = {"zero", "one", "two"};
static const u64 *const indirect = &big[2];
u64 entrypoint(u8 *input) {
  volatile u64 i = *(u64 *)input + 2; // no accounts: 2
  sol_log_(hello, sizeof(hello) - 1);
  sol_log_(names[i], 3);
  return big[i] * 100 + *indirect + i;
}
"""


@pytest.mark.parametrize("level", ["-Os", "-O0"])
def test_constants_tables_of_pointers_and_syscalls(tmp_path: Path, level: str) -> None:
    returned, logs = run(linker.link(compiled(TABLES, tmp_path, level=level)))

    assert returned == 1315
    assert [line for line in logs if line.startswith("Program log:")] == [
        "Program log: hello from a constant",
        "Program log: two",
    ]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    object_file = compiled(TABLES, tmp_path)

    assert linker.link(object_file) == linker.link(object_file)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("static int counter; int entrypoint(void) { return ++counter; }", "section .bss: writable data"),
        ("static int counter = 4; int entrypoint(void) { return counter++; }", "section .data: writable data"),
        ("int puts(const char *); int entrypoint(void) { return puts(0); }", "undefined function 'puts'"),
        ("extern int elsewhere; int entrypoint(void) { return elsewhere; }", "'elsewhere': no such data"),
        ("int start(void) { return 0; }", "no function named entrypoint"),
        (
            '__attribute__((section(".other"))) int other(void) { return 1; } int entrypoint(void) { return other(); }',
            "section .other: writable data and further code sections",
        ),
    ],
)
def test_what_a_program_cannot_have_is_refused_by_name(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(linker.LinkError, match=message):
        linker.link(compiled(source, tmp_path, level="-O0"))


def test_a_struct_copy_that_becomes_memcpy_is_refused(tmp_path: Path) -> None:
    """The compiler makes such calls up by itself; a runtime without that function would fail only when it is reached."""
    source = "typedef struct { char b[4096]; } Big; void entrypoint(Big *a, Big *b) { *a = *b; }"

    with pytest.raises((linker.LinkError, subprocess.CalledProcessError)):
        linker.link(compiled(source, tmp_path))


@pytest.mark.parametrize("raw", [b"", b"\x7fELF", b"MZ" + bytes(100)])
def test_other_files_are_refused(raw: bytes) -> None:
    with pytest.raises(linker.LinkError, match="not a little-endian 64-bit eBPF object"):
        linker.link(raw.ljust(64, b"\0") if raw else raw)


def test_an_object_for_another_machine_is_refused(tmp_path: Path) -> None:
    native = compiled("int entrypoint(void) { return 0; }", tmp_path, target=("-target", "x86_64-linux-gnu"))

    with pytest.raises(linker.LinkError, match="not a little-endian 64-bit eBPF object"):
        linker.link(native)


def test_the_file_has_the_shape_that_the_loader_wants(tmp_path: Path) -> None:
    program = linker.link(compiled(TABLES, tmp_path))
    (entry, _, sections) = struct.unpack_from("<QQQ", program, 24)
    count, names_index = struct.unpack_from("<HH", program, 60)
    rows = [struct.unpack_from("<IIQQQQIIQQ", program, sections + 64 * i) for i in range(count)]
    names_at = rows[names_index][4]

    named = {program[names_at + row[0] :].split(b"\0")[0].decode(): row for row in rows}
    assert struct.unpack_from("<HHI", program, 16) == (3, 247, 1)
    assert struct.unpack_from("<I", program, 48) == (0,)  # flags: SBPF v0
    assert named[".text"][3] == named[".text"][4] <= entry < named[".text"][4] + named[".text"][5]
    offsets = [row[4] for row in rows[1:]]
    assert offsets == sorted(offsets)
    for row in rows[1:]:
        assert row[4] + row[5] <= len(program)
