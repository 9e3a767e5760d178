"""The command line without a market: help, start-up, wrong input, exit codes, and that no secret is ever shown."""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solders.keypair import Keypair

from torg import transport
from torg.cli import __main__ as entry
from torg.cli.examples import EXAMPLES, starter
from torg.cli.watch import curve, printable
from torg.spec_file import read_spec_file


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Torg = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def torg(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> Torg:
    """Runs a command in this process, as the console script does."""
    monkeypatch.setenv("TORG_HOME", str(home))
    monkeypatch.setattr(transport, "_FIRST_BACKOFF_S", 0.001)
    monkeypatch.chdir(tmp_path)
    for name in ("TORG_MARKETPLACE", "TORG_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["torg", *arguments])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as end:
                entry.main()
        finally:
            gc.enable()
        captured = capfd.readouterr()
        return Result(end.value.code if isinstance(end.value.code, int) else 0, captured.out, captured.err)

    return run


@pytest.fixture
def nobody() -> str:
    """An address at which nobody answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def commands() -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in entry.COMMANDS:
        command = entry.cli.get_command(click.Context(entry.cli), name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {}
        found += [((name,), command)] if not inner else [((name, sub), child) for sub, child in inner.items()]
    return found


# --- start-up -----------------------------------------------------------------------------------------------------------

HEAVY = {"solana", "spl", "rich", "yaml", "pygments", "markdown_it", "torch", "numpy"}


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {line.partition(".")[0] for line in done.stdout.splitlines()}


def test_help_loads_neither_network_nor_models() -> None:
    loaded = modules_after("import torg.cli.__main__, torg")

    assert "click" in loaded
    assert not loaded & (HEAVY | {"httpx", "pydantic", "solders", "asyncio", "sqlite3"})


def test_listing_jobs_loads_no_chain_no_terminal_library_and_no_yaml() -> None:
    loaded = modules_after("import torg.cli.__main__, torg.cli.jobs")

    assert "httpx" in loaded
    assert not loaded & HEAVY


# --- help ---------------------------------------------------------------------------------------------------------------


def test_every_command_says_what_it_does_and_every_option_what_it_is_for() -> None:
    silent = []
    for path, command in commands():
        if not command.help:
            silent.append(" ".join(path))
        silent += [
            f"{' '.join(path)} {parameter.opts[0]}"
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.help and parameter.name != "order"
        ]
    assert silent == []


def test_every_command_about_a_job_says_what_names_one() -> None:
    about = [(path, command) for path, command in commands() if any(item.name == "job_id" for item in command.params)]

    assert {("show",), ("logs",), ("receipt", "show"), ("ssh",)} <= {path for path, _ in about}
    assert [path for path, command in about if '"last" for your newest job' not in (command.epilog or "")] == []


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_there_for_every_command(torg: Torg, flag: str) -> None:
    for path, _ in commands():
        result = torg(*path, flag)
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"Usage: torg {' '.join(path)}")


def test_the_table_of_commands_names_each_once_and_shows_all(torg: Torg) -> None:
    out = torg("--help").out
    for name, (_, text) in entry.COMMANDS.items():
        assert f"  {name} " in out
        assert text[:40] in out


@pytest.mark.parametrize(("typed", "meant"), [("sumbit", "submit"), ("log", "logs"), ("recepits", "receipts")])
def test_a_typing_error_is_answered_with_what_was_meant(torg: Torg, typed: str, meant: str) -> None:
    result = torg(typed)
    assert result.code == 2
    assert f'Did you mean "{meant}' in result.err


# --- wrong input --------------------------------------------------------------------------------------------------------

NEED_MARKET = [
    ("ps",), ("show", "job_01m8btcfmygenkw2tanbedqfe4"), ("logs", "job_01m8btcfmygenkw2tanbedqfe4"), ("logs", "-f", "job_01m8btcfmygenkw2tanbedqfe4"), ("wait", "job_01m8btcfmygenkw2tanbedqfe4"), ("pull", "job_01m8btcfmygenkw2tanbedqfe4"),
    ("cancel", "job_01m8btcfmygenkw2tanbedqfe4"), ("extend", "job_01m8btcfmygenkw2tanbedqfe4", "--by", "30m"), ("retry", "job_01m8btcfmygenkw2tanbedqfe4"), ("watch", "job_01m8btcfmygenkw2tanbedqfe4"), ("receipt", "show", "job_01m8btcfmygenkw2tanbedqfe4"), ("offers",), ("login",),
    ("wallet", "show"), ("wallet", "faucet"), ("vault", "open", "--deposit", "1"), ("vault", "deposit", "1"),
    ("vault", "status"), ("vault", "list"), ("vault", "settlements"), ("vault", "add", "x"), ("vault", "adopt"),
    ("run", "--no-workspace", "--", "true"), ("quote", "hello.yaml"), ("submit", "hello.yaml"),
]  # fmt: skip
PASS_EXIT_CODE = {
    ("logs", "-f", "job_01m8btcfmygenkw2tanbedqfe4"),
    ("wait", "job_01m8btcfmygenkw2tanbedqfe4"),
    ("watch", "job_01m8btcfmygenkw2tanbedqfe4"),
    ("run", "--no-workspace", "--", "true"),
}


@pytest.mark.parametrize("arguments", NEED_MARKET, ids=" ".join)
def test_a_marketplace_that_is_away_is_one_sentence_with_the_address_and_the_way_out(
    torg: Torg, tmp_path: Path, nobody: str, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "hello.yaml").write_text(EXAMPLES["hello"].text)
    assert torg("wallet", "new").code == 0

    result = torg("--marketplace", nobody, *arguments)

    assert result.code == (125 if arguments in PASS_EXIT_CODE else 1)
    assert "marketplace_unreachable" in result.err
    assert nobody in result.err
    assert "--marketplace" in result.err
    assert result.out == ""
    assert "Traceback" not in result.err


@pytest.mark.parametrize("arguments", NEED_MARKET, ids=" ".join)
def test_with_json_an_error_is_one_document_of_problem_details_on_standard_error(
    torg: Torg, tmp_path: Path, nobody: str, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "hello.yaml").write_text(EXAMPLES["hello"].text)
    torg("wallet", "new")

    result = torg("--json", "--marketplace", nobody, *arguments)

    problem = json.loads(result.err)
    assert (problem["code"], problem["value"]) == ("marketplace_unreachable", nobody)
    assert result.out == ""


NEED_WALLET = [arguments for arguments in NEED_MARKET if arguments not in {("offers",), ("login",)}]


@pytest.mark.parametrize("arguments", NEED_WALLET, ids=" ".join)
def test_without_a_wallet_one_is_told_how_to_make_one(torg: Torg, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "hello.yaml").write_text(EXAMPLES["hello"].text)
    result = torg(*arguments)

    assert result.code in {1, 125}
    assert "[no_wallet]" in result.err
    assert "torg wallet new" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--marketplace", "nonsense", "ps"), 1, "[marketplace_url_invalid]"),
        (("validate", "missing.yaml"), 1, "[spec_not_found]"),
        (("validate", "."), 1, "[spec_not_found]"),
        (("run", "--max-duration", "5", "--", "x"), 125, "[spec_invalid]"),
        (("run", "--max-duration", "9999h", "--", "x"), 125, "at most 30d (limits.max_duration = '9999h')"),
        (("run", "-e", "novalue", "--", "x"), 125, "[env_invalid]"),
        (("run", "job.yml"), 125, "[spec_not_found]"),
        (("run", "--workspace", "nowhere", "--", "x"), 125, "[workspace_not_found]"),
        (("run",), 2, "Missing argument"),
        (("submit",), 2, "Missing argument"),
        (("ps", "--limit", "0"), 2, "--limit"),
        (("ps", "--state", "sleeping"), 2, "sleeping"),
        (("ps", "--nonsense"), 2, "--nonsense"),
        (("receipt", "verify", "missing.json"), 1, "[receipt_not_found]"),
        (("wallet", "import", "missing.json"), 1, "[wallet_not_found]"),
        (("wallet", "address"), 1, "[wallet_not_found]"),
        (("keys",), 1, "[wallet_not_found]"),
        (("examples", "nothing"), 1, "[example_unknown]"),
        (("completion", "powershell"), 2, "powershell"),
        (("audit",), 1, "[never_connected]"),
        (("receipts", "--offline"), 1, "[never_connected]"),
        (("cost", "--offline"), 1, "[never_connected]"),
        (("vault", "close", "--network", "missing.json"), 2, "missing.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_input_is_named_and_never_a_traceback(
    torg: Torg, arguments: tuple[str, ...], code: int, words: str
) -> None:
    if arguments[0] == "run":
        torg("wallet", "new")
    result = torg(*arguments)

    assert result.code == code
    assert words in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_a_usage_error_is_json_when_json_was_asked_for(torg: Torg) -> None:
    assert json.loads(torg("--json", "sumbit").err)["code"] == "usage"
    assert json.loads(torg("ps", "--json", "--limit", "many").err)["code"] == "usage"


def test_a_flag_of_the_job_is_not_a_flag_of_torg(torg: Torg) -> None:
    result = torg("run", "--", "prog", "--json")
    assert "torg: you have no wallet yet" in result.err


def test_a_defect_is_a_sentence_and_its_traceback_is_for_those_who_ask(
    torg: Torg, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr("torg.spec_file.parse_documents", broken)
    (tmp_path / "job.yaml").write_text("version: 1")

    result = torg("validate", "job.yaml")
    assert result.code == 70
    assert "ZeroDivisionError: nobody thought of this [defect]" in result.err
    assert "TORG_DEBUG" in result.err
    assert "Traceback" not in result.err

    monkeypatch.setenv("TORG_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["torg", "validate", "job.yaml"])
    with pytest.raises(ZeroDivisionError):
        entry.main()
    gc.enable()


def test_a_full_disk_is_no_defect(torg: Torg, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torg.spec_file.parse_documents", full)
    (tmp_path / "job.yaml").write_text("version: 1")
    result = torg("validate", "job.yaml")
    assert result.code == 1
    assert "torg: No space left on device [disk_full]\n  make room" in result.err
    assert json.loads(torg("validate", "job.yaml", "--json").err)["code"] == "disk_full"
    assert torg("run", "job.yaml").code == 125  # 1 could be the job's own


def test_a_home_that_cannot_be_written_is_explained(torg: Torg, home: Path) -> None:
    home.write_text("a file")
    result = torg("wallet", "new")

    assert result.code == 1
    assert str(home) in result.err
    assert "Traceback" not in result.err


def test_a_reader_that_has_read_enough_ends_it_quietly(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['torg', 'examples', 'hello']; from torg.cli.__main__ import main; main()"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writing)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# --- secrets ------------------------------------------------------------------------------------------------------------


def test_a_wallet_is_for_its_owner_only_and_its_secret_is_never_shown(torg: Torg, home: Path) -> None:
    made = torg("wallet", "new")
    file = home / "wallet.json"
    key = Keypair.from_json(file.read_text())
    results = [made, torg("wallet", "address"), torg("keys"), torg("--json", "keys"), torg("wallet", "new")]

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secrets = {str(key), bytes(key).hex(), str(list(bytes(key)))[1:40], bytes(key.secret()).hex()}
    for result in results:
        assert not any(secret in result.out + result.err for secret in secrets)
        assert str(key.pubkey()) in result.out or result.code == 1


def test_a_second_wallet_never_replaces_the_first(torg: Torg, home: Path, tmp_path: Path) -> None:
    torg("wallet", "new")
    before = (home / "wallet.json").read_bytes()
    other = tmp_path / "other.json"
    other.write_text(json.dumps(list(bytes(Keypair()))))

    for result in (torg("wallet", "new"), torg("wallet", "import", str(other))):
        assert (result.code, "[wallet_exists]" in result.err) == (1, True)
    assert (home / "wallet.json").read_bytes() == before
    assert [path.name for path in home.iterdir()] == ["wallet.json"]


@pytest.mark.parametrize("text", ["", "not a key", "[1,2,3]", "[" + ",".join(["7"] * 64) + "]", "5" * 88])
def test_what_is_no_key_is_refused_without_repeating_it(torg: Torg, home: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    result = torg("wallet", "import", str(file))

    assert (result.code, result.out) == (1, "")
    assert "[wallet_invalid]" in result.err
    assert len(text) < 5 or text not in result.err
    assert not (home / "wallet.json").exists()


@pytest.mark.parametrize("form", ["json", "base58"])
def test_both_forms_of_a_solana_key_are_taken_over(torg: Torg, home: Path, tmp_path: Path, form: str) -> None:
    key = Keypair()
    file = tmp_path / "key"
    file.write_text(json.dumps(list(bytes(key))) if form == "json" else f"{key}\n")
    result = torg("--json", "wallet", "import", str(file))

    assert json.loads(result.out)["address"] == str(key.pubkey())
    assert stat.S_IMODE((home / "wallet.json").stat().st_mode) == 0o600


def test_a_key_that_others_can_read_is_not_used(torg: Torg, home: Path) -> None:
    torg("wallet", "new")
    (home / "wallet.json").chmod(0o644)
    result = torg("wallet", "address")

    assert result.code == 1
    assert "[wallet_readable_by_others]" in result.err
    assert "chmod 600" in result.err


def test_the_ssh_form_of_the_key_is_what_openssh_reads(torg: Torg) -> None:
    asyncssh = pytest.importorskip("asyncssh") if importlib.util.find_spec("asyncssh") else None
    torg("wallet", "new")
    keys = json.loads(torg("--json", "keys").out)
    kind, blob = keys["ssh"].split()
    import base64

    raw = base64.b64decode(blob)
    assert kind == "ssh-ed25519"
    assert raw[:15] == b"\0\0\0\x0bssh-ed25519"
    assert raw[15:19] == b"\0\0\0\x20"
    from solders.pubkey import Pubkey

    assert str(Pubkey(raw[19:])) == keys["wallet"]
    if asyncssh is not None:
        assert asyncssh.import_public_key(keys["ssh"]).get_algorithm() == "ssh-ed25519"


# --- job files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_every_example_is_a_valid_job(torg: Torg, tmp_path: Path, name: str) -> None:
    (tmp_path / "workloads/cnn").mkdir(parents=True)
    assert torg("examples", name, "-w", "job.yaml").code == 0
    assert torg("--json", "validate", "job.yaml").code == 0


@given(name=st.text(max_size=100), gpus=st.integers(0, 64))
def test_the_file_that_init_writes_is_valid_in_a_directory_of_any_name(
    tmp_path_factory: pytest.TempPathFactory, name: str, gpus: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "job.yaml"
    file.write_text(starter(name, gpus))
    spec = read_spec_file(file).check()

    assert spec.resources.gpus == gpus


def test_init_does_not_overwrite_unless_told_to(torg: Torg, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("mine")
    assert "[file_exists]" in torg("init").err
    assert (tmp_path / "job.yaml").read_text() == "mine"

    assert torg("init", "--force").code == 0
    assert torg("validate", "job.yaml").code == 0


# --- screens ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300), st.integers(10, 120))
def test_a_curve_fits_its_width_and_shows_low_and_high(values: list[float], width: int) -> None:
    line = curve(values, width)

    assert len(line) == min(len(values), width)
    if len(values) <= width and max(values) > min(values):
        assert line[values.index(max(values))] == "█"
        assert line[values.index(min(values))] == "▁"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain\ttext", "plain\ttext"),
        ("\x1b[2Jgone", "[2Jgone"),
        ("10%\r20%\r30%", "30%"),
        ("a\r", "a"),
        ("\x07bell", "bell"),
    ],
)
def test_output_of_a_job_cannot_move_the_cursor(raw: str, shown: str) -> None:
    assert printable(raw) == shown


def test_completion_is_made_for_each_shell_and_knows_commands(torg: Torg, monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in ("zsh", "fish", "bash"):
        assert "_TORG_COMPLETE" in torg("completion", shell).out

    monkeypatch.setenv("_TORG_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "torg rec")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert torg().out.split() == ["plain,receipt", "plain,receipts"]


def test_lists_of_subcommands_have_whole_sentences(torg: Torg) -> None:
    for group in ("wallet", "vault", "data", "volume", "receipt", "account", "rentals"):
        shown = torg(group, "--help")
        assert (shown.code, "..." in shown.out.partition("Commands:")[2]) == (0, False), shown.out


def test_list_and_ls_are_one_word_and_a_misspelt_subcommand_is_guessed(torg: Torg) -> None:
    for words in (("rentals", "ls"), ("vault", "ls"), ("data", "list"), ("volume", "list")):
        assert torg(*words, "--help").code == 0
    assert 'Did you mean "deposit"?' in torg("vault", "depsit").err


def test_a_global_option_after_the_command_is_told_where_it_belongs(torg: Torg) -> None:
    said = torg("ps", "--marketplace", "http://x")
    assert (said.code, "torg --marketplace ..." in said.err) == (2, True)
