"""Text that can be kept and handed on: to UTF-8, to a database, to a program's arguments and environment."""

from __future__ import annotations

import re
from collections.abc import Mapping

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def unstorable_text(document: object, place: str = "") -> tuple[str, str] | None:
    """Where in a JSON-like document the first text stands that cannot be kept, and why; None: all of it can."""
    match document:
        case str():
            found = _UNSTORABLE.search(document)
            if found is None:
                return None
            what = "a NUL character" if found[0] == "\0" else f"half of a surrogate pair (U+{ord(found[0]):04X})"
            return place or "$", f"{what} in a text, at character {found.start()}"
        case Mapping():
            for key, value in document.items():
                inner = f"{place}.{key}" if place else str(key)
                if (found_in := unstorable_text(key, place) or unstorable_text(value, inner)) is not None:
                    return found_in
        case list() | tuple():
            for number, value in enumerate(document):
                if (found_in := unstorable_text(value, f"{place}.{number}" if place else str(number))) is not None:
                    return found_in
        case _:
            pass  # numbers, true, false, null
    return None
