"""Which files of a directory tree stay at home: a small, documented subset of gitignore.

Read are `.torgignore` files when the tree's root has one, otherwise `.gitignore` files; each rules over its own directory and all
below it. A line is a pattern; blank lines and lines starting with `#` are skipped; the last pattern that matches decides.

    name          a file or directory of that name, at any depth
    dir/          a directory only
    /name a/b     with a slash at the start or inside: anchored to the directory of the ignore file
    * ? [abc]     wildcards within one path component; ** crosses components
    !pattern      takes it back (as in git, not below a directory that is itself left out)

Not in the subset: backslash escapes, `$GIT_DIR/info/exclude`, the user's global excludes. `.git` is always left out.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

TORG_FILE, GIT_FILE = ".torgignore", ".gitignore"
ALWAYS_LEFT_OUT = frozenset({".git"})


@dataclass(frozen=True, slots=True)
class Rule:
    pattern: re.Pattern[str]  # against the path relative to the ignore file's directory
    base: str  # that directory, "" for the root, else "a/b/"
    directories_only: bool
    keep: bool  # a line that started with "!"

    def matches(self, path: str, is_directory: bool) -> bool:
        if self.directories_only and not is_directory:
            return False
        return path.startswith(self.base) and self.pattern.fullmatch(path, len(self.base)) is not None


def parse_rules(text: str, base: str = "") -> tuple[Rule, ...]:
    """Rules of one ignore file that lies in directory `base` ("" or "a/b/"). Never raises: odd lines match literally."""
    rules = []
    for line in text.removeprefix("\ufeff").splitlines():  # the mark that some editors begin a file with
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        keep = line.startswith("!")
        pattern = line.removeprefix("!")
        directories_only = pattern.endswith("/")
        pattern = pattern.rstrip("/")
        if pattern:
            rules.append(Rule(_compiled(pattern), base, directories_only, keep))
    return tuple(rules)


def left_out(path: str, is_directory: bool, rules: tuple[Rule, ...]) -> bool:
    """Whether `path` (relative to the tree's root, with "/" between parts) stays at home."""
    if path.rsplit("/", 1)[-1] in ALWAYS_LEFT_OUT:
        return True
    for rule in reversed(rules):
        if rule.matches(path, is_directory):
            return not rule.keep
    return False


def _compiled(pattern: str) -> re.Pattern[str]:
    anchored = "/" in pattern
    expression = "" if anchored else "(?:.*/)?"
    rest = pattern.removeprefix("/")
    while rest:
        taken, expression_of_it = _next_piece(rest)
        expression += expression_of_it
        rest = rest[taken:]
    try:
        with warnings.catch_warnings(action="ignore"):  # "[a&&b]" may mean something else to a later Python
            return re.compile(expression, re.DOTALL)
    except re.error:  # a set like [z-a], which nothing matches in git either
        literal = re.escape(pattern.removeprefix("/"))
        return re.compile(literal if anchored else f"(?:.*/)?{literal}", re.DOTALL)


def _next_piece(rest: str) -> tuple[int, str]:
    """How many characters the next piece of the pattern takes, and the regular expression for it."""
    if rest.startswith("**/"):
        return 3, "(?:.*/)?"
    if rest.startswith("**"):
        return 2, ".*"
    if rest[0] == "*":
        return 1, "[^/]*"
    if rest[0] == "?":
        return 1, "[^/]"
    if rest[0] == "[" and (end := rest.find("]", 2)) > 0:
        inside = rest[1:end].replace("\\", "\\\\").replace("[", "\\[")
        negated = inside[0] in "!^"
        return end + 1, f"(?!/)[{'^' if negated else ''}{inside[1:] if negated else inside}]"
    return 1, re.escape(rest[0])
