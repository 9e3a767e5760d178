"""Writes what `torg-node doctor` says on this machine into the how-to: sudo .venv/bin/python -m scripts.doctor_in_docs

As root and with bubblewrap, as the how-to says. A test compares the lines' names with those of the doctor of today.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from torg_chain.network import LOCALNET_MINT, LOCALNET_PROGRAM_ID, Network
from torg_node.setup import Market, initialise

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/how-to/lend-your-machine.md"
_BLOCK = re.compile(r"(?<=```text\n)this machine\n.*?(?=```)", re.DOTALL)
_NOBODY = "11111111111111111111111111111111"


def doctor_says() -> str:
    """Of a node that belongs to no marketplace. Its exit code is told by what it says."""
    network = Network(
        rpc_url="http://127.0.0.1:1",
        genesis_hash=_NOBODY,
        program_id=LOCALNET_PROGRAM_ID,
        mint=LOCALNET_MINT,
        decimals=6,
        operator_config=_NOBODY,
    )
    with tempfile.TemporaryDirectory(prefix="torg-doctor-") as folder:
        data = Path(folder).resolve() / "node"
        market = Market("", "", network, 3_600)
        initialise(data, market, price="1", payout=None, slots=1, executor="sandbox", max_unpaid="10")
        doctor = [str(Path(sys.executable).with_name("torg-node")), "doctor", "--data", str(data)]
        return subprocess.run(doctor, stdout=subprocess.PIPE, text=True, check=False).stdout


def block_of(document: str) -> str:
    found = _BLOCK.search(document)
    if found is None:
        raise ValueError(f"{DOCUMENT}: no block that begins with: this machine")
    return found[0]


def names_in(output: str) -> list[str]:
    """The first words of each line, without what differs from machine to machine: the value behind two blanks, a network's name."""
    names = []
    for line in output.splitlines():
        verdict, _, rest = line.strip().partition("  ")
        name = f"{verdict} {rest.strip()}" if verdict == "holds" else verdict
        names.append(re.sub(r"^(network) .*|^(sandbox) .*", lambda match: match[1] or match[2], name))
    return list(dict.fromkeys(names))


def main() -> None:
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(text.replace(block_of(text), doctor_says().rstrip("\n") + "\n"))


if __name__ == "__main__":
    main()
