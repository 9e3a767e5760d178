"""Amounts that people read are in tokens, as everywhere else that they see them; base units are for machines, in fields that say so."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Who checks without a marketplace and without a chain does not know how many decimals the token has.
WITHOUT_DECIMALS = {
    "client/torg/audit.py",
    "client/torg/cli/audit.py",
    "client/torg/journal.py",
    "marketplace/torg_marketplace/simulation/command.py",  # money that nobody has
    "node/torg_node/settings.py",  # a file of base units, which says so
}


def composed(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Texts with a value in them: what is said of one case, not what documents a field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(map(str, parts))


def test_no_message_speaks_of_base_units() -> None:
    files = [path for room in ("client", "node", "marketplace") for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    found = [
        f"{name}:{line}: {said}"
        for path in files
        if (name := path.relative_to(ROOT).as_posix()) not in WITHOUT_DECIMALS
        for line, said in composed(ast.parse(path.read_text()))
        if "base unit" in said
    ]
    assert found == []
