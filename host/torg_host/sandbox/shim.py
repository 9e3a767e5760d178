# The shim is started for every container, and pathlib alone would cost it 6 ms.
# ruff: noqa: PTH105, PTH106, PTH110, PTH120, PTH123
"""The process beside each container: `python -m torg_host.sandbox.shim STATE_DIR [REPORT_FD] [LIFELINE_FD]`.

It outlives whoever started it. It reads `plan.json` from its state directory, starts bubblewrap, keeps the logs, enforces the
deadline, stops the container on request (`stop.json` and a signal), and at the end writes `exit.json`, whole or not at all.
When the shim is killed bubblewrap dies with it. One JSON line on REPORT_FD says whether the container runs. When
LIFELINE_FD closes the container is killed and its state deleted (for one-shot runs, which nobody would come back for).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time

from torg_host.cgroups import Cgroup, detect
from torg_host.sandbox import processes, watch
from torg_host.sandbox.bwrap_status import BwrapStatus, command_failure
from torg_host.sandbox.child import Pipes, spawn
from torg_host.sandbox.output import LogWriter, Throttle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

READ_BYTES = 64 << 10
START_TIMEOUT_S = 60.0  # of a host that is busy beyond measure
DRAIN_TIMEOUT_S = 5.0
IDLE_WAKE_S = 1.0  # looks for stop.json even when the signal got lost
NEWS_WAKE_MS = 100
WATCH_INTERVAL_S = 1.0
MAX_DETAIL, RESERVED_BYTES = 2000, 16 << 10  # characters, each of which JSON may write as six bytes


def main(arguments: list[str]) -> None:
    state_dir = arguments[0]
    report = int(arguments[1]) if len(arguments) > 1 else -1
    lifeline = int(arguments[2]) if len(arguments) > 2 else -1
    channel = int(arguments[3]) if len(arguments) > 3 else -1
    for descriptor in (report, lifeline, channel):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    if os.fork():
        os._exit(0)  # the starter waits for this one; the grandchild belongs to nobody
    processes.become_reaper()
    shim = Shim(state_dir, lifeline, channel, now_ms=lambda: time.time_ns() // 1_000_000)
    try:
        shim.run(report)
    except Exception as error:  # whatever it is, the container must not outlive its guard
        shim.abandon(f"the shim failed: {type(error).__name__}: {error}")
        raise


class Shim:
    def __init__(self, state_dir: str, lifeline: int, channel: int, now_ms: Callable[[], int]) -> None:
        self._dir = state_dir
        self._lifeline, self._channel = lifeline, channel
        self._now_ms = now_ms
        with open(f"{state_dir}/plan.json") as file:
            self._plan: dict[str, Any] = json.load(file)
        self._cgroup = self._own_cgroup()
        self._pipes = Pipes()
        self._logs = LogWriter(f"{state_dir}/logs", self._plan["log_bytes"])
        self._throttle = Throttle(time.monotonic())
        self._open: dict[int, str] = {self._pipes.stdout: "stdout", self._pipes.stderr: "stderr"}
        self._status = BwrapStatus(self._pipes.status)
        self._stderr_head = b""
        self._bwrap = self._bwrap_fd = self._main_fd = -1
        self._started_at_ms = now_ms()
        self._started = time.monotonic()
        self._ending: str | None = None  # the reason, once this shim has decided to end it
        self._kill_at: float | None = None
        self._is_abandoned = False
        self._watch_at = self._request_at = 0.0
        self._detail: list[str] = []

    def run(self, report: int) -> None:
        wake, wake_far = os.pipe()
        os.set_blocking(wake_far, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake_far, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._reserve("exit.json")
        self._write_json("shim.json", processes.identity())
        failure = self._start()
        if failure:
            self._finish("start_failed", None, failure)
            _answer(report, {"failed": failure})
            return
        _answer(report, {"started_at_ms": self._started_at_ms})
        self._supervise(wake)
        self._end()

    def abandon(self, detail: str) -> None:
        self._kill()
        self._finish("killed", None, detail)

    # --- start ------------------------------------------------------------------------------------------------------

    def _own_cgroup(self) -> Cgroup | None:
        if self._plan["cgroup"] is None:
            return None
        hierarchy = detect()
        if hierarchy is None:
            raise OSError(0, "the control groups that the plan names are not there")
        return Cgroup(hierarchy, self._plan["cgroup"]["name"])

    def _start(self) -> str | None:
        """Starts the container and waits until its program runs. Returns why it does not, or None."""
        try:
            if self._cgroup is not None:
                limits = self._plan["cgroup"]
                self._cgroup.create(
                    memory_bytes=limits["memory_bytes"], pids=limits["pids"], cpu_millis=limits["cpu_millis"]
                )
            self._bwrap = spawn(self._plan, self._dir, self._pipes, self._cgroup)
        except Exception as error:  # noqa: BLE001  the reason goes to the starter, whatever it is
            return f"{error}"
        self._bwrap_fd = os.pidfd_open(self._bwrap)
        self._started_at_ms, self._started = self._now_ms(), time.monotonic()
        try:
            if self._wait_for_program() or self._status.exit_code() is not None:
                return None
        except OSError as error:
            self._kill()
            return f"{error}"
        self._kill()
        self._drain()
        return self._stderr_head.decode(errors="replace").strip() or "bubblewrap ended without a word"

    def _wait_for_program(self) -> bool:
        """Bubblewrap's first child is the container's init; its first child is the program, once it is no longer bubblewrap."""
        deadline = time.monotonic() + START_TIMEOUT_S
        ended, news = select.poll(), select.poll()
        ended.register(self._bwrap_fd, select.POLLIN)
        for descriptor in (self._bwrap_fd, self._pipes.status):
            news.register(descriptor, select.POLLIN)
        while time.monotonic() < deadline:
            self._status.read()
            if (init := self._status.child_pid()) is not None:
                self._hand_over_listener(init)
                for pid in processes.children(init):
                    if processes.command_name(pid) not in {"bwrap", ""}:
                        self._main_fd = processes.open_pidfd(pid)
                        self._write_json("program.json", processes.identity(pid))
                        self._started_at_ms, self._started = self._now_ms(), time.monotonic()
                        return True
            else:
                news.poll(NEWS_WAKE_MS)  # not each millisecond: bubblewrap needs the processor
            if ended.poll(1 if init is not None else 0):
                self._status.read()
                self._drain()
                return self._status.exit_code() is not None or command_failure(self._stderr_head) is not None
        return False

    def _hand_over_listener(self, init: int) -> None:
        """Once, before the program runs: bubblewrap waits for it. Without a listener the program does not run."""
        if self._channel < 0:
            return
        from torg_host.sandbox import handover  # rarely needed

        handover.hand_over(init, self._plan["listener_port"], self._channel)
        os.close(self._channel)
        self._channel = -1
        os.write(self._pipes.go, b"!")

    # --- while it runs ----------------------------------------------------------------------------------------------

    def _supervise(self, wake: int) -> None:
        deadline = time.monotonic() + self._plan["max_duration_ms"] / 1000
        while True:
            now = time.monotonic()
            self._look_at_clock(now, deadline)
            self._look_at_disk(now)
            ready = self._poll(wake, now, deadline)
            for descriptor in ready:
                if descriptor in self._open:
                    self._read_output(descriptor)
            if wake in ready:
                os.read(wake, 4096)
            if wake in ready or now >= self._request_at:
                self._request_at = now + IDLE_WAKE_S
                self._look_at_request()
            if self._lifeline in ready:
                self._lifeline, self._is_abandoned = -1, True
                self._end_now("killed", "its starter is gone")
            if self._bwrap_fd in ready:
                return

    def _poll(self, wake: int, now: float, deadline: float) -> set[int]:
        poll = select.poll()
        pause = self._throttle.pause_s(now)
        waited_for = [wake, self._bwrap_fd, *([] if pause else self._open)]
        for descriptor in [*waited_for, *([self._lifeline] if self._lifeline >= 0 else [])]:
            poll.register(descriptor, select.POLLIN)
        ends = [now + IDLE_WAKE_S, self._kill_at or now + IDLE_WAKE_S]
        if self._ending is None:
            ends.append(deadline)
        if pause:
            ends.append(now + pause)
        return {descriptor for descriptor, _ in poll.poll(max(0, min(ends) - now) * 1000 + 1)}

    def _look_at_clock(self, now: float, deadline: float) -> None:
        if self._ending is None and now >= deadline:
            self._end_softly("max_duration", now, self._plan["deadline_grace_ms"])
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._kill()

    def _look_at_disk(self, now: float) -> None:
        if now < self._watch_at or not self._plan["disk"]["watched"]:
            return
        used = sum(watch.used_bytes(path) for path in self._plan["disk"]["watched"])
        # Where looking takes long it is done less often: at most a twentieth of one core.
        self._watch_at = time.monotonic() + max(WATCH_INTERVAL_S, 20 * (time.monotonic() - now))
        if used > self._plan["disk"]["limit_bytes"] and self._ending is None:
            self._end_now("disk_full", f"{used} bytes written, the limit is {self._plan['disk']['limit_bytes']}")

    def _look_at_request(self) -> None:
        try:
            with open(f"{self._dir}/stop.json") as file:
                grace_ms = int(json.load(file)["grace_ms"])
            os.replace(f"{self._dir}/stop.json", f"{self._dir}/stop.seen.json")
        except FileNotFoundError:
            return
        self._end_softly("stopped", time.monotonic(), grace_ms)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGTERM:  # the host shuts down, or a person ended the shim
            self._end_softly("killed", time.monotonic(), self._plan["deadline_grace_ms"])

    def _read_output(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            del self._open[descriptor]
            os.close(descriptor)
            return
        stream = self._open[descriptor]
        if stream == "stderr" and len(self._stderr_head) < 4000:
            self._stderr_head += data[:4000]
        self._throttle.took(len(data), time.monotonic())
        try:
            self._logs.write(stream, data)
        except OSError as error:  # the host's disk is full: the job goes on, its logs end here
            if not any("logs" in line for line in self._detail):
                self._detail.append(f"logs are incomplete: {error.strerror}")

    # --- the end ----------------------------------------------------------------------------------------------------

    def _end_softly(self, reason: str, now: float, grace_ms: int) -> None:
        """SIGTERM to the program, SIGKILL to all after the grace. A second call can only shorten the grace."""
        kill_at = now + grace_ms / 1000
        if self._ending is None:
            self._ending = reason
            if self._main_fd < 0 or grace_ms <= 0:
                kill_at = now
            else:
                processes.send(self._main_fd, signal.SIGTERM)
        self._kill_at = min(kill_at, self._kill_at or kill_at)

    def _end_now(self, reason: str, detail: str) -> None:
        self._ending = self._ending or reason
        self._detail.append(detail)
        self._kill()

    def _kill(self) -> None:
        """Bubblewrap takes its whole process namespace with it; the group catches what a broken one might leave."""
        if self._bwrap_fd >= 0:
            processes.send(self._bwrap_fd, signal.SIGKILL)
        if self._cgroup is not None:
            self._cgroup.kill_all()

    def _end(self) -> None:
        _, wait_status = os.waitpid(self._bwrap, 0)
        self._bwrap_fd = -1
        if self._cgroup is not None:
            self._cgroup.kill_all()
        processes.reap_orphans(DRAIN_TIMEOUT_S)
        self._drain()
        self._status.read()
        code = self._status.exit_code()
        if code is None:
            code = command_failure(self._stderr_head)
        if code is None:
            self._detail.append(f"the sandbox itself ended, wait status {wait_status}")
        self._finish(self._reason(code), code, "; ".join(self._detail))
        if self._is_abandoned:
            self._delete_state()

    def _delete_state(self) -> None:
        import shutil  # slow to import, and rarely needed

        shutil.rmtree(self._dir, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(self._dir))  # the scratch directory that was made for this run alone

    def _reason(self, code: int | None) -> str:
        if self._ending is not None:
            return self._ending
        if self._cgroup is not None and code != 0:
            if self._cgroup.oom_kills():
                return "oom"
            if self._cgroup.host_oom_kills():
                self._detail.append("the host ran out of memory")
                return "killed"
        if code is None:
            return "killed"
        return "disk_full" if code != 0 and self._disk_is_full() else "exited"

    def _disk_is_full(self) -> bool:
        disk = self._plan["disk"]
        if any(watch.is_full(path) for path in disk["quotas"]):
            return True
        # The largest file stops exactly at its limit (RLIMIT_FSIZE), which the watch may never have seen.
        return bool(disk["watched"]) and sum(map(watch.used_bytes, disk["watched"])) >= disk["limit_bytes"]

    def _finish(self, reason: str, code: int | None, detail: str) -> None:
        self._logs.close()
        outcome = {
            "reason": reason,
            "code": code,
            "started_at_ms": self._started_at_ms,
            "finished_at_ms": self._started_at_ms + round((time.monotonic() - self._started) * 1000),
            "peak_memory_bytes": self._cgroup.peak_memory_bytes() if self._cgroup is not None else None,
            "detail": detail[:MAX_DETAIL],
        }
        if self._cgroup is not None:
            self._cgroup.remove()
        self._write_json("exit.json", outcome)

    # --- small parts ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Reads what is left in the pipes. Bounded: every writer is dead, or will be."""
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        while self._open and time.monotonic() < deadline:
            poll = select.poll()
            for descriptor in self._open:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(100):
                self._read_output(descriptor)

    def _reserve(self, name: str) -> None:
        """Room for the last word, which must be said on a full disk too."""
        with open(f"{self._dir}/.{name}.partial", "w") as file:
            file.write(" " * RESERVED_BYTES)

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        """Whole or not at all. Not fsynced: when the host itself goes down the container was killed, whatever was written."""
        partial = f"{self._dir}/.{name}.partial"
        with open(partial, "r+" if os.path.exists(partial) else "w") as file:
            json.dump(value, file)  # over what was reserved, whose blanks behind it are JSON too
        os.replace(partial, f"{self._dir}/{name}")


def _answer(report: int, value: dict[str, Any]) -> None:
    if report >= 0:
        # Broken when the starter died meanwhile; it will find the container by its state directory.
        with contextlib.suppress(BrokenPipeError):
            os.write(report, json.dumps(value).encode() + b"\n")
        os.close(report)


if __name__ == "__main__":
    main(sys.argv[1:])
