"""Small programs in C for the Solana runtime, compiled and linked as the vault program is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

PROGRAM = Path(__file__).resolve().parents[2] / "chain" / "program"


def linker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vault_linker", PROGRAM / "linker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def compiled(folder: Path, source: str) -> bytes:
    """The object file."""
    (folder / "x.c").write_text(source)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding", "-mcpu=v2", "-Os"]
    subprocess.run([*compiler, "-fno-asynchronous-unwind-tables", "-c", "x.c", "-o", "x.o"], cwd=folder, check=True)
    return (folder / "x.o").read_bytes()


def program_that_takes_anything(folder: Path) -> bytes:
    linked: bytes = linker().link(compiled(folder, "long entrypoint(char *input) { (void)input; return 0; }"))
    return linked
