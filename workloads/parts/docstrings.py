"""Real text that every Python ships: the docstrings of its standard library, read from the sources without importing them."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "__phello__",
    "this.py",
    "sitecustomize.py",  # this machine's own, and on Debian a link out of what a job sees
    "usercustomize.py",
}


@dataclass(frozen=True)
class Docstring:
    package: str  # the top-level package or module it is from
    text: str  # runs of white space are single blanks


def read_docstrings(packages: Collection[str] = ()) -> list[Docstring]:
    """Of these packages and modules, or of all. Each text once, in the order of the files. Depends on the version of Python
    alone. All take about two seconds."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Docstring] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        package = parts[0].removesuffix(".py")
        if LEFT_OUT.isdisjoint(parts) and not package.startswith("_") and (package in packages or not packages):
            for text in _docstrings(path):
                found.setdefault(text, Docstring(package, text))
    return list(found.values())


def _docstrings(path: Path) -> list[str]:
    tree = ast.parse(path.read_bytes())
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [re.sub(r"\s+", " ", text).strip() for text in texts if text]
