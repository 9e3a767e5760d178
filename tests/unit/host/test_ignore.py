"""The documented subset of gitignore, line by line."""

from __future__ import annotations

import pytest

from torg_host.ignore import left_out, parse_rules


@pytest.mark.parametrize(
    ("lines", "path", "is_directory", "expected"),
    [
        ("*.pyc", "a/b/c.pyc", False, True),
        ("*.pyc", "a/b/c.py", False, False),
        ("build/", "x/build", True, True),
        ("build/", "x/build", False, False),
        ("/build", "build", True, True),
        ("/build", "x/build", True, False),
        ("a/b", "a/b", False, True),
        ("a/b", "x/a/b", False, False),
        ("a/*/c", "a/b/c", False, True),
        ("a/*/c", "a/b/b/c", False, False),
        ("a/**/c", "a/b/b/c", False, True),
        ("a/**/c", "a/c", False, True),
        ("**/cache", "x/y/cache", True, True),
        ("logs/**", "logs/x/y", False, True),
        ("file?.txt", "file1.txt", False, True),
        ("file?.txt", "file12.txt", False, False),
        ("[ab]x", "ax", False, True),
        ("[!ab]x", "ax", False, False),
        ("[!ab]x", "cx", False, True),
        ("*.log\n!keep.log", "keep.log", False, False),
        ("!keep.log\n*.log", "keep.log", False, True),
        ("# comment\n\nname", "# comment", False, False),
        ("name", "name", False, True),
        ("a.c", "abc", False, False),
        ("[", "[", False, True),
        ("[z-a]x", "[z-a]x", False, True),
        ("[!]", "[!]", False, True),
        ("a/[z-a]", "a/[z-a]", False, True),
        ("[a&&b]x", "&x", False, True),
        ("\ufeff.env\n*.key", ".env", False, True),
        ("secret.txt   \r\nother", "secret.txt", False, True),
        ("data/*\n!data/keep/", "data/keep", True, False),
        ("", ".git", True, True),
        ("", "sub/.git", False, True),
    ],
)
def test_a_pattern(lines: str, path: str, is_directory: bool, expected: bool) -> None:
    assert left_out(path, is_directory, parse_rules(lines)) is expected


def test_a_nested_file_rules_only_below_its_directory() -> None:
    rules = parse_rules("/data\n*.tmp", "sub/")

    assert left_out("sub/data", True, rules)
    assert left_out("sub/deep/x.tmp", False, rules)
    assert not left_out("data", True, rules)
    assert not left_out("sub/deep/data", True, rules)
    assert not left_out("x.tmp", False, rules)
