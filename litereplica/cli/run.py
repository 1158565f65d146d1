"""``litereplica run``: be a node.

Knows the command line. Does not know how a node works (node.node).
"""

import sys

import click

from litereplica.cli.options import Options, command, load


@command(
    "run",
    short_help="Mount, replicate and serve until told to stop.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(options: Options, arguments: tuple[str, ...]) -> None:
    """Mount, replicate and serve until SIGTERM or Ctrl-C (once: a clean stop; twice: at once).

    A command after -- is started when the node is ready and supervised: signals are passed on to it, and its exit
    code becomes this one's.
    """
    import dataclasses  # noqa: PLC0415 - only when it is about to be used
    import gc  # noqa: PLC0415

    # What is imported stays: the collector need not look at all of it again and again.
    gc.disable()
    from litereplica.logs import configure_logs  # noqa: PLC0415
    from litereplica.node.main import run_node  # noqa: PLC0415

    gc.enable()
    found = load(options)
    if arguments:
        found = dataclasses.replace(found, exec=arguments)
    configure_logs(found.log.format, found.log.level)
    sys.exit(run_node(found))
