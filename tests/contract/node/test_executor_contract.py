"""What every executor promises, tried on all of them with real containers."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.executors import (
    LIMITS,
    MIB,
    WAITS,
    Bench,
    ExecutorKind,
    every_kind,
    isolating_kinds,
    left_behind,
    python,
    start_agent,
)
from tests.support.job_logs import read_logs, read_until, text_of
from tests.support.waiting import until
from torg_host.disk import QuotaDisk
from torg_node.executors.errors import AlreadyRunning, ExecutorError, ImageNotFound
from torg_node.executors.port import ExitReason, Handle, Mount

on_every_kind = pytest.mark.parametrize("kind", every_kind())
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="limits of memory, processes and CPU need root")


def on_isolating_kinds(test: Callable[..., object]) -> object:
    return pytest.mark.root(needs_root(pytest.mark.parametrize("kind", isolating_kinds())(test)))


@pytest.fixture
async def bench(kind: ExecutorKind, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """An executor of its own. At the end everything must be gone, though no test removes its containers itself."""
    async with kind.connect(request, tmp_path) as executor:
        bench = Bench(kind, executor, tmp_path)
        yield bench
        await executor.reap(frozenset())
    await until(lambda: left_behind(tmp_path, bench.token) == [])


@on_every_kind
async def test_success_with_both_streams_apart(bench: Bench) -> None:
    ended = await bench.run(*python("import sys; print('to stdout'); print('to stderr', file=sys.stderr)"))

    assert (ended.exit.reason, ended.exit.code) == (ExitReason.EXITED, 0)
    assert ended.text("stdout") == "to stdout\n"
    assert ended.text("stderr") == "to stderr\n"
    assert ended.exit.started_at_ms <= ended.exit.finished_at_ms


@on_every_kind
async def test_failure_keeps_its_code(bench: Bench) -> None:
    ended = await bench.run(*python("raise SystemExit(1)"))

    assert (ended.exit.reason, ended.exit.code) == (ExitReason.EXITED, 1)


@on_every_kind
async def test_a_command_that_does_not_exist_ends_as_in_a_shell(bench: Bench) -> None:
    ended = await bench.run("no-such-program")

    assert (ended.exit.reason, ended.exit.code) == (ExitReason.EXITED, 127)


@on_every_kind
async def test_environment_and_arguments_arrive_unchanged(bench: Bench) -> None:
    odd = "two words, 'quotes', ünïcode\nand a second line"
    program = "import os, sys; print(repr((os.environ['ODD'], sys.argv[1])))"

    ended = await bench.run(*python(program), odd, env={**bench.spec("x").env, "ODD": odd})

    assert ended.text() == repr((odd, odd)) + "\n"


@on_every_kind
async def test_logs_are_followed_live(bench: Bench) -> None:
    """Long before the job ends."""
    handle = await bench.start(*python("import time; print('first'); time.sleep(600)"))

    assert await read_until(bench.executor, handle, "\n") == "first\n"

    await bench.executor.stop(handle, 0)


@on_every_kind
async def test_a_follower_goes_on_from_its_offsets(bench: Bench) -> None:
    program = "import sys; [print(f'line {n}', file=(sys.stdout, sys.stderr)[n % 2]) for n in range(1000)]"
    ended = await bench.run(*python(program))

    resumed = await read_logs(bench.executor, ended.handle, stdout_from=100, stderr_from=2000)

    assert text_of(resumed, "stdout") == ended.text("stdout")[100:]
    assert text_of(resumed, "stderr") == ended.text("stderr")[2000:]
    assert next(chunk.offset for chunk in resumed if chunk.stream == "stdout") == 100


@on_every_kind
async def test_an_endless_log_keeps_its_newest_part_and_its_offsets(bench: Bench) -> None:
    program = (
        "import sys; line = 'x' * 1023 + '\\n'; [sys.stdout.write(line) for _ in range(8 * 1024)]; print('the end')"
    )

    ended = await bench.run(*python(program))

    kept = sum(len(chunk.data) for chunk in ended.chunks)
    assert ended.exit.code == 0
    assert MIB // 4 < kept <= LIMITS.log_bytes
    assert ended.text().endswith("\nthe end\n")
    assert ended.chunks[-1].offset + len(ended.chunks[-1].data) == 8 * MIB + len("the end\n")


@on_every_kind
async def test_the_deadline_is_kept(bench: Bench) -> None:
    ended = await bench.run("sleep", "600", max_duration_ms=400)

    assert (ended.exit.reason, ended.exit.code) == (ExitReason.MAX_DURATION, 143)
    assert 400 <= ended.exit.finished_at_ms - ended.exit.started_at_ms < 30_000


@on_every_kind
async def test_stop_lets_the_job_finish_its_business(bench: Bench) -> None:
    program = """
import signal, sys, time
def bye(*_):
    print("checkpoint written")
    sys.exit(7)
signal.signal(signal.SIGTERM, bye)
print("ready")
time.sleep(600)
"""
    handle = await bench.start(*python(program))
    await read_until(bench.executor, handle, "\n")

    await bench.executor.stop(handle, 10_000)
    ended = await bench.executor.wait(handle)

    assert (ended.reason, ended.code) == (ExitReason.STOPPED, 7)
    assert text_of(await read_logs(bench.executor, handle)) == "ready\ncheckpoint written\n"


@on_every_kind
async def test_stop_kills_a_stubborn_job_after_the_grace(bench: Bench) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(600)"
    handle = await bench.start(*python(program))
    await read_until(bench.executor, handle, "\n")
    asked = time.monotonic()

    await bench.executor.stop(handle, 500)
    ended = await bench.executor.wait(handle)

    assert ended.reason is ExitReason.STOPPED
    assert 0.4 < time.monotonic() - asked < 30


@on_every_kind
async def test_stop_wait_and_remove_are_safe_at_any_time(bench: Bench) -> None:
    handle = await bench.start("true")
    first = await bench.executor.wait(handle)
    again = await asyncio.gather(bench.executor.wait(handle), bench.executor.wait(handle))
    await bench.executor.stop(handle, 1000)

    assert again == [first, first]
    assert (first.reason, first.code) == (ExitReason.EXITED, 0)
    for _ in range(3):
        await bench.executor.remove(handle)
        await bench.executor.stop(handle, 1000)
    assert not await bench.executor.reattach(handle)
    assert await read_logs(bench.executor, handle) == []
    with pytest.raises(ExecutorError):
        await bench.executor.wait(handle)


@on_every_kind
async def test_remove_ends_a_running_job(bench: Bench) -> None:
    handle = await bench.start("sleep", "600")

    assert left_behind(bench.root, bench.token) != []  # the look-out sees what is there
    await bench.executor.remove(handle)

    assert left_behind(bench.root, bench.token) == []


@on_every_kind
async def test_a_name_is_taken_until_it_is_removed(bench: Bench) -> None:
    handle = await bench.start("sleep", "600")

    with pytest.raises(AlreadyRunning) as refusal:
        await bench.start("true")
    await bench.executor.remove(handle)
    ended = await bench.run("true")

    assert refusal.value.code == "already_running"
    assert ended.exit.code == 0


@on_every_kind
async def test_reap_takes_strangers_and_leaves_what_is_kept(bench: Bench) -> None:
    kept = await bench.start("sleep", "600", name="kept")
    for name in ("stranger-1", "stranger-2"):
        await bench.start("sleep", "600", name=name)
    ended = await bench.start("true", name="stranger-3")
    await bench.executor.wait(ended)

    names = await bench.executor.reap(frozenset({"kept"}))

    assert sorted(names) == ["stranger-1", "stranger-2", "stranger-3"]
    assert await bench.executor.reattach(kept)
    assert not await bench.executor.reattach(ended)


@on_every_kind
async def test_an_image_that_is_not_there(bench: Bench) -> None:
    with pytest.raises(ImageNotFound) as refusal:
        await bench.executor.prepare("torg.invalid/no/such:image")

    assert refusal.value.code == "image_not_found"


@on_every_kind
async def test_prepare_names_what_runs(bench: Bench) -> None:
    first = await bench.executor.prepare("host-python")
    second = await bench.executor.prepare("host-python")

    assert first == second
    assert first.digest.startswith("sha256:")
    assert len(first.digest) == len("sha256:") + 64


@on_isolating_kinds
async def test_mounts_are_where_they_should_be_and_only_writable_ones_can_be_written(bench: Bench) -> None:
    inputs = bench.root.resolve() / "inputs"
    inputs.mkdir()
    (inputs / "data").write_text("given")
    program = """
import os
print(open("/inputs/data").read(), os.getcwd())
open("result", "w").write("made")
try:
    open("/inputs/data", "w")
except OSError as error:
    print(error.strerror)
"""

    ended = await bench.run(*python(program), workdir="/workspace", mounts=[bench.folder(), Mount(inputs, "/inputs")])

    assert ended.text() == "given /workspace\nRead-only file system\n", ended.text("stderr")
    assert (bench.root / "workspace" / "result").read_text() == "made"
    assert (inputs / "data").read_text() == "given"


@on_isolating_kinds
async def test_running_out_of_memory_is_told_from_other_ends(bench: Bench) -> None:
    ended = await bench.let_go(f"{WAITS}kept = []\nwhile True: kept.append(bytearray(b'x') * (1 << 20))")

    assert (ended.exit.reason, ended.exit.code) == (ExitReason.OOM, 137)


@on_isolating_kinds
async def test_a_child_that_runs_out_of_memory_counts_when_the_job_fails_of_it(bench: Bench) -> None:
    program = f"""{WAITS}
import sys
if os.fork() == 0:
    kept = bytearray(b"x") * (1 << 30)
_, status = os.wait()
sys.exit(1 if os.WIFSIGNALED(status) else 0)
"""
    ended = await bench.let_go(program)

    assert (ended.exit.reason, ended.exit.code) == (ExitReason.OOM, 1)


@on_isolating_kinds
async def test_a_job_that_kills_itself_did_not_run_out_of_memory(bench: Bench) -> None:
    ended = await bench.run(*python("import os; os.kill(os.getpid(), 9)"))

    assert (ended.exit.reason, ended.exit.code) == (ExitReason.EXITED, 137)


@on_isolating_kinds
async def test_an_endless_file_ends_the_job_at_its_limit(bench: Bench) -> None:
    program = "file = open('/workspace/big', 'wb', 0)\nwhile True: file.write(bytes(1 << 20))"

    ended = await bench.run(*python(program), mounts=[bench.folder()])

    assert ended.exit.reason is ExitReason.DISK_FULL
    assert (bench.root / "workspace" / "big").stat().st_size <= LIMITS.disk_bytes


@on_isolating_kinds
async def test_endless_files_end_the_job_near_its_limit(bench: Bench) -> None:
    """No single file grows too large; the sum does. Without a quota the watch may be late by what a second can write."""
    program = """
import time
for number in range(10_000):
    with open(f"/workspace/{number}", "wb") as file:
        file.write(bytes(1 << 20))
    time.sleep(0.05)
"""
    ended = await bench.run(*python(program), mounts=[bench.folder()])

    assert ended.exit.reason is ExitReason.DISK_FULL
    written = sum(path.stat().st_size for path in (bench.root / "workspace").iterdir())
    assert written < 5 * LIMITS.disk_bytes


@on_isolating_kinds
async def test_a_quota_disk_fills_up_and_the_host_does_not(bench: Bench) -> None:
    disk = QuotaDisk(bench.root.resolve() / "disk", LIMITS.disk_bytes, owner=(65534, 65534))
    assert disk.open().enforced
    program = """
for number in range(10_000):
    with open(f"/workspace/{number}", "wb") as file:
        file.write(bytes(1 << 20))
"""
    try:
        ended = await bench.run(*python(program), mounts=[Mount(disk.files, "/workspace", writable=True)])
        written = sum(path.stat().st_size for path in disk.files.iterdir())
        await bench.executor.remove(ended.handle)
    finally:
        disk.remove()

    assert (ended.exit.reason, ended.exit.code) == (ExitReason.DISK_FULL, 1)
    assert "No space left on device" in ended.text("stderr")
    assert LIMITS.disk_bytes * 0.9 < written <= LIMITS.disk_bytes


@on_isolating_kinds
async def test_a_pinned_job_runs_on_its_own_processors(bench: Bench) -> None:
    last = max(os.sched_getaffinity(0))
    ended = await bench.run(*python("import os; print(sorted(os.sched_getaffinity(0)))"), cpus=(last,))

    assert ended.text() == f"[{last}]\n"


@on_isolating_kinds
async def test_a_fork_bomb_stays_in_its_box(bench: Bench) -> None:
    program = """
import os, time
made = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(600)
    except OSError as error:
        print(made, error.strerror)
        break
    made += 1
"""
    ended = await bench.run(*python(program))

    made, _, reason = ended.text().partition(" ")
    assert LIMITS.pids // 2 < int(made) <= LIMITS.pids
    assert reason == "Resource temporarily unavailable\n"
    await until(lambda: left_behind(bench.root, bench.token) == [])  # the bomb's children went with it


@on_isolating_kinds
async def test_half_a_core_is_half_a_core(bench: Bench) -> None:
    program = """
import time
end, used = time.monotonic() + 1.5, time.process_time()
while time.monotonic() < end: pass
print(time.process_time() - used)
"""
    ended = await bench.run(*python(program), limits=replace(LIMITS, cpu_millis=300))

    assert float(ended.text()) < 0.75  # 0.45 s are granted; a free core would give 1.5 s


@on_isolating_kinds
async def test_a_job_survives_the_sigkill_of_its_agent(bench: Bench, request: pytest.FixtureRequest) -> None:
    program = (
        "import time; print('before', flush=True); time.sleep(1.5); print('after', flush=True); raise SystemExit(3)"
    )
    agent = start_agent(bench.kind.source(request, bench.root), "survivor", python(program), bench.token)
    try:
        assert agent.stdout is not None
        line = await asyncio.to_thread(agent.stdout.readline)
        handle = Handle(**json.loads(line))
    finally:
        agent.kill()
        agent.wait()
        if agent.stdout is not None:
            agent.stdout.close()

    assert await bench.executor.reattach(handle)
    chunks = await read_logs(bench.executor, handle)
    ended = await bench.executor.wait(handle)

    assert text_of(chunks) == "before\nafter\n"
    assert (ended.reason, ended.code) == (ExitReason.EXITED, 3)
    assert ended.finished_at_ms - ended.started_at_ms >= 1400
