"""`torg completion`: what a shell needs to complete commands, options and job ids."""

from __future__ import annotations

import click

from torg.cli.session import Session, command
from torg_protocol.errors import Invalid

_WHERE = {
    "bash": "~/.local/share/bash-completion/completions/torg",
    "zsh": "a directory of your $fpath, as _torg",
    "fish": "~/.config/fish/completions/torg.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_WHERE)))
@command
async def completion(session: Session, shell: str) -> None:
    """Completion for bash, zsh or fish: prints what belongs into the shell's own file.

    \b
    torg completion bash > ~/.local/share/bash-completion/completions/torg
    """
    from click.shell_completion import get_completion_class

    from torg.cli.__main__ import cli

    found = get_completion_class(shell)
    if found is None:
        raise Invalid("no completion for this shell", code="shell_unknown", field="shell", value=shell)
    text = found(cli, {}, "torg", "_TORG_COMPLETE").source()
    session.show({"shell": shell, "script": text}, text)
    session.hint(f"it belongs into {_WHERE[shell]}")
