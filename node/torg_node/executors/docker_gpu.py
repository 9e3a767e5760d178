"""Proof that a started container sees exactly the GPUs it was promised: engines that ignore GPU requests exist."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import aiodocker

from torg_node.executors.docker_engine import engine_errors
from torg_node.executors.errors import ExecutorError

_PROC = Path("/proc")
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


async def verify_device_nodes(
    docker: aiodocker.Docker, container_id: str, promised: Sequence[str], proc: Path = _PROC
) -> None:
    """Raises ExecutorError "gpu_mismatch" unless the container has exactly these of the host's compute and render devices; the agent looks into
    it from outside, as images need not have a program that lists them."""
    with engine_errors("looking at the container's GPUs"):
        pid = (await docker.containers.container(container_id).show())["State"]["Pid"]
    devices = proc / str(pid) / "root/dev"
    try:
        visible = (
            {f"/dev/dri/{path.name}" for path in (devices / "dri").iterdir()} if (devices / "dri").is_dir() else set()
        )
        visible |= {"/dev/kfd"} if (devices / "kfd").exists() else set()
        there = {path for path in promised if (proc / str(pid) / "root" / path.removeprefix("/")).exists()}
    except OSError as error:
        raise ExecutorError(
            f"what the container sees of its GPUs cannot be told: {error}",
            code="gpu_mismatch",
            hint="the agent has to be root",
        ) from error
    if visible | there != set(promised) or there != set(promised):
        raise ExecutorError(
            f"the container does not see the GPUs it was promised: promised {sorted(promised)}, sees {sorted(visible | there)}",
            code="gpu_mismatch",
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
