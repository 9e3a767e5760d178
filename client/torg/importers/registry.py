"""Which format a document has, told by its content; and its translation. Modules load only when one of their files is read."""

from __future__ import annotations

import importlib
from typing import Any

from torg.importers.translation import Translation


def format_of(raw: dict[str, Any]) -> str | None:
    """The name of the foreign format's module; None: it is one of ours, or nothing that is known."""
    if isinstance(raw.get("ops"), list):
        from torg.importers.nosana import is_nosana

        return "nosana" if is_nosana(raw) else None
    return None


def translation_of(raw: dict[str, Any]) -> Translation | None:
    """None for a job file of our own. Raises Invalid (code "spec_invalid") with all problems of a foreign file."""
    name = format_of(raw)
    if name is None:
        return None
    translation: Translation = importlib.import_module(f"torg.importers.{name}").translate(raw)
    return translation
