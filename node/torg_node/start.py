"""What `torg-node` runs first: it imports nothing that its role brings."""

from __future__ import annotations

from torg_protocol.role import begin


def main() -> None:
    begin("torg-node", "torg_node.__main__", "node")
