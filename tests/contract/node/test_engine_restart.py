"""The container engine restarts under running jobs: those of an engine with live-restore go on, those of another end as the host's fault."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import DOCKER_FOLDER, docker_executor, launch, load_script
from tests.support.job_logs import read_logs, read_until, text_of
from torg_node.executors.errors import ExecutorUnavailable
from torg_node.executors.port import Exit, ExitReason

pytestmark = [pytest.mark.engine, pytest.mark.root, pytest.mark.slow]
engine_script = load_script(DOCKER_FOLDER / "engine.py")
COUNT = (
    "import sys, time\nfor n in range(int(sys.argv[1])):\n    print(n, flush=True)\n    time.sleep(0.2)\nsys.exit(3)"
)
TO_ITS_END, FOR_EVER = 40, 3_000


@pytest.fixture
def engine(request: pytest.FixtureRequest, engine_socket: Path) -> Iterator[object]:
    del engine_socket  # skips where none can be started
    with tempfile.TemporaryDirectory(prefix="torg-engine-") as folder:
        engine = engine_script.PrivateEngine(Path(folder) / "engine", live_restore=request.param)
        engine.start()
        yield engine
        engine.stop()


@pytest.mark.parametrize("engine", [True], indirect=True, ids=["live-restore"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_with_live_restore_a_job_does_not_notice(engine: object, number: signal.Signals, tmp_path: Path) -> None:
    ended, output = await _restart_under_a_job(engine, number, tmp_path, TO_ITS_END)

    assert (ended.reason, ended.code) == (ExitReason.EXITED, 3)
    assert output == _counted(TO_ITS_END)


@pytest.mark.parametrize("engine", [False], indirect=True, ids=["plain"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_without_it_the_job_ends_and_is_not_to_blame(
    engine: object, number: signal.Signals, tmp_path: Path
) -> None:
    """Killed with SIGKILL, an engine ends it when it is back, and that may be long after."""
    ended, output = await _restart_under_a_job(engine, number, tmp_path, FOR_EVER)

    assert ended.reason is ExitReason.KILLED
    assert _counted(FOR_EVER).startswith(output)


def _counted(count: int) -> str:
    return "".join(f"{n}\n" for n in range(count))


async def _restart_under_a_job(engine: object, number: signal.Signals, tmp_path: Path, count: int) -> tuple[Exit, str]:
    async with docker_executor(engine.socket_path, tmp_path) as executor:
        handle = await executor.start(launch("counts", ["python", "-c", COUNT, str(count)]))
        following = asyncio.create_task(read_logs(executor, handle))
        waiting = asyncio.create_task(executor.wait(handle))
        await read_until(executor, handle, "2\n")
        await asyncio.to_thread(engine.end_daemon, number)
        with pytest.raises(ExecutorUnavailable):  # what is new is not waited for
            await executor.start(launch("other", ["true"]))
        await asyncio.sleep(1)  # the job prints on, where it still runs, and nobody listens
        await asyncio.to_thread(engine.start_again)
        async with asyncio.timeout(150):
            ended, output = await waiting, text_of(await following, "stdout")
        await executor.remove(handle)
        assert not await executor.reattach(handle)
        return ended, output
