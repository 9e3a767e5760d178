"""`$(NAME)` in commands and variables, as Kubernetes fills it in; Akash's providers hand their containers to it."""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$(?:(\$)|\(([^)]*)\))")


def expanded(text: str, env: Mapping[str, str]) -> str:
    """A variable that is set becomes its value, one that is not stays as it is written (it may be a shell's), and `$$` is one dollar."""

    def value_of(match: re.Match[str]) -> str:
        return "$" if match.group(1) else env.get(match.group(2), match.group())

    return _REFERENCE.sub(value_of, text)
