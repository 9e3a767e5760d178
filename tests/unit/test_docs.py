"""What the documents say exists: links, anchors, make targets, commands with their options, the SDK's names."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

import torg
from scripts import job_schema
from torg.cli.__main__ import cli
from torg_marketplace.command_line import parser as marketplace_parser
from torg_node.__main__ import _parser as node_parser

ROOT = Path(__file__).resolve().parents[2]
SHELL = {"", "sh", "bash", "console"}
PROGRAMS = ("torg", "torg-node", "torg-marketplace", "torg-localnet", "make", "python")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@functools.cache
def documents() -> tuple[Path, ...]:
    names = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return tuple(ROOT / name for name in names if (ROOT / name).is_file())


def blocks(text: str, languages: set[str]) -> list[str]:
    return [body for language, body in _FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    return _FENCE.sub("", text)


# --- links ----------------------------------------------------------------------------------------------------------


def link_problems(file: Path, text: str) -> list[str]:
    """Relative links that lead nowhere: no such file, or no such heading in it."""
    found = []
    for target in _LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (file.parent / name).resolve() if name else file
        if place != file and not place.exists():
            found.append(f"{target}: there is no such file")
        elif anchor and anchor not in headings(text if place == file else place.read_text()):
            found.append(f"{target}: there is no such heading")
    return found


def headings(text: str) -> set[str]:
    """As they are linked to: lower case, without punctuation, spaces as hyphens."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", documents(), ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(file: Path) -> None:
    assert link_problems(file, file.read_text()) == []


# --- commands -------------------------------------------------------------------------------------------------------


def command_lines(text: str) -> Iterator[str]:
    """Of shell blocks: whole commands. A first word that is no program of ours is somebody else's business."""
    for body in blocks(text, SHELL):
        for line in body.replace("\\\n", " ").splitlines():
            line = re.sub(r" > \S+$", "", line.strip().removeprefix("$ ").removesuffix("&").strip())
            if line.split(" ")[0] in PROGRAMS:
                yield line


def inline_commands(text: str) -> Iterator[str]:
    """Of running text, between backticks: perhaps without their arguments, so only names and options are looked at."""
    for code in re.findall(r"`([^`\n]+)`", prose(text)):
        if code.split(" ")[0] in PROGRAMS and " " in code and not re.search(r"[|]|\.\.\.", code):
            yield code


def command_problem(line: str, *, whole: bool) -> str | None:
    """Why this command could not be run as it is written; None when it could."""
    program, *arguments = shlex.split(line, comments=True)
    try:
        match program:
            case "torg":
                context = click.Context(
                    cli, info_name="torg", obj={}, **cli.context_settings
                )  # click keeps what -h is called
                return _click_problem(cli, context, arguments, whole=whole)
            case "torg-node":
                return _argparse_problem(node_parser(), arguments, whole=whole)
            case "torg-marketplace":
                return _argparse_problem(marketplace_parser(), arguments, whole=whole)
            case "torg-localnet":
                options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
                unknown = options - set(re.findall(r"--[a-z-]+", _localnet_help()))
                return f"no such option: {', '.join(sorted(unknown))}" if unknown else None
            case "make":
                goals = [word for word in arguments if "=" not in word]
                unknown = set(goals) - make_targets()
                return f"no such target: {', '.join(sorted(unknown))}" if unknown else None
            case _:
                scripts = [word for word in arguments if word.endswith(".py") and "/" in word]
                missing = [word for word in scripts if not (ROOT / word).is_file()]
                return f"no such file: {', '.join(missing)}" if missing else None
    except click.UsageError as error:
        return error.format_message()


def _click_problem(command: click.Command, context: click.Context, arguments: list[str], *, whole: bool) -> str | None:
    if not isinstance(command, click.Group):
        if whole:
            command.make_context(command.name, list(arguments), parent=context)
        else:
            command.make_parser(context).parse_args(list(arguments))
        return None
    _, rest, _ = command.make_parser(context).parse_args(list(arguments))
    if not rest:
        return None if arguments or not whole else "no command"
    inner = command.get_command(context, rest[0])
    if inner is None:
        return f"no such command: {rest[0]}"
    return _click_problem(inner, click.Context(inner, context, info_name=rest[0]), rest[1:], whole=whole)


def _argparse_problem(parser: argparse.ArgumentParser, arguments: list[str], *, whole: bool) -> str | None:
    if whole:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parser.parse_args(arguments)
        except SystemExit:
            return said.getvalue().strip().splitlines()[-1]
        return None
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for word in arguments:
        if word in commands.choices:
            parser = commands.choices[word]
        elif word.startswith("--") and word not in parser._option_string_actions:
            return f"no such option: {word}"
        elif word == arguments[0] and not word.startswith("--"):
            return f"no such command: {word}"
    return None


@functools.cache
def _localnet_help() -> str:
    run = [sys.executable, "-m", "torg_chain.localnet", "--help"]
    return subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout


@functools.cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", documents(), ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_exist_with_their_options(file: Path) -> None:
    text = file.read_text()
    problems = [(line, command_problem(line, whole=True)) for line in command_lines(text)]
    problems += [(code, command_problem(code, whole=False)) for code in inline_commands(text)]

    assert [(line, problem) for line, problem in problems if problem is not None] == []


def test_the_first_steps_of_the_help_are_commands_too() -> None:
    steps = re.findall(r"torg .*?(?=\s{2,}|$)", cli.help or "", re.MULTILINE)

    assert len(steps) >= 4
    assert [(step, problem) for step in steps if (problem := command_problem(step, whole=True)) is not None] == []


def test_the_readme_starts_with_what_ci_runs() -> None:
    first = blocks((ROOT / "README.md").read_text(), SHELL)[0]
    commands = [line.split("#")[0].strip() for line in first.splitlines()]
    dry_run = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "check", "ARGS="],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout

    assert commands == ["make demo", "make test", "make check"]
    assert "make check" in (ROOT / ".ci/run").read_text()
    assert "-m scripts.demo" in dry_run
    tests = re.search(r"bin/pytest(.*)$", dry_run, re.MULTILINE)
    assert tests is not None
    assert tests[1].split() == ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "loadfile"], (
        "nothing left out"
    )


@pytest.mark.parametrize("file", documents(), ids=lambda file: str(file.relative_to(ROOT)))
def test_python_compiles_and_names_what_the_sdk_has(file: Path) -> None:
    for body in blocks(file.read_text(), {"python", "py"}):
        tree = ast.parse(body)
        names = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torg"
        }
        assert names <= set(torg.__all__)


# --- words ----------------------------------------------------------------------------------------------------------


def leaks(text: str) -> list[str]:
    """What speaks of how or where this was made, instead of what it is; and package hosts, which are the reader's choice."""
    words = [r"\bissue \d", r"prototype", r"\bfacts/", r"\bshared/", r"/root/", r"/home/", r"\bpypi\.", r"pythonhosted"]
    words += [r"docker\.io/", r"ghcr\.io", r"quay\.io", r"\bTODO\b", r"\bFIXME\b"]
    return [match[0] for word in words for match in re.finditer(word, text)]


@pytest.mark.parametrize("file", documents(), ids=lambda file: str(file.relative_to(ROOT)))
def test_documents_speak_of_the_project_alone(file: Path) -> None:
    assert leaks(file.read_text()) == []


# --- these tests can fail -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "whole", "problem"),
    [
        ("torg submitt job.yaml", True, "no such command: submitt"),
        ("torg vault opn", False, "no such command: opn"),
        ("torg submit", True, "Missing argument 'FILE'."),
        ("torg submit --wiat job.yaml", True, "No such option '--wiat'."),
        ("torg ps --state gone", True, "Invalid value for '--state'"),
        ("torg-node uncordon --json", True, "the following arguments are required: gpu"),
        ("torg-node begin", False, "no such command: begin"),
        ("torg-node start --port 1", False, "no such option: --port"),
        ("torg-marketplace serve --data x --prot 1", True, "unrecognized arguments: --prot 1"),
        ("torg-localnet --data x --genesis", True, "no such option: --genesis"),
        ("make domo ARGS=1", True, "no such target: domo"),
        ("python docker/engin.py start", True, "no such file: docker/engin.py"),
    ],
)
def test_wrong_commands_are_found(line: str, whole: bool, problem: str) -> None:
    assert problem in (command_problem(line, whole=whole) or "")


def test_wrong_links_and_words_are_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Here, it is\n")
    text = "[a](there.md#here-it-is) [b](there.md#gone) [c](gone.md) [d](https://example.org) [e](#nowhere)\n# Mine\n[f](#mine)"

    assert link_problems(tmp_path / "index.md", text) == [
        "there.md#gone: there is no such heading",
        "gone.md: there is no such file",
        "#nowhere: there is no such heading",
    ]
    assert leaks("as in issue 7, see shared/notes") == ["issue 7", "shared/"]


@pytest.mark.parametrize(
    "file",
    [file for file in documents() if "```yaml" in file.read_text()],
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_job_files_in_the_pages_are_valid(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole ones as they are; parts of one within the smallest job."""
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "deploy_key").write_text("secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in re.findall(r"\{env: (\w+)\}", file.read_text()):
        monkeypatch.setenv(name, "secret")
    for word, block in _FENCE.findall(file.read_text()):
        raw = yaml.safe_load(block) if word == "yaml" else {}
        least = {} if {"command", "tasks"} & raw.keys() else {"command": ["true"]}
        torg.spec_from_mapping({"version": 1, **least, **raw}, base=tmp_path)


def test_commands_are_found_where_they_are_written() -> None:
    text = "say `torg ps` and `torg-node init | start`\n```\ntorg-localnet --data x &\ntorg run \\\n  -- true\nls\n```\n```text\ntorg no\n```\n"

    assert list(inline_commands(text)) == ["torg ps"]
    assert [line.split() for line in command_lines(text)] == [
        ["torg-localnet", "--data", "x"],
        ["torg", "run", "--", "true"],
    ]


def test_the_published_schema_of_job_files_is_the_models() -> None:
    assert job_schema.FILE.read_text() == job_schema.text(), "run: python -m scripts.job_schema"
