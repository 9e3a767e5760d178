"""What `torg-localnet` runs first: it imports nothing that its role brings."""

from __future__ import annotations

from torg_protocol.role import begin


def main() -> None:
    begin("torg-localnet", "torg_chain.localnet.__main__", "localnet")
