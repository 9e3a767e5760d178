"""Rules that matter are executable: size budgets, banned names and calls, and nothing of a developer's machine in the tree."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [
    "protocol/torg_protocol",
    "host/torg_host",
    "chain/torg_chain",
    "client/torg",
    "node/torg_node",
    "marketplace/torg_marketplace",
]
MODULE_LINES, FUNCTION_LINES = 500, 60
BANNED_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def tracked_text_files() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    binary = {".so", ".png", ".lock", ".gz", ".zst"}
    return [ROOT / name for name in names if Path(name).suffix not in binary and (ROOT / name).is_file()]


def test_modules_and_functions_fit_their_budgets() -> None:
    too_big = []
    for path in [*modules(), *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]:
        source = path.read_text()
        lines = source.count("\n")
        if lines > MODULE_LINES:
            too_big.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for item in ast.walk(ast.parse(source)):
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (item.end_lineno or item.lineno) - item.lineno + 1
                if length > FUNCTION_LINES:
                    too_big.append(f"{path.relative_to(ROOT)}:{item.lineno} {item.name}: {length} lines")

    assert too_big == []


def test_modules_are_named_after_what_they_hold() -> None:
    assert [path for path in modules() if path.stem in BANNED_NAMES] == []


def test_only_the_unit_of_work_commits() -> None:
    allowed = {"unit.py", "engine.py"}
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in modules()
        if "marketplace" in path.parts and path.name not in allowed
        for line in path.read_text().splitlines()
        if re.search(r"session\.commit\(", line)
    ]

    assert found == []


@pytest.mark.parametrize(
    ("package", "floats"),
    [("torg_marketplace/rules", r"|\bfloat\("), ("torg_marketplace/matching", "")],  # a score may be a float, money not
)
def test_rules_have_no_clock_no_chance_and_no_floats_of_money(package: str, floats: str) -> None:
    banned = re.compile(r"\b(time\.time|time\.monotonic|random\.|secrets\.)" + floats)
    found = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "marketplace" / package).rglob("*.py")
        for line in path.read_text().splitlines()
        if banned.search(line)
    ]

    assert found == []


def test_the_tree_speaks_of_the_project_alone() -> None:
    # Built from pieces, so that this file does not find itself.
    leaks = ["/" + "work/", "/" + "opt/wheels", "../" + "shared", "/" + "tmp/bash_jobs", "help" + "er-"]
    found = [
        f"{path.relative_to(ROOT)}: {leak}"
        for path in tracked_text_files()
        for leak in leaks
        if leak in path.read_text(errors="replace")
    ]

    assert found == []


def test_no_secret_key_is_in_the_tree() -> None:
    keypair_file = re.compile(r"\[(\s*\d{1,3}\s*,){63}\s*\d{1,3}\s*\]")
    found = [
        path.relative_to(ROOT) for path in tracked_text_files() if keypair_file.search(path.read_text(errors="replace"))
    ]

    assert found == []
