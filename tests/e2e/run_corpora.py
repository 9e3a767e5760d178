"""Really runs those of other platforms' public job files that need only a base image: a market, a node with a container engine.

    TORG_CORPORA=DIR python -m tests.e2e.run_corpora

Each file is submitted unmodified, as `torg submit` would. What needs a GPU, an image that Debian's packages do not make, or loses meaning is
listed with that reason. Needs root; ends with 1 when a job ends otherwise than its file says.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

from scripts.corpora import job_files
from tests.support.docker_market import DockerMarket, answer, debian_image, load_debian_images
from tests.support.engine import run_engine_script
from tests.support.small_market import running_market
from torg.client import AsyncClient
from torg.spec_file import SpecFile, read_spec_file
from torg_protocol.errors import TorgError
from torg_protocol.jobspec import JobSpec
from torg_protocol.ports import Port
from torg_protocol.states import JobState
from torg_protocol.tasks import groups_of

_MOST_S = 120


def image_name(image: str) -> str:
    """Without registry and library, and without the tag when it is the newest: Debian's packages are of one version."""
    return image.removeprefix("docker.io/").removeprefix("library/").removesuffix(":latest")


def why_not(spec: JobSpec, spec_file: SpecFile) -> str | None:
    if spec_file.translation is None:
        return "of no platform that is known"
    if spec_file.translation.lost:
        return f"loses {spec_file.translation.lost[0].path}"
    if spec.resources.gpus:
        return "needs a GPU"
    others = [image for image in spec.images if image_name(image) not in debian_image.RECIPES]
    return f"image {others[0]}" if others else None


def _served_first(spec: JobSpec) -> list[tuple[str | None, Port]]:
    """Servers do not end, and so no later group begins."""
    first = {task.name for task in groups_of(spec.tasks)[0]} if spec.tasks else {None}
    return [(task, port) for task, port in spec.declared_ports if task in first]


async def run(client: AsyncClient, spec_file: SpecFile) -> tuple[str, bool]:
    """What came of it, and whether that is right."""
    job = await client.submit(spec_file)
    if ports := _served_first(spec_file.check()):
        try:
            heads = [(await answer(client, job.job_id, port, task=task)).splitlines()[0] for task, port in ports]
        except TimeoutError:
            job = await client.cancel(job.job_id)
            said = (await client.logs(job.job_id)).strip().splitlines()[-1:]
            return f"does not serve, {job.state}: {' '.join([*said, job.reason or ''])}", False
        await client.cancel(job.job_id)
        await client.wait(job.job_id)
        right = all(str(port.health.expect_status or "") in head for (_, port), head in zip(ports, heads, strict=True))
        return f"serves: {', '.join(heads)}", right
    try:
        async with asyncio.timeout(_MOST_S):
            job = await client.wait(job.job_id)
    except TimeoutError:
        job = await client.cancel(job.job_id)
        return f"still {job.state} after {_MOST_S} s", False
    tasks = [f"{task.task} {task.state}" for task in job.leases[-1].tasks]
    lines = [] if tasks else (await client.logs(job.job_id)).strip().splitlines()
    said = f": {', '.join(tasks or lines[:1])}" if tasks or lines else ""
    return f"{job.state}{said}", job.state is JobState.SUCCEEDED


async def run_all(files: list[tuple[str, SpecFile]], images: list[str]) -> bool:
    right = True
    with tempfile.TemporaryDirectory(prefix="torg-corpora-") as folder:
        engine = Path(run_engine_script("start", Path(folder) / "engine"))
        try:
            await load_debian_images(engine, images)
            market = DockerMarket(Path(folder) / "market", engine=engine, images=images)
            market.folder.mkdir()
            async with running_market(market.folder, market=market), market.client() as client:
                for name, spec_file in files:
                    text, is_right = await run(client, spec_file)
                    right &= is_right
                    sys.stdout.write(f"| {name} | {text} |\n")
        finally:
            run_engine_script("stop", Path(folder) / "engine")
    return right


def main() -> int:
    root = Path(os.environ.get("TORG_CORPORA", ""))
    if not os.environ.get("TORG_CORPORA") or not root.is_dir():
        sys.stderr.write("set TORG_CORPORA to a folder with job files of other platforms\n")
        return 2
    runnable: list[tuple[str, SpecFile]] = []
    images: set[str] = set()
    sys.stdout.write("| file | what came of it |\n|---|---|\n")
    for path in job_files(root):
        try:
            spec_file = read_spec_file(path)
            spec = spec_file.check()
        except TorgError as error:
            sys.stdout.write(f"| {path.name} | refused: {error} |\n")
            continue
        if reason := why_not(spec, spec_file):
            sys.stdout.write(f"| {path.name} | not run: {reason} |\n")
        else:
            runnable.append((path.name, spec_file))
            images |= {image_name(image) for image in spec.images}
    sys.stdout.flush()
    return 0 if asyncio.run(run_all(runnable, sorted(images))) else 1


if __name__ == "__main__":
    sys.exit(main())
