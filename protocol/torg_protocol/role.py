"""How a program of one role begins: where the packages of its role are not installed, it says which, and how to get them. Its release it says without them."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

VERSION_OPTION, VERSION_HELP = "--version", "Show the release and exit."


def release(program: str) -> str:
    """One form for all programs."""
    return f"{program} {importlib.metadata.version('torg')}"


def begin(program: str, module: str, extra: str) -> None:
    """Runs `main` of the module. Packages come by role (`torg[node]`), so that a client does not bring a marketplace's."""
    if sys.argv[1:] == [VERSION_OPTION]:
        print(release(program))  # noqa: T201 - the answer
        sys.exit()
    try:
        importlib.import_module(module).main()
    except KeyboardInterrupt:  # while it loads
        print(f"{program}: interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("torg"):
            raise
        sys.exit(f"{program}: {error.name} is not installed [role_incomplete]\n  pip install 'torg[{extra}]'")
