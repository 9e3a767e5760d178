"""Prints the table: python -m tests.adversary [--trials N]"""

from __future__ import annotations

import argparse
import sys

from tests.adversary import verifiers, voters
from tests.adversary.spoofers import Rate, cheats, honest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1_000)
    trials = parser.parse_args().trials
    _print("| cheat | noticed by | noticed | trials |\n|---|---|---|---|")
    for rate in cheats(trials):
        _print(_row(rate))
    _print("\n| honest machine | what it suffers | rate | trials |\n|---|---|---|---|")
    for rate in honest(trials):
        _print(_row(rate))
    _print("\n" + "\n".join(verifiers.table(20 * trials)))
    _print("\n" + "\n".join(voters.table(20 * trials)))
    return 0


def _row(rate: Rate) -> str:
    mark = " (times simulated)" if rate.simulated_times else ""
    return f"| {rate.who} | {rate.noticed_by}{mark} | {rate.share:.1%} | {rate.trials:,} |"


def _print(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
