"""`torg`: run work on other people's GPUs, pay for useful seconds only.

Every command is a small module loaded on first use, so that `torg --help` and `torg ps` start quickly. Exit codes: 0; 1 refused or
failed; 2 wrong usage; 70 a defect of torg; 130 Ctrl-C. Commands that follow a job to its end pass on the job's own exit code, and
end with 125 when torg itself failed.
"""

from __future__ import annotations

import gc
import importlib
import keyword
import os
import sys

import click

from torg.cli.groups import Group
from torg.cli.terminal import say, tolerate_odd_text

_SECTIONS = {
    "Run work": {
        "init": ("specs", "Write a commented job.yaml to start from."),
        "examples": ("specs", "Ready-made job files, to look at or to write here."),
        "validate": ("specs", "Check a job file without submitting it."),
        "import": ("imports", "A job file of another platform as one of ours, and what was dropped."),
        "quote": ("specs", "Can it run, where, for how much? Nothing is submitted."),
        "submit": ("jobs", "Submit a job file."),
        "run": ("run", "Run a command on the market with this directory as its workspace."),
        "retry": ("jobs", "Submit a job again, as it was."),
        "rent": ("rent", "Rent a node directly, paid by the minute, with no marketplace."),
        "rentals": ("rent", "Direct rentals of this computer: list, resume, close."),
    },
    "Follow it": {
        "ps": ("ps", "List jobs."),
        "show": ("jobs", "One job with its attempts."),
        "top": ("top", "All your open jobs, live."),
        "watch": ("watch", "A job live: state, figures, newest output."),
        "logs": ("jobs", "A job's output; -f follows it."),
        "wait": ("jobs", "Wait for a job; its exit code becomes this command's."),
        "pull": ("jobs", "Download a job's outputs."),
        "extend": ("jobs", "Let a job last longer."),
        "cancel": ("jobs", "Stop a job; what was useful until now is billed."),
        "data": ("data", "Data that stays in the store for more than one job."),
        "volume": ("volume", "Volumes that outlive a job and follow it to the next node."),
    },
    "Reach into it": {
        "exec": ("inside", "Run a command in a running job's container."),
        "ssh": ("inside", "A shell in a running job's container."),
        "port-forward": ("inside", "Reach ports of a running job at 127.0.0.1."),
    },
    "Money": {
        "wallet": ("wallet", "The key that is your wallet and your identity."),
        "vault": ("vault", "Open, fund, inspect and close the vault that pays for jobs."),
        "cost": ("cost", "What jobs have cost, and what open ones may."),
        "dispute": ("account", "Object to what a job cost; a person decides."),
        "disputes": ("account", "Your disputes and their decisions."),
        "receipt": ("receipts", "Show a job's receipts, or verify a receipt file without network."),
        "receipts": ("receipts", "All receipts that this computer keeps."),
        "audit": ("audit", "Check all receipts, and the chain, without trusting the marketplace."),
    },
    "Set up": {
        "login": ("market", "Choose the marketplace and pin its identity."),
        "offers": ("market", "What nodes offer."),
        "account": ("account", "Your quotas at the marketplace; delete your data there."),
        "report-abuse": ("account", "Tell the operator of a job or a node that does harm."),
        "keys": ("wallet", "Your public keys in every form that others ask for."),
        "completion": ("completion", "Completion for bash, zsh or fish."),
    },
}
COMMANDS = {name: entry for section in _SECTIONS.values() for name, entry in section.items()}


_GLOBAL_OPTIONS = ("--marketplace", "--home")


class LazyGroup(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"torg.cli.{COMMANDS[cmd_name][0]}")
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(module, f"{name}_" if keyword.iskeyword(name) else name)
        _explain_job(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table above is enough for --help: no command module is imported for it."""
        del ctx
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])


def _explain_job(command: click.Command) -> None:
    """Arguments have no help of their own."""
    if any(parameter.name == "job_id" for parameter in command.params):
        command.epilog = 'JOB: an id as "torg ps" shows it, or "last" for your newest job.'
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        _explain_job(inner)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--marketplace", metavar="URL", help="Marketplace to use (or TORG_MARKETPLACE).")
@click.option("--home", metavar="DIR", help="Key and journal directory (or TORG_HOME; default ~/.config/torg).")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Machine-readable output: one JSON document, or, where a job is followed, one line of JSON per event.",
)
@click.version_option(package_name="torg", message="torg %(version)s")
@click.pass_context
def cli(ctx: click.Context, marketplace: str | None, home: str | None, as_json: bool) -> None:
    """Run work on a decentralized GPU market; pay for useful seconds only.

    In commands, JOB is the id of a job, or "last" for your newest one.

    \b
    First steps:
      torg login --marketplace URL     torg wallet new     torg vault open --deposit 5
      torg init                        torg submit job.yaml --wait
    """
    ctx.obj = {"marketplace": marketplace, "home": home, "json": as_json}


def main() -> None:
    gc.disable()  # until the command runs: collecting while modules load is a tenth of the start-up time
    tolerate_odd_text()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # whoever signed up as one has nothing to do here
    try:
        code = cli.main(prog_name="torg", standalone_mode=False)
    except click.ClickException as error:
        code = _usage(error)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:  # `torg ps | head`: whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:  # noqa: BLE001 - known errors were explained where they arose; this is the rest
        code = _defect(error)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: click.ClickException) -> int:
    if isinstance(error, click.NoSuchOption) and error.option_name in _GLOBAL_OPTIONS:
        told = f"{error.format_message()} It belongs before the command: torg {error.option_name} ..."
        error = click.UsageError(told, error.ctx)
    if "--json" in sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]:
        import json

        problem = {"type": "urn:torg:error:usage", "title": error.format_message(), "status": 400, "code": "usage"}
        click.echo(json.dumps(problem), err=True)
    else:
        error.show()
    return error.exit_code


def _defect(error: Exception) -> int:
    """What nobody foresaw: a sentence, and the traceback for those who ask for it."""
    from torg_protocol.errors import TorgError

    if isinstance(error, TorgError):
        from torg.cli.session import explain

        explain(error, as_json="--json" in sys.argv)
        return 1
    if os.environ.get("TORG_DEBUG"):
        raise error
    say(
        f"torg: this should not have happened: {type(error).__name__}: {error} [defect]\n"
        "  nothing is lost: your journal and your jobs are safe. TORG_DEBUG=1 shows the traceback; please report it",
        err=True,
    )
    return 70


if __name__ == "__main__":
    main()
