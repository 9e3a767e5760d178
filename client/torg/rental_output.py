"""A rental's outputs: one archive from a stranger's machine, checked by its digest and unpacked by the rules for hostile ones."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from torg.data import unpack_stoppably
from torg.errors import DigestMismatch
from torg.rental import NodeApi
from torg_host.archive import sha256_file
from torg_protocol.rentals import RentalOutputs


async def save_outputs(node: NodeApi, rental_id: str, outputs: RentalOutputs, destination: Path) -> None:
    """`destination` must be absent or empty. Raises DigestMismatch; Conflict `archive_destination_exists`; Unavailable."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".torg-") as folder:
        archive = Path(folder) / "outputs.tar.zst"
        with archive.open("w+b") as file:
            await node.fetch_outputs(rental_id, outputs.digest, outputs.size_bytes, file)
        actual = await asyncio.to_thread(sha256_file, archive)
        if actual != outputs.digest:
            raise DigestMismatch(
                "the outputs are not what the node said", field="digest", value=outputs.digest, hint=f"got {actual}"
            )
        await unpack_stoppably(archive, destination)
