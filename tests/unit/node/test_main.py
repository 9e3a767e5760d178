"""The agent's command line: what its owner writes, as the rest of the node needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.node_settings import settings_in
from torg_node.__main__ import _parser
from torg_node.settings import write_settings
from torg_node.sole_agent import be_the_only_agent
from torg_protocol.errors import Conflict


def test_a_relative_data_folder_is_made_absolute_and_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)

    assert _parser().parse_args(["start", "--data", "link/node"]).data == tmp_path.resolve() / "real/node"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["drian"], 'torg-node: there is no command "drian"; did you mean "drain"?'),
        (["frobnicate"], 'torg-node: there is no command "frobnicate"; torg-node --help lists them'),
        ([], "First steps: init,"),
    ],
)
def test_a_command_that_is_none_is_answered_by_what_was_meant(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        _parser().parse_args(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_second_agent_on_a_folder_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    hold = "import sys; from pathlib import Path; from torg_node.sole_agent import be_the_only_agent as one; "
    hold += "one(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with pytest.raises(Conflict, match=f"process {first.pid}") as refused:
            be_the_only_agent(tmp_path, patience_s=0)
        assert refused.value.code == "node_running"
        first.kill()
    be_the_only_agent(tmp_path)()  # one that was killed leaves nothing behind


def test_a_reader_that_has_read_enough_is_no_trouble(tmp_path: Path) -> None:
    write_settings(settings_in(tmp_path))
    ask = [sys.executable, "-m", "torg_node", "earnings", "--data", str(tmp_path)]
    with subprocess.Popen(ask, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asked:
        assert asked.stdout is not None
        asked.stdout.close()  # long before it answers
        assert asked.stderr is not None
        assert asked.stderr.read() == ""
        assert asked.wait(60) == 0


def test_an_idle_agent_does_not_carry_what_only_some_leases_need() -> None:
    """Each of these is megabytes for as long as the agent lives; `python -m benchmarks.node_idle` weighs the whole."""
    sometimes = {"aiohttp", "asyncssh", "cryptography", "obstore", "prometheus_client", "pyrage"}
    ask = f"import sys, torg_node.__main__; print(*{sometimes} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True, timeout=120)
    assert loaded.stdout.split() == []
