"""Proof that a started container sees exactly the GPUs it was promised: engines that ignore GPU requests exist."""

from __future__ import annotations

import re
from collections.abc import Sequence

import aiodocker

from torg_node.executors.docker_engine import engine_errors
from torg_node.executors.errors import ExecutorError

_DEVICE = re.compile(r"^(?P<indent>\s*)(?P<kind>GPU|MIG) .*\(UUID: (?P<uuid>[^)]+)\)", re.MULTILINE)


async def verify_gpus(docker: aiodocker.Docker, container_id: str, promised: Sequence[str]) -> None:
    """Raises ExecutorError (code "gpu_mismatch") unless `nvidia-smi -L` inside lists exactly `promised`.

    A job that ends before this could be seen is not verified either: nobody pays for a GPU that nobody saw.
    """
    with engine_errors("looking at the container's GPUs"):
        command = await docker.containers.container(container_id).exec(["nvidia-smi", "-L"], user="65534:65534")
        listing = b""
        async with command.start(detach=False) as stream:
            while message := await stream.read_out():
                listing += message.data
        code = (await command.inspect())["ExitCode"]
    text = listing.decode(errors="replace")
    visible = visible_gpus(text)
    if code != 0 or visible != frozenset(promised):
        raise ExecutorError(
            f"the container does not see the GPUs it was promised: promised {sorted(promised)}, sees {sorted(visible)}",
            code="gpu_mismatch",
            hint=f"nvidia-smi ended with {code}: {text.strip()[-300:]}" if code else None,
        )


def visible_gpus(listing: str) -> frozenset[str]:
    """The usable devices in `nvidia-smi -L`'s output. A GPU that is cut into MIG slices is not usable, its slices are."""
    usable: list[str] = []
    whole: str | None = None
    for device in _DEVICE.finditer(listing):
        if device["kind"] == "MIG" and usable and usable[-1] == whole:
            usable.pop()
        usable.append(device["uuid"])
        whole = device["uuid"] if device["kind"] == "GPU" else None
    return frozenset(usable)
