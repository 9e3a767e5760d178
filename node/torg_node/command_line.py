"""argparse, with errors that say what was meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import NoReturn

COMMAND = "COMMAND"


class CommandLine(argparse.ArgumentParser):
    """Its subcommands have the metavar COMMAND: a list of twenty names in braces is read by nobody."""

    def error(self, message: str) -> NoReturn:
        if message.endswith(f"arguments are required: {COMMAND}"):
            self.print_help(sys.stderr)
            sys.exit(2)
        unknown = re.fullmatch(rf"argument {COMMAND}: invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL)
        if unknown is None:
            super().error(message)
        given, known = unknown.group(1), re.findall(r"'([^']*)'", unknown.group(2))
        close = difflib.get_close_matches(given, known, n=1)
        meant = f'did you mean "{close[0]}"?' if close else f"{self.prog} --help lists them"
        self.exit(2, f'{self.prog}: there is no command "{given}"; {meant}\n')
