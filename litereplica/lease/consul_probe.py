"""One look at Consul's agents before a node starts: for ``litereplica doctor``.

Knows what a node will need and tries exactly that; leaves nothing behind. Does not know what is said about it.
"""

import uuid
from dataclasses import replace

import trio

from litereplica.errors import LitereplicaError
from litereplica.lease.consul import ConsulOptions
from litereplica.lease.consul_client import Agents, call_limit_s, operation, transact
from litereplica.lease.consul_key import LeaseKey
from litereplica.lease.consul_session import Session


def probe(options: ConsulOptions) -> dict[str, str]:
    """Ask each agent alone: its URL → what is in the way, "" for nothing. Raises Misconfigured (TLS files)."""
    return trio.run(_probe_all, options)


async def _probe_all(options: ConsulOptions) -> dict[str, str]:
    found = dict.fromkeys(options.urls, "")

    async def ask(url: str) -> None:
        try:
            await _probe(replace(options, urls=[url]))
        except LitereplicaError as error:
            found[url] = error.message

    options.tls.context()
    async with trio.open_nursery() as nursery:
        for url in options.urls:
            nursery.start_soon(ask, url)
    return found


async def _probe(options: ConsulOptions) -> None:
    agents = Agents(options.urls, options.token, options.tls, call_limit_s(options.ttl_s))
    session = Session(agents, "litereplica doctor", options.ttl_s)
    try:
        await LeaseKey(agents, session, options.key, options.ttl_s, lambda _: None).look()
        key = f"{options.key}/doctor/{uuid.uuid4().hex}"
        lock = operation("lock", key, b"", session=await session.ensure())
        await transact(agents, lock, operation("delete", key))
    finally:
        with trio.CancelScope(shield=True):
            await session.end()
        await agents.close()
