"""``litereplica proxy``: the HTTP proxy in front of an application.

Knows the command line. Does not know requests (litereplica.proxy).
"""

import socket
import sys

import click

from litereplica.cli.options import Options, command, load, node_url
from litereplica.errors import Misconfigured


@command("proxy", short_help="Serve an application's clients: reads here, writes on the primary.")
@click.option("--supervised", type=int, metavar="FD", hidden=True, help="A listening socket; ends with its parent.")
def proxy(options: Options, supervised: int | None) -> None:
    """Stand in front of the application of this machine's node, until SIGTERM or Ctrl-C.

    Reads go to the application here, once this node has what the client wrote before; writes go to the primary's
    proxy. The section proxy of the configuration says where; see docs/proxy.md. `litereplica run` starts one itself
    where proxy.listen is set, so this is for a proxy that a service manager looks after.
    """
    from litereplica.http.listener import bind  # noqa: PLC0415 - only when it is about to be used
    from litereplica.logs import configure_logs  # noqa: PLC0415
    from litereplica.proxy.server import Surroundings, run_proxy  # noqa: PLC0415

    found = load(options)
    if found.proxy.listen is None:
        raise Misconfigured("there is no proxy in this configuration: set proxy.listen, such as 0.0.0.0:8080")
    configure_logs(found.log.format, found.log.level)
    around = Surroundings(found.node.name, node_url(options), found.mount.dir)
    listener = bind(found.proxy.listen, "proxy.listen") if supervised is None else socket.socket(fileno=supervised)
    sys.exit(run_proxy(found.proxy, around, listener, supervised=supervised is not None))
