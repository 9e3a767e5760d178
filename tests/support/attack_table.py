"""chain/program/ATTACKS.md from the tests themselves: `python -m tests.support.attack_table` rewrites it, a test compares."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "chain" / "program" / "ATTACKS.md"
TESTS = ROOT / "tests" / "contract" / "chain"
REFUSAL = re.compile(r"\b(E_[A-Z_]+|Custom\(\d+\)|AlreadyProcessed|InsufficientFundsForRent)(?=\")")
HEAD = """# Attacks on the vault program, and what each gets

Every row is a test against the compiled program in the real Solana runtime, which asserts exactly these errors and that no account of
the program changed. Written from the tests by `python -m tests.support.attack_table`. `E_...` are the program's own errors
([SPEC.md](SPEC.md)), `Custom(n)` those of the token program or the Ed25519 precompile, the rest the runtime's.
"""
CHAPTERS = {
    "test_vault_open.py": "Opening, operator configs, second authorities",
    "test_vault_capture.py": "Captures: replays, keys, amounts, payees",
    "test_vault_messages.py": "Captures: messages, the Ed25519 precompile, accounts",
    "test_vault_close.py": "Closing, addresses that come back, rescue",
    "test_vault_collateral.py": "Collateral: to whom, by whom, how much",
    "test_vault_slash_times.py": "Collateral: when, and racing the node's exit",
}


def refusals(function: ast.FunctionDef, source: str) -> list[str]:
    """The errors that a test asserts, in order, each once."""
    text = ast.get_source_segment(source, function) or ""
    decorators = "".join(ast.get_source_segment(source, one) or "" for one in function.decorator_list)
    return list(dict.fromkeys(REFUSAL.findall(decorators + text)))


def render() -> str:
    parts = [HEAD]
    for name, title in CHAPTERS.items():
        source = (TESTS / name).read_text()
        parts.append(f"\n## {title}\n\nIn [{name}](../../tests/contract/chain/{name}).\n")
        parts.append("| attack | refused with | test |\n|---|---|---|")
        for node in ast.parse(source).body:
            if (
                isinstance(node, ast.FunctionDef)
                and node.name.startswith("test_")
                and (errors := refusals(node, source))
            ):
                attack = node.name.removeprefix("test_").replace("_", " ")
                parts.append(f"| {attack} | {', '.join(f'`{error}`' for error in errors)} | `{node.name}` |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    TABLE.write_text(render())
