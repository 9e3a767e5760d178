"""A rental's outputs go from the node's archive to the client's folder, whatever their size."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import IO, cast

import pytest

from tests.unit.node.test_rental_terms import terms
from torg.errors import DigestMismatch
from torg.rental import NodeApi
from torg.rental_output import save_outputs
from torg_node.rental.container import RentalContainer, RentalHost

NOISE_BYTES = 9 << 20  # an archive of it has more than one piece


class Node:
    """Gives an archive to whoever asks for outputs."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive

    async def fetch_outputs(self, rental_id: str, digest: str, size_bytes: int, file: IO[bytes]) -> None:
        assert size_bytes == self._archive.stat().st_size
        with self._archive.open("rb") as found:
            shutil.copyfileobj(found, file)
        file.flush()


async def test_outputs_of_several_pieces_are_saved_and_what_was_changed_is_not(tmp_path: Path) -> None:
    host = cast("RentalHost", type("Host", (), {"folder": tmp_path / "rentals"}))
    container = RentalContainer(host, terms())
    output = container.folder / "disk" / "files" / "output"
    output.mkdir(parents=True)
    noise = random.Random(5).randbytes(NOISE_BYTES)
    (output / "weights").write_bytes(noise)

    outputs = await container.collect()

    assert outputs is not None
    node = cast("NodeApi", Node(container.outputs))
    await save_outputs(node, terms().rental_id, outputs, tmp_path / "saved")
    assert (tmp_path / "saved" / "weights").read_bytes() == noise

    with container.outputs.open("r+b") as archive:
        archive.seek(NOISE_BYTES // 2)
        archive.write(b"changed")
    with pytest.raises(DigestMismatch):
        await save_outputs(node, terms().rental_id, outputs, tmp_path / "again")
    assert not (tmp_path / "again").exists()
