"""How a program of one role begins: where the packages of its role are not installed, it says which, and how to get them."""

from __future__ import annotations

import importlib
import sys


def begin(program: str, module: str, extra: str) -> None:
    """Runs `main` of the module. Packages come by role (`torg[node]`), so that a client does not bring a marketplace's."""
    try:
        importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("torg"):
            raise
        sys.exit(f"{program}: {error.name} is not installed [role_incomplete]\n  pip install 'torg[{extra}]'")
