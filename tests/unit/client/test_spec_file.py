"""Job files: every problem with its line, what YAML would let pass in silence refused, nothing but an error of the tree."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.support.image_files import layer, write_image
from torg.spec_file import read_spec_file, spec_from_mapping
from torg.spec_source import parse_documents
from torg_protocol.errors import Invalid, TorgError

GOOD = """\
version: 1
command: [python, train.py]
"""


def problems(tmp_path: Path, text: str, name: str = "job.yaml") -> list[tuple[object, str, str, str | None]]:
    (tmp_path / name).write_text(text)
    with pytest.raises(Invalid) as refused:
        read_spec_file(tmp_path / name).check()
    return [
        (problem["line"], problem["field"], problem["message"], problem["hint"])
        for problem in refused.value.data["problems"]
    ]


def refused(tmp_path: Path, text: str | bytes, name: str = "job.yaml") -> Invalid:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(Invalid) as error:
        read_spec_file(tmp_path / name).check()
    return error.value


def test_all_problems_are_named_at_once_each_with_its_line_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
version: 1
nmae: x
command: python train.py
resources:
  gpu: 1
  memory: 5
"""
    found = problems(tmp_path, text)

    assert [(line, field) for line, field, _, _ in found] == [
        (2, "nmae"),
        (3, "command"),
        (5, "resources.gpu"),
        (6, "resources.memory"),
    ]
    assert found[0][2:] == ("unknown key", 'did you mean "name"?')
    assert found[1][2:] == ("a list is expected", "write it like [python, train.py]")
    assert found[2][2:] == ("unknown key", 'did you mean "gpus"?')
    assert "512MiB" in found[3][2]


def test_what_yaml_reads_as_something_else_is_shown_as_it_was_written(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + "env:\n  DEBUG: yes\n  N: 010\nlimits: {max_cost: 0.50}\n")

    assert [(line, field, hint) for line, field, _, hint in found] == [
        (4, "env.DEBUG", 'put it in quotes: "yes"'),
        (5, "env.N", 'put it in quotes: "010"'),
        (6, "limits.max_cost", 'put it in quotes: "0.50"'),
    ]


def test_problems_inside_lists_and_unions_have_the_names_that_the_author_wrote(tmp_path: Path) -> None:
    text = "version: 1\ncommand:\n  - python\n  - 3\nverify:\n  policy: metric\n  catalog: cnn\n"
    found = {field: (line, message) for line, field, message, _ in problems(tmp_path, text)}

    assert found["command.1"] == (4, "a text is expected")
    assert found["verify.catalog"] == (7, "unknown key")
    assert found["verify.target"] == (5, "is missing")


def test_what_is_missing_is_placed_where_it_should_be(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: x\n") == [(1, "version", "is missing", None)]
    assert problems(tmp_path, "version: 1\n") == [(1, "command", "is missing", None)]


def test_json_files_have_lines_too_also_with_tabs(tmp_path: Path) -> None:
    text = '{\n\t"version": 1,\n\t"command": ["x"],\n\t"gpus": 3\n}\n'
    assert [(line, field) for line, field, _, _ in problems(tmp_path, text, "job.json")] == [(4, "gpus")]


@pytest.mark.parametrize(
    ("name", "text", "code", "line"),
    [
        ("job.yaml", "version: 1\n  name: : x\n", "spec_not_yaml", 2),
        ("job.yaml", "a: [1,\n", "spec_not_yaml", 2),
        ("job.yaml", "a: !!python/object:os.system {}\n", "spec_not_yaml", 1),
        ("job.yaml", "version: 1\nname: a\nname: b\n", "spec_key_twice", 3),
        ("job.yaml", "version: 1\nresources:\n  cpus: 1\n  cpus: 2\n", "spec_key_twice", 4),
        ("job.json", '{"version": 1,\n"version": 1}', "spec_key_twice", 2),
        ("job.json", '{"version": 1,\n}', "spec_not_json", 2),
        ("job.yaml", "version: 1\nname: \x1f\n", "spec_not_yaml", None),
        ("job.yaml", "", "spec_invalid", None),
        ("job.yaml", "- a\n- b\n", "spec_invalid", None),
        ("job.yaml", "just text", "spec_invalid", None),
        ("job.json", "[]", "spec_invalid", None),
        ("job.yaml", b"\xff\xfe\x00", "spec_not_text", None),
        ("job.yaml", "a: " + "x" * (1 << 20), "spec_too_large", None),
        ("job.yaml", "[" * 5000, "spec_not_yaml", None),
        ("job.json", "[" * 100_000, "spec_not_json", None),
    ],
)
def test_files_that_are_not_job_files(
    tmp_path: Path, name: str, text: str | bytes, code: str, line: int | None
) -> None:
    error = refused(tmp_path, text, name)

    assert error.code == code
    assert error.data.get("line") == line


def test_aliases_that_grow_without_bound_end_in_an_answer(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    error = refused(tmp_path, bomb)

    assert error.code == "spec_too_large"
    assert error.data["line"] in range(1, 10)


def test_an_alias_of_itself_ends_in_an_answer(tmp_path: Path) -> None:
    assert refused(tmp_path, "a: &a [*a]\n").code in {"spec_not_yaml", "spec_too_large"}


@pytest.mark.parametrize(
    ("workspace", "code"), [("nowhere", "workspace_not_found"), ("7", "spec_invalid"), ("[a]", "spec_invalid")]
)
def test_a_workspace_that_is_none_is_named_with_its_line(tmp_path: Path, workspace: str, code: str) -> None:
    error = refused(tmp_path, GOOD + f"workspace: {workspace}\n")

    assert (error.code, error.field, error.data["problems"][0]["line"]) == (code, "workspace", 3)


def test_a_workspace_is_relative_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "inner/code").mkdir(parents=True)
    (tmp_path / "inner/job.yaml").write_text(GOOD + "workspace: code\n")

    assert read_spec_file(tmp_path / "inner/job.yaml").workspace == tmp_path / "inner/code"


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(GOOD))
    assert read_spec_file(Path("-")).check().command == ("python", "train.py")


def test_yaml_and_json_of_one_spec_are_one_spec(tmp_path: Path) -> None:
    raw = {"version": 1, "command": ["a"], "env": {"X": "1"}, "limits": {"max_duration": "15m"}}
    (tmp_path / "a.json").write_text(json.dumps(raw))
    (tmp_path / "a.yaml").write_text(
        "base: &b {max_duration: 15m}\n".replace("base: &b ", "limits: ") + GOOD + "env: {X: '1'}\n"
    )
    (tmp_path / "a.yaml").write_text((tmp_path / "a.yaml").read_text().replace("python, train.py", "a"))

    digests = {read_spec_file(tmp_path / name).check().digest for name in ("a.json", "a.yaml")}
    assert len(digests) == 1


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
_KEYS = st.sampled_from(["version", "command", "resources", "limits", "verify", "policy", "env", "gpus", "x", "1"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=12
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_KEYS, _VALUES, max_size=5))
def test_whatever_is_in_the_file_the_answer_is_an_error_of_the_tree(raw: dict[str, object]) -> None:
    import yaml

    text = yaml.safe_dump(raw)
    try:
        (parsed,) = parse_documents(text, "job.yaml")
        from torg.spec_file import spec_from_mapping

        spec_from_mapping(parsed.raw, base=Path(), source=parsed.source).check()
    except TorgError:
        event("refused")


@given(st.text(max_size=200))
def test_whatever_the_text_the_answer_is_an_error_of_the_tree(text: str) -> None:
    for name in ("job.yaml", "job.json"):
        try:
            parse_documents(text, name)
        except TorgError:
            event("refused")


def test_an_image_file_becomes_the_digest_of_its_bytes(tmp_path: Path) -> None:
    write_image(tmp_path / "image.tar", [layer(("a", b"a"))])
    content = (tmp_path / "image.tar").read_bytes()
    (tmp_path / "image.tar.gz").write_bytes(gzip.compress(content))
    (tmp_path / "tree.tar").write_bytes(layer(("a", b"a")))
    raw = {"version": 1, "image": "file:image.tar"}

    file = spec_from_mapping(raw, base=tmp_path)

    assert file.check().image == "blob:sha256:" + hashlib.sha256(content).hexdigest()
    for wrong, code in (
        ("file:gone.tar", "image_not_found"),
        ("file:image.tar.gz", "image_archive_compressed"),
        ("file:tree.tar", "image_archive_invalid"),
        ("blob:sha256:12", "spec_invalid"),
    ):
        with pytest.raises(Invalid) as refused:
            spec_from_mapping({**raw, "image": wrong, "command": ["x"]}, base=tmp_path).check()
        assert (refused.value.code, refused.value.field) == (code, "image")


def test_problems_of_tasks_are_placed_on_their_lines(tmp_path: Path) -> None:
    text = """\
version: 1
tasks:
  - name: a
    command: [x]
    restart: sometimes
  - name: b
    command: [x]
    depend_on: [a]
    depends_on:
      - task: a
        until: later
"""
    assert sorted((line, field) for line, field, *_ in problems(tmp_path, text)) == [
        (5, "tasks.0.restart"),
        (8, "tasks.1.depend_on"),
        (11, "tasks.1.depends_on.0.until"),
    ]
    between = text.replace("sometimes", "never").replace("    depend_on: [a]\n", "").replace("later", "started")
    ((line, field, *_),) = problems(tmp_path, between.replace("task: a", "task: c"))
    assert (line, field) == (9, "tasks.1.depends_on.0")


def test_a_file_of_several_documents_is_refused_where_the_second_begins(tmp_path: Path) -> None:
    error = refused(tmp_path, f"{GOOD}---\n{GOOD}")
    assert (error.code, error.data["line"]) == ("spec_several_documents", 3)
    assert "submit them one after the other" in str(error.hint)
    for one in (f"---\n{GOOD}...\n", f"---\n---\n{GOOD}---\n# the end\n"):  # with its marks, and with nothing beside it
        (tmp_path / "job.yaml").write_text(one)
        assert read_spec_file(tmp_path / "job.yaml").check().command == ("python", "train.py")


def test_aliases_of_many_documents_together_are_bounded(tmp_path: Path) -> None:
    large = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b, *b, *b]\n"
    assert refused(tmp_path, f"---\n{large}" * 30).code == "spec_too_large"
