"""All benchmarks in their quick forms, one after the other; a target that is missed stops none of the others.

    python -m benchmarks [NAME ...]

In the end says which kept their targets, which missed some, and which could not be run here (no data, no root): exit status 1 unless all of
those that ran kept theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "report")


def outcome(name: str) -> str:
    """ "ok", "missed" or "not run"; what it prints is passed on as it comes."""
    print(f"\n== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    result = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            result = line.removeprefix("RESULT ") if line.startswith("RESULT ") else result
    if not result:
        return "not run"
    return "ok" if json.loads(result)["ok"] else "missed"


def main(names: Sequence[str]) -> int:
    if unknown := set(names) - set(NAMES):
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    outcomes = {name: outcome(name) for name in names or NAMES}
    print()
    for name, came in outcomes.items():
        print(f"{name:<16}{came}")
    return 1 if "missed" in outcomes.values() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
