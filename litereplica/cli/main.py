"""The ``litereplica`` command: finds the sub-command, and turns every outcome into an exit code and at most one line.

Knows the names of the commands and the exit codes. A command's module is imported only when it is called: `version`
must not wait for the mount's libraries.
"""

import importlib
import os
import sys
import traceback
from typing import Any, Final, NoReturn

import click

from litereplica.cli.options import SharedOptions
from litereplica.errors import LitereplicaError

# Where each command is, and its line in the help (so that help imports none of them).
COMMANDS: Final = {
    "config": ("litereplica.cli.config_:config", "Check a configuration file, or show the settings in force."),
    "demo": ("litereplica.cli.demo:demo", "A primary and a replica on this machine, to try it out."),
    "diverged": ("litereplica.cli.diverged:diverged", "Transactions that this node had and the cluster does not."),
    "doctor": ("litereplica.cli.doctor:doctor", "Can this machine run a node?"),
    "failover": ("litereplica.cli.failover:failover", "Have another primary, without losing anything."),
    "history": ("litereplica.cli.history:history", "Who has been primary, since when, and why."),
    "lock": ("litereplica.cli.lock:lock", "Run a command while this node alone may write a database."),
    "proxy": ("litereplica.cli.proxy:proxy", "Serve an application's clients: reads here, writes on the primary."),
    "run": ("litereplica.cli.run:run", "Mount, replicate and serve until told to stop."),
    "status": ("litereplica.cli.status:status", "The whole cluster: roles, positions, lag."),
    "verify": ("litereplica.cli.verify:verify", "Compare a database with its log, and with another node."),
    "version": ("litereplica.cli.version:version", "Versions of everything that matters."),
    "wait": ("litereplica.cli.wait:wait", "Wait until a node has applied a transaction."),
}

EXIT_USAGE: Final = 2
EXIT_INTERNAL: Final = 1
# What a shell reports for a command ended by SIGINT and by SIGPIPE.
EXIT_INTERRUPTED: Final = 130
EXIT_NO_READER: Final = 141


class NoReader(Exception):
    """Whoever read our output is gone, as in ``litereplica status | head -1``."""


class LazyCommands(SharedOptions, click.Group):
    """The commands of COMMANDS, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names, in the order of the help."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command's module and return the command; None when there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command. click would make a closed pipe the exit code of a refusal."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise NoReader from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from COMMANDS alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Replicate SQLite databases between machines, underneath applications that are not changed.

    \b
    Exit codes: 0 done, 1 refused, 2 wrong usage or configuration, 3 unavailable (safe to ask again), 4 damaged bytes.
    """  # noqa: D301 - \b is click's mark for a paragraph that keeps its lines


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code. ``arguments`` are the process's unless told."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in (given[: given.index("--")] if "--" in given else given)
    try:
        code = _run(given)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the last edge: everything becomes an exit code here
        if debug and not isinstance(error, SystemExit | KeyboardInterrupt | NoReader):
            traceback.print_exception(error)
        code = _explain(error)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    result = cli.main(arguments, prog_name="litereplica", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _explain(error: BaseException) -> int:
    """Print the one line about an error, and return the exit code."""
    error = _cause(error)
    message: str | None
    match error:
        case LitereplicaError():
            message, code = error.message, error.exit_code
        case SystemExit():
            message, code = None, error.code if isinstance(error.code, int) else EXIT_INTERNAL
        case click.exceptions.NoArgsIsHelpError():
            message, code = None, EXIT_USAGE
            click.echo(error.ctx.get_help(), err=True)
        case click.ClickException():
            message, code = _usage(error), EXIT_USAGE
        case KeyboardInterrupt() | click.Abort():
            message, code = None, EXIT_INTERRUPTED
        case NoReader() | BrokenPipeError():
            # Python would complain when it flushes what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            message, code = None, EXIT_NO_READER
        case _:
            kind = type(error).__name__
            message = f"internal error: {kind}: {error}; please report it with the output of --debug before the command"
            code = EXIT_INTERNAL
    if message is not None:
        click.echo(f"litereplica: {' '.join(message.split())}", err=True)
    return code


def _cause(error: BaseException) -> BaseException:
    """Out of a nursery's group, the error that a person is to be told: ours before anybody else's."""
    leaves: list[BaseException] = []
    waiting = [error]
    while waiting:
        first = waiting.pop(0)
        if isinstance(first, BaseExceptionGroup):
            waiting.extend(first.exceptions)
        else:
            leaves.append(first)
    return next((leaf for leaf in leaves if isinstance(leaf, LitereplicaError)), leaves[0])


def _usage(error: click.ClickException) -> str:
    context: Any = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "litereplica"
    message = error.format_message()
    return f"{message}{'' if message.endswith(('.', '?')) else '.'} See '{where} --help'."
