"""``litereplica wait``: the command-line form of waiting for catch-up.

Knows how a position is written. The waiting itself is the node's.
"""

import re
import time
from typing import Any, Final

import click

from litereplica.cli.options import Options, command, node_url, print_json
from litereplica.errors import Misconfigured, Unavailable

_POSITION: Final = re.compile(r"([0-9a-f]{16})(?:/([0-9a-f]{16}))?", re.IGNORECASE)

# On top of the timeout that the node keeps: the way there and back.
NETWORK_ALLOWANCE_S: Final = 10.0
# Whoever waits longer asks again, and so learns that the node is gone.
LONGEST_QUESTION_S: Final = 600.0
# Less than this is left of the time because of how it is written, and not because the node gave up early.
SHORTEST_QUESTION_S: Final = 0.01


@command("wait", short_help="Wait until a node has applied a transaction.")
@click.argument("db")
@click.argument("txid")
@click.option("--timeout", default="30s", show_default=True, metavar="DURATION", help="Give up after this long.")
def wait(options: Options, db: str, txid: str, timeout: str) -> None:
    """Return when the node has applied transaction TXID (16 hex digits) of database DB, and readers see it.

    A whole position, TXID/checksum as in the file DB-pos, also makes sure that it is the same history. Prints the
    position reached. Exit code 3 when the time is up, 1 when there is no such database or another history.
    """
    from litereplica.config.units import parse_duration  # noqa: PLC0415 - only when it is about to be used

    match = _POSITION.fullmatch(txid.strip())
    if match is None:
        raise Misconfigured(f"'{txid}' is not a TXID: write 16 hex digits, or a whole position as in the file {db}-pos")
    try:
        timeout_s = parse_duration(timeout)
    except ValueError as error:
        raise Misconfigured(f"--timeout: {error}") from error
    parameters = {"db": db, "txid": match[1].lower()}
    if match[2]:
        parameters["checksum"] = match[2].lower()
    reached = _ask(node_url(options), parameters, timeout_s)
    if options.json:
        print_json(reached)
    else:
        click.echo(f"{reached.get('txid')}/{reached.get('checksum')}")


def _ask(url: str, parameters: dict[str, str], timeout_s: float) -> dict[str, Any]:
    """Ask until the time is up: no node lets one question wait for ever. Raises as asking once does."""
    from litereplica.cli.client import TimeUp, get  # noqa: PLC0415 - only when it is about to be used

    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(min(deadline - time.monotonic(), LONGEST_QUESTION_S), 0.0)
        timed = parameters | {"timeout": f"{left_s:.3f}s"}
        try:
            return get(url, "/wait", timed, answer_timeout_s=left_s + NETWORK_ALLOWANCE_S)
        except TimeUp as error:
            if time.monotonic() < deadline - SHORTEST_QUESTION_S:
                continue
            if left_s < timeout_s - SHORTEST_QUESTION_S:
                # The node knows of the last question only.
                raise Unavailable(f"{timeout_s:g} s are over: {error.message}") from None
            raise
