"""What `torg-marketplace` runs first: it imports nothing that its role brings."""

from __future__ import annotations

from torg_protocol.role import begin


def main() -> None:
    begin("torg-marketplace", "torg_marketplace.__main__", "marketplace")
