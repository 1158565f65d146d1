"""``litereplica config``: is a file right, and what is in force.

Knows how problems and settings are shown. Does not know what is right: litereplica.config does.
"""

import os
from pathlib import Path

import click

from litereplica.cli.options import Options, SharedOptions, command, load, print_json
from litereplica.config import WrongSettings, load_settings, settings_document
from litereplica.errors import Misconfigured


class _Group(SharedOptions, click.Group):
    command_class = SharedOptions


@click.group("config", cls=_Group, short_help="Check a configuration file, or show the settings in force.")
def config() -> None:
    """Check a configuration file, or show the settings in force."""


@command("check", short_help="Is a configuration file right? Every problem, with its line.")
@click.argument("file", type=click.Path(path_type=Path))
def check(options: Options, file: Path) -> None:
    """Check FILE, with the variables of this environment: every problem on its own line; exit code 0 or 2."""
    try:
        load_settings(file, os.environ)
    except WrongSettings as error:
        if options.json:
            problems = [{"place": problem.place, "message": problem.message} for problem in error.problems]
            print_json({"file": str(file), "ok": False, "problems": problems})
        else:
            for problem in error.problems:
                click.echo(f"litereplica: {problem}", err=True)
        raise SystemExit(Misconfigured.exit_code) from None
    if options.json:
        print_json({"file": str(file), "ok": True, "problems": []})
    else:
        click.echo(f"{file}: ok")


@command("show", short_help="The settings in force, secrets hidden.")
def show(options: Options) -> None:
    """Print the settings in force, as a configuration file; passwords are replaced by three stars."""
    document = settings_document(load(options))
    if options.json:
        print_json(document)
        return
    import yaml  # noqa: PLC0415 - only here

    click.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120), nl=False)


config.add_command(check)
config.add_command(show)
