"""Groups of commands that read alike: whole sentences in their lists, `list` and `ls` for one another, and "did you mean"."""

from __future__ import annotations

import click

_SAME = {"list": "ls", "ls": "list", "remove": "rm", "delete": "rm", "info": "show", "status": "show"}
_LONGEST_SENTENCE = 300


class Group(click.Group):
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, _SAME.get(cmd_name, cmd_name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib  # not for those who spell well

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if close:
                raise click.UsageError(f'{error.message} Did you mean "{close[0]}"?', ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(_LONGEST_SENTENCE)) for name, one in named if one])
