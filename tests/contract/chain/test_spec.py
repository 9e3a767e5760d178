"""chain/program/SPEC.md and ATTACKS.md say what is true: their tables against the C source, the Python beside it, and the compiled program."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from tests.support.attack_table import TABLE, render
from tests.support.collateral import open_stake
from tests.support.program_costs import STEPS, capture_of, measure_costs
from tests.support.svm import World
from torg_chain import vault as python
from torg_chain.errors import PROGRAM_ERRORS
from torg_chain.transactions import MAX_TRANSACTION_BYTES
from torg_protocol.vault_messages import CAP_DOMAIN, ORDER_DOMAIN, CapMessage

PROGRAM = Path(__file__).resolve().parents[3] / "chain" / "program"
SPEC = (PROGRAM / "SPEC.md").read_text()
STATE = (PROGRAM / "state.h").read_text()
C_SIZES = {"u8": 1, "u32": 4, "u64": 8, "i64": 8}


def rows(heading: str, columns: str) -> list[list[str]]:
    """The cells of the table with these columns under that heading."""
    section = SPEC.split(f"\n{heading}\n", 1)[1]
    section = re.split(r"\n#{2,3} ", section, maxsplit=1)[0]
    table = section.split(f"| {columns} |\n", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]


def layout(struct_name: str, start: int = 0) -> list[tuple[int, int, str]]:
    """Offset, size and name of each field, from the C typedef. The compiler adds no padding: offsets are multiples of sizes."""
    body = re.search(rf"typedef struct \{{[^}}]*\}} {struct_name};", STATE)
    assert body is not None
    fields, offset = [], start
    for kind, names in re.findall(r"^  (u8|u32|u64|i64) ([^;]+);", body.group(), re.MULTILINE):
        for name in names.split(", "):
            size = C_SIZES[kind] * int((re.search(r"\[(\d+)\]", name) or ["", "1"])[1])
            assert offset % C_SIZES[kind] == 0
            fields.append((offset, size, name.split("[")[0]))
            offset += size
    return fields


@pytest.mark.parametrize(
    ("heading", "struct_name", "start"),
    [("### Operator config", "Config", 0), ("### Vault", "Vault", 0), ("### Slash", "Slash", python.VAULT_SIZE)],
)
def test_every_byte_of_an_account(heading: str, struct_name: str, start: int) -> None:
    written = [(int(row[0]), int(row[1]), row[2]) for row in rows(heading, "offset | size | field | meaning")]

    assert written == layout(struct_name, start)


def test_account_sizes(world: World) -> None:
    written = {row[0]: int(row[1]) for row in rows("### Slash", "account | bytes")}
    stake, vault = open_stake(world), world.open_vault()
    found = [world.svm.get_account(key) for key in (world.operator.config, vault.address, stake.address)]

    assert list(written.values()) == [len(account.data) for account in found if account is not None]
    assert list(written.values()) == [python.CONFIG_SIZE, python.VAULT_SIZE, python.COLLATERAL_SIZE]


def test_errors() -> None:
    written = [(int(row[0]), row[1], row[2]) for row in rows("## Errors", "number | name | meaning")]
    source = [(int(n), name, text) for name, n, text in re.findall(r"(E_\w+) = (\d+),\s*// (.*)", STATE)]

    assert written == source
    assert {number: name for number, name, _ in written} == PROGRAM_ERRORS


def test_instructions() -> None:
    written = {
        row[1]: int(row[0])
        for row in rows("## Instructions", "number | instruction | data after the number | accounts | who")
    }
    entry = (PROGRAM / "vault.c").read_text()
    source = {name: int(number) for number, name in re.findall(r"case (\d+): return (\w+)\(\);", entry)}
    builders = (PROGRAM.parent / "torg_chain" / "instructions.py").read_text()

    assert written == source
    assert all(f"def {name}(" in builders for name in written)


def test_constants() -> None:
    written = {row[0]: int(row[1]) for row in rows("## Instructions", "constant | value | why")}
    for name, value in written.items():
        defined = re.search(rf"#define {name} \(?(\d+)(?: \* (\d+))?", STATE)
        assert defined is not None, name
        assert int(defined[1]) * int(defined[2] or 1) == value == getattr(python, name), name


def test_messages() -> None:
    sizes = [int(size) for size in re.findall(r"^- \w+, (\d+) bytes: ", SPEC, re.MULTILINE)]

    assert sizes == [len(CapMessage(bytes(32), bytes(32), 1, 1).to_bytes()), 16 + 32 + 32 + 32]
    assert (b"torg-cap-v1".ljust(16, b"\0"), b"torg-order-v1".ljust(16, b"\0")) == (CAP_DOMAIN, ORDER_DOMAIN)
    assert struct.calcsize("<16s32s32sQq") == sizes[0]


def test_costs() -> None:
    """Bytes and fees exactly; units within a twentieth, since a runtime's own costs move."""
    written = {
        row[0]: [int(cell.replace(",", "")) for cell in row[1:]]
        for row in rows("## Costs", "step | bytes | units | lamports")
    }
    assert list(written) == list(STEPS)
    for step, landed in measure_costs().items():
        size, units, lamports = written[step]
        now = f"| {step} | {landed.size:,} | {landed.units:,} | {landed.fee:,} |"
        assert (landed.size, landed.fee) == (size, lamports), now
        assert abs(landed.units - units) * 20 <= units, now
        assert size <= MAX_TRANSACTION_BYTES, step


@pytest.mark.parametrize(("most", "by_order"), [(python.MAX_PAYEES_SIGNED, False), (python.MAX_PAYEES_BY_ORDER, True)])
def test_as_many_payees_as_fit(most: int, by_order: bool) -> None:
    sizes = [capture_of(payees, by_order=by_order)(World()).size for payees in (most, most + 1)]

    assert sizes[0] <= MAX_TRANSACTION_BYTES < sizes[1]


def test_the_attack_table_is_what_the_tests_do() -> None:
    assert TABLE.read_text() == render(), "run python -m tests.support.attack_table"


def test_every_error_of_the_program_is_met_by_an_attack() -> None:
    """But those that the runtime does not let happen: a clock that cannot be read, a failed call that does not end the transaction."""
    met = set(re.findall(r"`(E_[A-Z_]+)`", TABLE.read_text()))

    assert set(PROGRAM_ERRORS.values()) - met == {"E_CLOCK", "E_CPI"}
