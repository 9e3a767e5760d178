"""`torg`: run work on other people's GPUs, pay for useful seconds only.

Every command is a small module loaded on first use, so that `torg --help` and `torg ps` start quickly. Errors of the tree in
torg_protocol.errors end with exit code 1 and one message (or problem details with --json); Ctrl-C with 130.
"""

from __future__ import annotations

import importlib
import sys

import click

_COMMANDS = {
    "quote": ("jobs", "Can it run, where, for how much? Nothing is submitted."),
    "submit": ("jobs", "Submit a job file."),
    "run": ("run", "Run a command on the market with this directory as its workspace."),
    "ps": ("jobs", "List jobs."),
    "show": ("jobs", "One job with its attempts."),
    "logs": ("jobs", "A job's output; -f follows it."),
    "wait": ("jobs", "Wait for a job; its exit code becomes this command's."),
    "pull": ("jobs", "Download a job's outputs."),
    "cancel": ("jobs", "Stop a job; what was useful until now is billed."),
    "receipt": ("receipts", "Show a job's receipts, or verify a receipt file without network."),
    "offers": ("market", "What nodes offer."),
    "login": ("market", "Choose the marketplace and pin its identity."),
    "validate": ("jobs", "Check a job file without submitting it."),
    "wallet": ("wallet", "The key that is your wallet and your identity."),
    "vault": ("vault", "Open, fund, inspect and close the vault that pays for jobs."),
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"torg.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table above is enough for --help: no command module is imported for it."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            if close:
                raise click.UsageError(f'{error.message} Did you mean "{close[0]}"?', ctx) from error
            raise


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--marketplace", metavar="URL", help="Marketplace to use (or TORG_MARKETPLACE).")
@click.option("--home", metavar="DIR", help="Key and journal directory (or TORG_HOME; default ~/.config/torg).")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output: JSON, one value or one line per event.")
@click.version_option(package_name="torg")
@click.pass_context
def cli(ctx: click.Context, marketplace: str | None, home: str | None, as_json: bool) -> None:
    """Run work on a decentralized GPU market; pay for useful seconds only."""
    ctx.obj = {"marketplace": marketplace, "home": home, "json": as_json}


def main() -> None:
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except Exception as error:  # noqa: BLE001 - known errors are explained, the rest is raised again
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Known errors become one message; anything else is a defect and keeps its traceback."""
    from torg_protocol.errors import TorgError

    if not isinstance(error, TorgError):
        raise error
    if "--json" in sys.argv:
        import json

        click.echo(json.dumps(error.to_problem()), err=True)
    else:
        click.echo(f"torg: {error}", err=True)
    return 1


if __name__ == "__main__":
    main()
