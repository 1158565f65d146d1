"""``litereplica doctor``: whether this machine can run a node.

Knows how checks are shown and what they make of the exit code. What is checked is in checks.py.
"""

import dataclasses
import os
from typing import Final

import click

from litereplica.cli.checks import Check, check_machine, check_settings
from litereplica.cli.options import Options, command, load, print_json
from litereplica.cli.table import paint
from litereplica.config import find_file
from litereplica.errors import Misconfigured, Refused

_MARKS: Final = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "failed": ("FAILED", "red")}


@command("doctor", short_help="Can this machine run a node?")
def doctor(options: Options) -> None:
    """Look at everything a node depends on, and say what to do about what is in the way.

    Changes nothing. Exit code 0 when a node would start (warnings or not), 1 when something is in the way.
    """
    checks = _checks(options)
    blocked = [check for check in checks if check.state == "failed"]
    if options.json:
        print_json({"ok": not blocked, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        for check in checks:
            mark, colour = _MARKS[check.state]
            click.echo(f"{paint(mark.ljust(9), colour)}{check.name.ljust(18)}{check.found}")
            if check.advice:
                click.echo(f"{'':9}{'':18}{check.advice}")
    if blocked:
        raise SystemExit(Refused.exit_code)


def _checks(options: Options) -> list[Check]:
    file = find_file(options.config, os.environ)
    shown = str(file) if file else "no file, so the defaults hold"
    try:
        settings = load(options)
    except Misconfigured as error:
        advice = "correct it; until then its directories and ports cannot be looked at"
        return [Check("configuration", "failed", error.message, advice), *check_machine()]
    return [Check("configuration", "ok", shown), *check_machine(), *check_settings(settings)]
