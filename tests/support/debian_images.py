"""Images of well-known names, made from Debian's packages and loaded into a test's engine."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.engine import DOCKER_FOLDER, load_image, load_script

_debian_image = load_script(DOCKER_FOLDER / "debian_image.py")


async def load_debian_images(socket: Path, names: Sequence[str]) -> None:
    """As `NAME:latest`. Skips, with the reason, where Debian's archive cannot be reached."""
    for name in names:
        try:
            image = await asyncio.to_thread(_debian_image.debian_image, name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"Debian's packages cannot be had here: {error}")
        await load_image(socket, image)
