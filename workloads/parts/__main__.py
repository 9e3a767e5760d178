"""`python -m workloads.parts`: renews the copies of these parts in the workloads that have one.

A job's workspace is all that reaches a node, so each workload holds copies of what it shares with others. A test compares them.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent

for part in sorted(HERE.glob("[a-z]*.py")):
    for copy in sorted(HERE.parent.glob(f"*/{part.name}")):
        if copy.read_bytes() != part.read_bytes():
            copy.write_bytes(part.read_bytes())
            print(f"{copy.relative_to(HERE.parent)} renewed")
