"""Does the simulation notice bugs? `python -m tests.simulation.mutate [--seeds N] [NAME ...]`: each patch in mutations/ goes
into a copy of the marketplace, and seeds run until one breaks. A patch that nothing notices fails the run."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torg_marketplace.simulation.run import simulate

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted((Path(__file__).parent / "mutations").glob("*.patch"))
_HUNT = """
import sys
from torg_marketplace.simulation.run import simulate
for seed in range(int(sys.argv[1])):
    failure = simulate(seed).failure
    if failure is not None:
        print(seed, failure.problems[0].strip().splitlines()[-1].strip())
        raise SystemExit(0)
raise SystemExit(1)
"""


def applied(patch: Path, folder: Path) -> Path:
    """A copy of the marketplace's package with the bug in it; the folder to import it from. Raises AssertionError."""
    target = folder / "marketplace"
    shutil.copytree(ROOT / "marketplace", target, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        ["git", "apply", "--unsafe-paths", f"--directory={folder}", str(patch)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{patch.name} does not apply any more: {done.stderr}"
    return target


def hunt(patch: Path, seeds: int) -> str | None:
    """Which seed noticed, and how; None when nothing did. Raises AssertionError when the changed market does not even start,
    and when that seed breaks without the bug too: then it has noticed nothing."""
    with tempfile.TemporaryDirectory(prefix="torg-mutation-") as folder:
        path = applied(patch, Path(folder))
        done = subprocess.run(
            [sys.executable, "-c", _HUNT, str(seeds)],
            env={**os.environ, "PYTHONPATH": str(path)},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode in {0, 1}, f"{patch.name}: the market does not even start: {done.stderr[-2000:]}"
    seed, _, problem = done.stdout.strip().partition(" ")
    if not seed:
        return None
    assert simulate(int(seed)).failure is None, f"seed {seed} breaks a promise without {patch.name}"
    return f"seed {seed}: {problem}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="patches; default: all")
    parser.add_argument("--seeds", type=int, default=60)
    given = parser.parse_args(arguments)
    missed = []
    for patch in PATCHES:
        if given.names and not any(name in patch.stem for name in given.names):
            continue
        found = hunt(patch, given.seeds)
        print(f"{patch.stem:48} {found or 'NOT NOTICED'}", flush=True)
        missed += [] if found else [patch.stem]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
