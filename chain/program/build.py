"""Builds vault_program.so from C with what pip can install: `python chain/program/build.py` (or `--check` to compare, changing nothing).

Compiler: the clang inside the `ziglang` package, pinned in requirements.lock, so that everybody gets the same bytes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
TARGET = SOURCE.parent / "torg_chain" / "vault_program.so"
# -mcpu=v2: later ones emit 32-bit jumps, which SBPF v0 refuses.
COMPILE = (
    "-target",
    "bpfel-freestanding",
    "-mcpu=v2",
    "-Os",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fno-asynchronous-unwind-tables",
)


def build(source: Path = SOURCE) -> bytes:
    """The program's bytes. Raises CalledProcessError with the compiler's messages, or LinkError."""
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    from linker import link

    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "vault.o"
        compiler = [sys.executable, "-m", "ziglang", "cc", *COMPILE]
        # Relative names and a fixed folder: nothing of this machine gets into the object.
        subprocess.run([*compiler, "-c", "vault.c", "-o", str(target)], cwd=source, check=True)
        return link(target.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the stored program differs from a rebuild")
    arguments = parser.parse_args()
    program = build()
    if not arguments.check:
        TARGET.write_bytes(program)
        print(f"{TARGET.name}: {len(program)} bytes")
    elif TARGET.read_bytes() != program:
        sys.exit("vault_program.so is not what the source builds to: run chain/program/build.py")


if __name__ == "__main__":
    main()
